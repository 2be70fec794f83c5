"""Maps of shares as colour and as a number; above all needles: length across, depth down, accuracy.

One scale from 0 to 100 % for all of them, in steps of a tenth; the page's own legend shows it. Depth 0
is the beginning of the text, the place that a cache with a budget forgets first.
"""

from __future__ import annotations

import math

import pandas as pd

from ..metrics import NOTHING
from .canvas import Chart, figure, wrapped
from .groups import Group, needle, needle_judge, not_exercised
from .html import Entry, table_of
from .palette import ON_DARK, ON_LIGHT, RAMP
from .plot import MUTED, Panel
from .remarks import hand_set, trained_length
from .render import Drawing, render
from .statistics import wilson

#: Beyond this many columns a map is drawn narrower, and over the page's whole width.
FEW_COLUMNS = 10
#: Size of a map's title; what a line of it takes, what a character does, what stands to the left of it.
TITLE_PT, TITLE_LINE_IN, CHARACTER_IN, BESIDE_TITLE_IN = 9.5, 0.16, 0.088, 0.5


def heatmap(
    slug: str,
    architecture: str,
    trials: pd.DataFrame,
    failed: pd.DataFrame,
    idle: set[float],
    remark: str = "",
    official: bool = False,
    trained: float = math.inf,
) -> Chart:
    """The map of one architecture; `trials` and `failed` are its lines of `needle` and failure rows.

    Lengths in `idle`, where the policy had nothing to evict, stand in brackets. `remark` is small print;
    `official`: the substring judges, not the strict score. Lengths above `trained` bear a star.
    """
    lengths = sorted({*trials["context"], *failed["context"]})
    depths = sorted({d for d in [*trials["depth"], *failed["depth"]] if not math.isnan(d)}) or [math.nan]
    scored = {(t.context, _key(t.depth)): t for t in trials.itertuples()}
    broken = {(f.context, _key(f.depth)): f.status for f in failed.itertuples()}
    shares = {
        (column, row): _share(scored.get((length, _key(depth))), broken, length, depth)
        for column, length in enumerate(lengths)
        for row, depth in enumerate(depths)
    }
    labels = (
        [_length(length, idle) + "*" * (length > trained) for length in lengths],
        [depth_name(depth) for depth in depths],
    )
    names, what = ("length, tokens", "depth"), f"needle accuracy of {architecture}"
    drawing = share_map(slug, architecture, what, *labels, shares, names, remark)

    def entry(length: float, depth: float) -> Entry:
        return _entry(scored.get((length, _key(depth))), broken, length, depth, official)

    rows = [[depth_name(depth), *(entry(length, depth) for length in lengths)] for depth in depths]
    said = {
        length: "\nnot exercised" * (length in idle) + "\nbeyond the trained length" * (length > trained)
        for length in lengths
    }
    table = table_of(["depth", *(f"{length:,.0f} tokens{said[length]}" for length in lengths)], rows)
    return Chart(slug, architecture, drawing, table)


def suite_heatmaps(prefix: str, group: Group, suite: str) -> list[Chart]:
    """One map per architecture that met the suite."""
    trials = needle(group, suite)
    idle = not_exercised(group.ok[group.ok["suite"] == suite])
    failures = group.failures[group.failures["suite"] == suite]
    official = needle_judge(suite)[0] == "accuracy_substring"
    charts = []
    for number, architecture in enumerate(group.architectures):
        own = trials[trials["architecture"] == architecture]
        failed = failures[failures["architecture"] == architecture]
        if len(own) or len(failed):
            unused = {context for name, context in idle if name == architecture}
            remark = hand_set(group, [architecture])
            slug = f"{prefix}-{number}"
            longest = trained_length(group)
            charts.append(heatmap(slug, architecture, own, failed, unused, remark, official, longest))
    return charts


def _key(depth: float) -> float | None:
    return None if math.isnan(depth) else depth


def _share(cell: object, broken: dict, length: float, depth: float) -> float | str:
    if cell is None:
        return broken.get((length, _key(depth)), broken.get((length, None))) or NOTHING
    return cell.hits / cell.trials if cell.trials else math.nan


def share_map(
    slug: str,
    title: str,
    description: str,
    columns: list[str],
    rows: list[str],
    shares: dict[tuple[int, int], float | str],
    names: tuple[str, str],
    remark: str = "",
) -> Drawing:
    """Shares by (column, row): a word in their place is no share but what became of it."""
    width_in = max(2.3, 1.0 + (0.62 if len(columns) <= FEW_COLUMNS else 0.42) * len(columns))
    title = wrapped(title, int((width_in - BESIDE_TITLE_IN) / CHARACTER_IN))
    height_in = 0.95 + 0.3 * len(rows) + 0.15 * bool(remark) + TITLE_LINE_IN * title.count("\n")
    fig, panel = figure(width_in, height_in)
    panel.title, panel.title_size, fig.footnote = title, TITLE_PT, remark
    _frame(panel, columns, rows, names)
    for (column, row), share in shares.items():
        _cell(panel, column, row, share)
    return render(fig, slug, description)


def _cell(panel: Panel, column: int, row: int, share: float | str) -> None:
    if isinstance(share, str):
        panel.hatch(column, row)
        panel.word(column + 0.5, row + 0.5, share, 7.5, MUTED)
        return
    step = 0 if math.isnan(share) else min(max(round(share * 10), 0), 10)
    panel.boxes([(column, row, 1, 1)], RAMP[step])
    text = NOTHING if math.isnan(share) else f"{100 * share:.0f}"
    panel.word(column + 0.5, row + 0.5, text, 8.5, ON_DARK if step >= 5 else ON_LIGHT)


def _frame(panel: Panel, columns: list[str], rows: list[str], names: tuple[str, str]) -> None:
    panel.framed, panel.down = False, True
    for axis, labels, name in ((panel.x, columns, names[0]), (panel.y, rows, names[1])):
        axis.set(0, len(labels))
        axis.ticks, axis.labels = [n + 0.5 for n in range(len(labels))], labels
        axis.label_size = axis.name_size = 8
        axis.name = name


def _length(length: float, idle: set[float]) -> str:
    return f"({length:,.0f})" if length in idle else f"{length:,.0f}"


def depth_name(depth: float) -> str:
    return "all" if math.isnan(depth) else f"{100 * depth:.0f} %"


def _entry(cell: object, broken: dict, length: float, depth: float, official: bool) -> Entry:
    """The share that judges, with the other score in small print (`official`: the substring judges)."""
    if cell is None:
        status = broken.get((length, _key(depth)), broken.get((length, None)))
        return Entry(status or NOTHING, failed=status is not None)
    if not cell.trials:
        return Entry(NOTHING, "unscored")
    low, high = wilson(cell.hits, cell.trials)
    strict = f" · strict {cell.strict_hits:.0f}" if cell.strict_trials else ""
    substring = f" · substring {cell.substring_hits:.0f}" if cell.substring_trials else ""
    return Entry(
        f"{100 * cell.hits / cell.trials:.0f} %",
        f"{100 * low:.0f}–{100 * high:.0f} % · {cell.hits:.0f} of {cell.trials}"
        + (strict if official else substring),
    )
