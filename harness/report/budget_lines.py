"""Charts over budgets: a line per policy against its tokens, or against the bytes that they cost.

Architectures without a budget are horizontal lines over tokens and points over bytes. Where a policy had
nothing to do its point is hollow: the number is the whole cache's. That is the only thing that hollow means
here: variants of a family differ by marker and dash. Whiskers are 95 % intervals.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ..metrics import METRICS, NOTHING, Metric, format_bytes
from .books import interval_text
from .budgets import budget_of, in_bytes, once, policies, policy_names, whole
from .canvas import PAPER, Chart, Style, drawing, figure, legend, marked, render, styles, tick
from .groups import Group
from .html import Entry, Table, table_of
from .lines import log_axis, token_axis
from .remarks import hand_set

#: Points of several policies at one budget stand side by side by this factor, all of them within `SPREAD`.
BESIDE, SPREAD = 1.035, 1.12
#: Width and height of a chart; a long legend makes it higher.
SIZE_IN = (5.0, 4.7)
#: Characters of a figure's title that stand in one line.
TITLE_WIDTH = 52


def over_budgets(slug: str, title: str, metric: str, frame: pd.DataFrame, group: Group) -> Chart:
    """A score over budgets in tokens; `frame` has architecture, value, low, high, idle."""
    entry, looks, points = METRICS[metric], _looks(group), _points(frame)
    owners = {name: [s for s in specs if s in points] for name, specs in policies(group).items()}
    owners = {name: specs for name, specs in owners.items() if specs}
    budgets = sorted({budget_of(group, s) or 0 for specs in owners.values() for s in specs})
    references = [spec for spec in whole(group) if spec in points]
    with drawing(slug):
        fig = figure(*SIZE_IN)
        axes = fig.subplots()
        for spec in references:
            axes.axhline(points[spec].value, **_rule(looks[spec]))
        for place, (name, specs) in enumerate(owners.items()):
            x = [(budget_of(group, spec) or 0) * _shift(place, len(owners)) for spec in specs]
            _line(axes, x, [points[spec] for spec in specs], looks[name])
        token_axis(axes, [float(budget) for budget in budgets], "budget, tokens")
        _scores(axes, entry)
        axes.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize=9.5)
        rules = {spec: replace(looks[spec], marker="") for spec in references}
        shown = {**rules, **{name: looks[name] for name in owners}}
        legend(fig, shown, remark=hand_set(group, list(points)))
        svg, png = render(fig, slug, title)
    return Chart(slug, title, svg, png, _table(group, owners, budgets, points, references, entry))


def over_bytes(
    slug: str, title: str, metric: str, frame: pd.DataFrame, group: Group, held: dict[str, float]
) -> Chart:
    """The same over live cache bytes of one request (`held`), budgets in bytes among them."""
    entry, looks, points = METRICS[metric], _looks(group), _points(frame)
    owners: dict[str, list[str]] = {}
    names = policy_names(group)
    for spec in sorted((spec for spec in points if spec in held), key=lambda spec: held[spec]):
        owners.setdefault(names[spec], []).append(spec)
    owners = {name: owners[name] for name in looks if name in owners}
    with drawing(slug):
        fig = figure(*SIZE_IN)
        axes = fig.subplots()
        for name, specs in owners.items():
            _line(axes, [held[spec] for spec in specs], [points[spec] for spec in specs], looks[name])
        axes.set_xscale("log", base=2)
        log_axis(axes, METRICS["cache_bytes_live"], "x")
        axes.set_xlabel("live cache per request")
        _scores(axes, entry)
        axes.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize=9.5)
        legend(fig, {name: looks[name] for name in owners}, remark=hand_set(group, list(points)))
        svg, png = render(fig, slug, title)
    rows = [
        [spec, format_bytes(held[spec]), _entry(points[spec], entry)]
        for specs in owners.values()
        for spec in specs
    ]
    return Chart(slug, title, svg, png, table_of(["architecture", "live cache", entry.label], rows))


@once
def _looks(group: Group) -> dict[str, Style]:
    """Policy -> its style: filled, and a marker of its own for each variant of a family."""
    names = policy_names(group)
    return marked(styles(list(dict.fromkeys(names[spec] for spec in group.drawn if spec in names))))


def _shift(place: int, count: int) -> float:
    """By what the points of one of several policies stand beside their budget."""
    return min(BESIDE, SPREAD ** (1 / count)) ** (place - (count - 1) / 2)


def _points(frame: pd.DataFrame) -> dict[str, object]:
    return {point.architecture: point for point in frame.itertuples()}


def _rule(style: Style) -> dict:
    return {"color": style.color, "linestyle": style.dash, "linewidth": 1.2, "zorder": 1.5}


def _line(axes: Axes, x: list[float], points: list, style: Style) -> None:
    """A policy: its line, its whiskers in one path, its points, and its hollow ones."""
    axes.plot(x, [p.value for p in points], color=style.color, linestyle=style.dash, linewidth=1.3)
    told = [(place, p) for place, p in zip(x, points, strict=True) if not math.isnan(p.low)]
    if told:
        ends = [(place, y) for place, p in told for y in (p.low, p.high, math.nan)]
        axes.plot(*zip(*ends, strict=True), color=style.color, linewidth=0.9, alpha=0.45)
    look = style.points() | {"markersize": min(style.size, 6.5)}
    for idle, face in ((False, style.face), (True, PAPER)):
        if own := [(place, p.value) for place, p in zip(x, points, strict=True) if bool(p.idle) == idle]:
            axes.plot(*zip(*own, strict=True), **look | {"markerfacecolor": face})


def _scores(axes: Axes, entry: Metric) -> None:
    if entry.unit == "share":
        axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(entry.format(value))))


def _entry(point: object, entry: Metric) -> Entry:
    notes = [interval_text((point.low, point.high), entry.format), "not exercised" * point.idle]
    return Entry(entry.format(point.value), " · ".join(filter(None, notes)))


def _table(
    group: Group,
    owners: dict[str, list[str]],
    budgets: list[int],
    points: dict[str, object],
    references: list[str],
    entry: Metric,
) -> Table:
    """Policies down, budgets across; whatever has no budget, or one in bytes, in columns of their own."""
    stated = [spec for spec in points if in_bytes(spec) is not None]
    others = {"no budget": references, "budget in bytes": stated}
    others = {column: specs for column, specs in others.items() if specs}
    rows = []
    for name, specs in owners.items():
        own = {budget_of(group, spec): _entry(points[spec], entry) for spec in specs}
        fields = [own.get(budget, Entry(NOTHING)) for budget in budgets]
        rows.append([name, *fields, *[Entry(NOTHING)] * len(others)])
    for column, specs in others.items():
        for spec in specs:
            fields = [_entry(points[spec], entry) if other == column else Entry(NOTHING) for other in others]
            rows.append([spec, *[Entry(NOTHING)] * len(budgets), *fields])
    return table_of(["policy", *(f"{budget:,} tokens" for budget in budgets), *others], rows)
