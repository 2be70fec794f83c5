"""Charts over budgets: a line per policy against its tokens, or against the bytes that they cost.

Architectures without a budget are horizontal lines over tokens and points over bytes. Where a policy had
nothing to do its own mark is hollow: the number is the whole cache's. A ring is another thing, a point in
doubt (doubt.py). Whiskers are 95 % intervals.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from ..metrics import METRICS, NOTHING, Metric, format_bytes
from .books import interval_text
from .budgets import budget_of, in_bytes, policies, policy_names, whole
from .canvas import Chart, Style, figure, legend, styles
from .doubt import Doubt, notes_of, signed
from .groups import Group
from .html import Entry, Table, table_of
from .lines import log_axis, score_axis, token_axis
from .once import once
from .plot import PAPER, Panel, Pen
from .remarks import hand_set
from .render import render
from .rings import explained, ringed

#: Points of several policies at one budget stand side by side by this factor, all of them within `SPREAD`.
BESIDE, SPREAD = 1.035, 1.12
#: Width and height of a chart; a long legend makes it higher.
SIZE_IN = (5.0, 4.7)
#: Size of a title: it says more than others.
TITLE_PT = 9.5


def over_budgets(slug: str, title: str, metric: str, frame: pd.DataFrame, group: Group) -> Chart:
    """A score over budgets in tokens; `frame` has architecture, value, low, high, idle."""
    entry, looks, points = METRICS[metric], _looks(group), _points(frame)
    owners = {name: [s for s in specs if s in points] for name, specs in policies(group).items()}
    owners = {name: specs for name, specs in owners.items() if specs}
    budgets = sorted({budget_of(group, s) or 0 for specs in owners.values() for s in specs})
    references = [spec for spec in whole(group) if spec in points]
    fig, panel = figure(*SIZE_IN)
    panel.title, panel.title_size = title, TITLE_PT
    token_axis(panel.x, [float(budget) for budget in budgets], "budget, tokens")
    score_axis(panel.y, entry)
    for spec in references:
        panel.level(points[spec].value, looks[spec].bare(1.2))
    for place, (name, specs) in enumerate(owners.items()):
        x = [(budget_of(group, spec) or 0) * _shift(place, len(owners)) for spec in specs]
        _line(panel, x, [points[spec] for spec in specs], looks[name])
    shown = {spec: looks[spec].bare(1.6) for spec in references}
    shown |= {name: looks[name].line() for name in owners} | explained(_doubts(points))
    legend(fig, shown, hand_set(group, list(points)))
    drawing = render(fig, slug, title)
    return Chart(slug, title, drawing, _table(group, owners, budgets, points, references, entry))


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
    fig, panel = figure(*SIZE_IN)
    panel.title, panel.title_size = title, TITLE_PT
    panel.x.name = "live cache per request"
    log_axis(panel.x, METRICS["cache_bytes_live"])
    score_axis(panel.y, entry)
    for name, specs in owners.items():
        _line(panel, [held[spec] for spec in specs], [points[spec] for spec in specs], looks[name])
    shown = {name: looks[name].line() for name in owners} | explained(_doubts(points))
    legend(fig, shown, hand_set(group, list(points)))
    drawing = render(fig, slug, title)
    rows = [
        [spec, format_bytes(held[spec]), _entry(points[spec], entry)]
        for specs in owners.values()
        for spec in specs
    ]
    table = table_of(["architecture", "live cache", entry.label], rows)
    table.notes.extend(notes_of(_doubts(points)))
    return Chart(slug, title, drawing, table)


@once
def _looks(group: Group) -> dict[str, Style]:
    """Policy -> its style: filled, and a marker of its own for each variant of a family."""
    names = policy_names(group)
    return styles(list(dict.fromkeys(names[spec] for spec in group.drawn if spec in names)))


def _shift(place: int, count: int) -> float:
    """By what the points of one of several policies stand beside their budget."""
    return min(BESIDE, SPREAD ** (1 / count)) ** (place - (count - 1) / 2)


def _points(frame: pd.DataFrame) -> dict[str, object]:
    return {point.architecture: point for point in frame.itertuples()}


def _doubts(points: dict[str, object]) -> list[Doubt | None]:
    return [point.doubt for point in points.values()]


def _line(panel: Panel, x: list[float], points: list, style: Style) -> None:
    """A policy: its line, its whiskers in one path, its points, and its hollow ones."""
    panel.plot(x, [p.value for p in points], style.bare(1.3))
    told = [(place, (p.low, p.high)) for place, p in zip(x, points, strict=True) if not math.isnan(p.low)]
    if told:
        panel.whiskers(*map(list, zip(*told, strict=True)), Pen(style.color, 0.9, alpha=0.45), 0)
    look = style.points(min(style.size, 6.5))
    for idle, face in ((False, ""), (True, PAPER)):
        if own := [(place, p.value) for place, p in zip(x, points, strict=True) if bool(p.idle) == idle]:
            panel.plot(*zip(*own, strict=True), replace(look, face=face))
    for place, p in zip(x, points, strict=True):
        ringed(panel, place, p.value, look, p.doubt)


def _entry(point: object, entry: Metric) -> Entry:
    notes = [interval_text((point.low, point.high), entry.format), "not exercised" * point.idle]
    return Entry(signed(entry.format(point.value), point.doubt), " · ".join(filter(None, notes)))


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
    table = table_of(["policy", *(f"{budget:,} tokens" for budget in budgets), *others], rows)
    table.notes.extend(notes_of(_doubts(points)))
    return table
