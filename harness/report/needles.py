"""Hidden things that were asked for: maps by length and depth."""

from __future__ import annotations

from ..metrics import NOTHING
from .groups import Group, is_keyed, needle, needle_judge, needle_suites, not_exercised
from .heatmap import depth_name, suite_heatmaps
from .html import Entry, Table, table_of
from .remarks import trained_length, weights_told
from .scored import SEVERAL, suites_with
from .section import Section
from .statistics import wilson

BRACKETS = " A length in brackets was not exercised: nothing had to be evicted."


def needle_sections(group: Group, prefix: str, others: Group | None = None) -> list[Section]:
    """One part per needle suite, or one line that there was none.

    With `others` (a run with many budgets) only the suite that leads has maps, and they a folded table.
    """
    suites = needle_suites(group)
    if not suites and suites_with(group.ok, SEVERAL):
        return []  # several needles at once have a part of their own
    if not suites:
        return [Section("Needles by length and depth", "No needle suite was scored in this run.")]
    found = []
    for number, suite in enumerate(suites):
        title = "Needles by length and depth" + (f": {suite}" if len(suites) > 1 else "")
        maps = others is None or number == 0
        lead = f"Accuracy, {needle_judge(suite)[1]}, in per cent; depth 0 % is the beginning of the text."
        lead += BRACKETS * maps
        if (needle(group, suite)["context"] > trained_length(group)).any():
            lead += " A star marks lengths beyond the trained length: extrapolation." * maps
        if is_keyed(suites[0]):
            lead += _template(group, suite)
        part = Section(title, lead, notes=weights_told(group), maps=maps)
        part.charts = suite_heatmaps(f"{prefix}-{number}", group, suite) if maps else []
        part.tables = [] if maps else [depths_table(group, suite)]
        if others is not None:
            part.folded = [("Other budgets, by length and depth", depths_table(others, suite))]
        found.append(part)
    return found


def _template(group: Group, suite: str) -> str:
    """What the suite says of its template and the networks' training."""
    told = ((group.run.manifest.get("suites") or {}).get(suite) or {}).get("training")
    return f" {told[0].upper()}{told[1:].rstrip('.')}." if told else ""


def depths_table(group: Group, suite: str) -> Table:
    """Architectures and lengths down, depths across."""
    trials = needle(group, suite)
    depths = sorted(trials["depth"].unique())
    unused = not_exercised(group.ok[group.ok["suite"] == suite])
    failed = group.failures[group.failures["suite"] == suite]
    status = {(f.architecture, f.context, f.depth): f.status for f in failed.itertuples()}
    cells = {(t.architecture, t.context, t.depth): t for t in trials.itertuples()}
    lengths = sorted({*trials["context"], *failed["context"]})
    rows = []
    for length in lengths:
        for spec in group.architectures:
            row = [_entry(cells.get((spec, length, d)), status.get((spec, length, d))) for d in depths]
            if any(entry.text != NOTHING for entry in row):
                marks = ["not exercised"] * ((spec, length) in unused)
                marks += ["beyond the trained length"] * (length > trained_length(group))
                rows.append([spec, Entry(f"{length:,.0f} tokens", " · ".join(marks)), *row])
    return table_of(["architecture", "length", *(f"depth {depth_name(depth)}" for depth in depths)], rows)


def _entry(cell: object, status: str | None) -> Entry:
    if cell is None or not cell.trials:
        return Entry(status or NOTHING, failed=status is not None)
    low, high = wilson(cell.hits, cell.trials)
    return Entry(
        f"{100 * cell.hits / cell.trials:.0f} %", f"{100 * low:.0f}–{100 * high:.0f} %, n = {cell.trials}"
    )
