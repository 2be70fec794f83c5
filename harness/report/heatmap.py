"""Needle heatmaps: length across, depth down, strict accuracy as colour and as a number.

One scale from 0 to 100 % for all of them, in steps of a tenth; the page's own legend shows it. Depth 0
is the beginning of the text, the place that a cache with a budget forgets first.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .canvas import GRID, MUTED, ON_DARK, ON_LIGHT, RAMP, Chart, drawing, figure, footnote, render
from .groups import Group, needle, not_exercised
from .html import Entry, table_of
from .remarks import hand_set


def heatmap(
    slug: str,
    architecture: str,
    trials: pd.DataFrame,
    failed: pd.DataFrame,
    idle: set[float],
    remark: str = "",
) -> Chart:
    """The map of one architecture; `trials` and `failed` are its lines of `needle` and failure rows.

    Lengths in `idle`, where the policy had nothing to evict, stand in brackets. `remark` is small print.
    """
    lengths = sorted({*trials["context"], *failed["context"]})
    depths = sorted({d for d in [*trials["depth"], *failed["depth"]] if not math.isnan(d)}) or [math.nan]
    scored = {(t.context, _key(t.depth)): t for t in trials.itertuples()}
    broken = {(f.context, _key(f.depth)): f.status for f in failed.itertuples()}
    with drawing(slug):
        fig = figure(max(2.3, 1.0 + 0.62 * len(lengths)), 0.95 + 0.3 * len(depths) + 0.15 * bool(remark))
        axes = fig.subplots()
        for column, length in enumerate(lengths):
            for row, depth in enumerate(depths):
                cell = scored.get((length, _key(depth)))
                status = broken.get((length, _key(depth)), broken.get((length, None)))
                _cell(axes, column, row, cell, status)
        _frame(axes, [_length(length, idle) for length in lengths], depths)
        axes.set_title(architecture, fontsize=9.5)
        footnote(fig, remark)
        svg, png = render(fig, slug, f"needle accuracy of {architecture}")
    rows = [
        [_depth(depth), *(_entry(scored.get((c, _key(depth))), broken, c, depth) for c in lengths)]
        for depth in depths
    ]
    table = table_of(["depth", *(f"{_length(length, idle)} tokens" for length in lengths)], rows)
    return Chart(slug, architecture, svg, png, table)


def suite_heatmaps(prefix: str, group: Group, suite: str) -> list[Chart]:
    """One map per architecture that met the suite."""
    trials = needle(group, suite)
    idle = not_exercised(group.ok[group.ok["suite"] == suite])
    failures = group.failures[group.failures["suite"] == suite]
    charts = []
    for number, architecture in enumerate(group.architectures):
        own = trials[trials["architecture"] == architecture]
        failed = failures[failures["architecture"] == architecture]
        if len(own) or len(failed):
            unused = {context for name, context in idle if name == architecture}
            remark = hand_set(group, [architecture])
            charts.append(heatmap(f"{prefix}-{number}", architecture, own, failed, unused, remark))
    return charts


def _key(depth: float) -> float | None:
    return None if math.isnan(depth) else depth


def _cell(axes: Axes, column: int, row: int, cell: object, status: str | None) -> None:
    if cell is None:
        axes.add_patch(
            Rectangle((column, row), 1, 1, facecolor="none", edgecolor=GRID, hatch="////", linewidth=0)
        )
        axes.text(column + 0.5, row + 0.5, status or "–", ha="center", va="center", fontsize=7.5, color=MUTED)
        return
    share = cell.strict_hits / cell.strict_trials if cell.strict_trials else math.nan
    step = 0 if math.isnan(share) else round(share * 10)
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=RAMP[step], edgecolor="none"))
    text = "–" if math.isnan(share) else f"{100 * share:.0f}"
    ink = ON_DARK if step >= 5 else ON_LIGHT
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8.5, color=ink)


def _frame(axes: Axes, lengths: list[str], depths: list[float]) -> None:
    axes.set_xlim(0, len(lengths))
    axes.set_ylim(len(depths), 0)
    axes.grid(False)
    axes.set_xticks([n + 0.5 for n in range(len(lengths))], lengths, fontsize=8)
    axes.set_yticks([n + 0.5 for n in range(len(depths))], [_depth(depth) for depth in depths], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("length, tokens", fontsize=8)
    axes.set_ylabel("depth", fontsize=8)


def _length(length: float, idle: set[float]) -> str:
    return f"({length:,.0f})" if length in idle else f"{length:,.0f}"


def _depth(depth: float) -> str:
    return "all" if math.isnan(depth) else f"{100 * depth:.0f} %"


def _entry(cell: object, broken: dict, length: float, depth: float) -> Entry:
    if cell is None:
        status = broken.get((length, _key(depth)), broken.get((length, None)))
        return Entry(status or "–", failed=status is not None)
    if not cell.strict_trials:
        return Entry("–", "unscored")
    substring = f", substring {cell.substring_hits:.0f}" if cell.substring_trials else ""
    return Entry(
        f"{100 * cell.strict_hits / cell.strict_trials:.0f} %",
        f"{cell.strict_hits:.0f} of {cell.strict_trials}{substring}",
    )
