"""Charts over budgets: a line per policy against its tokens, or against the bytes that they cost.

Architectures without a budget are horizontal lines over tokens and points over bytes. Where a policy had
nothing to do its point is hollow: the number is the whole cache's. Whiskers are 95 % intervals.
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
from .budgets import budget_of, in_bytes, policies, policy, whole
from .canvas import PAPER, Chart, Style, drawing, figure, legend, render, styles, tick
from .groups import Group
from .html import Entry, Table, table_of
from .lines import log_axis, token_axis
from .remarks import hand_set

#: Points of several policies at one budget stand side by side by this factor.
BESIDE = 1.035
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
        fig = figure(5.0, 4.3)
        axes = fig.subplots()
        for spec in references:
            axes.axhline(points[spec].value, **_rule(looks[spec]))
        for place, (name, specs) in enumerate(owners.items()):
            shift = BESIDE ** (place - (len(owners) - 1) / 2)
            x = [(budget_of(group, spec) or 0) * shift for spec in specs]
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
    for spec in sorted(points.keys() & held.keys(), key=lambda spec: held[spec]):
        owners.setdefault(policy(spec), []).append(spec)
    owners = {name: owners[name] for name in looks if name in owners}
    with drawing(slug):
        fig = figure(5.0, 4.3)
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


def _looks(group: Group) -> dict[str, Style]:
    return styles(list(dict.fromkeys(map(policy, group.drawn))))


def _points(frame: pd.DataFrame) -> dict[str, object]:
    return {point.architecture: point for point in frame.itertuples()}


def _rule(style: Style) -> dict:
    return {"color": style.color, "linestyle": style.dash, "linewidth": 1.2, "zorder": 1.5}


def _line(axes: Axes, x: list[float], points: list, style: Style) -> None:
    look = style.line() | {"linewidth": 1.3, "markersize": min(style.size, 6.5)}
    axes.plot(x, [point.value for point in points], **look | {"marker": "none"})
    for place, point in zip(x, points, strict=True):
        if not math.isnan(point.low):
            axes.plot([place] * 2, [point.low, point.high], color=style.color, linewidth=0.9, alpha=0.45)
        mark = {key: value for key, value in look.items() if key not in ("linestyle", "linewidth")}
        axes.plot(place, point.value, **mark | ({"markerfacecolor": PAPER} if point.idle else {}))


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
    """Policies down, budgets across; whatever has no budget in a column of its own."""
    rows = []
    for name, specs in owners.items():
        own = {budget_of(group, spec): _entry(points[spec], entry) for spec in specs}
        rows.append([name, *(own.get(budget, Entry(NOTHING)) for budget in budgets), Entry(NOTHING)])
    rows += [[spec, *[Entry(NOTHING)] * len(budgets), _entry(points[spec], entry)] for spec in references]
    for spec in points:
        if in_bytes(spec) is not None:
            rows.append([spec, *[Entry(NOTHING)] * len(budgets), _entry(points[spec], entry)])
    return table_of(["policy", *(f"{budget:,} tokens" for budget in budgets), "no budget in tokens"], rows)
