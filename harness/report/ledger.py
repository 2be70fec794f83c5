"""“Where the memory went”: of each phase a bar per architecture, part by part, at the largest context.

The parts and what each is taken from stand in `harness.validity.ledger`; they add up to the outermost
quantity that is known (NVML's delta, else the allocator's or the process' peak). A tick marks the predicted
cache beside the live one. Parts that nobody can know are left out of the bar, and their bytes are in what is
unexplained.
"""

from __future__ import annotations

import pandas as pd

from ..derived import alarms
from ..metrics import NOTHING, format_bytes
from ..validity.ledger import PEAKS, UNEXPLAINED, Part, ledger, total
from .axis import Ticks
from .canvas import Chart, short
from .doubt import Doubt, doubts, notes_of, signed
from .figure import Entry as Named
from .figure import Figure
from .groups import NO_CONTEXT, Group, context_name, cost_rows
from .html import Entry, Table, table_of
from .palette import OTHERS
from .plot import INK, Panel, Pen
from .render import render
from .section import Section

TITLES = {"prefill": "Memory of the prefill", "continuation": "Memory of the continuation"}
COLOURS = {
    "weights": "#6e7781",
    "cache": "#0072b2",
    "other models": OTHERS[0][0],
    "activations + logits": "#d55e00",
    "fragmentation": "#a88a00",
    "driver": "#c06a9a",
    UNEXPLAINED: OTHERS[1][0],
}
LEAD = (
    "Parts of the highest peak of each phase, at the largest context; together they are the outermost "
    "quantity that is known. The tick in a bar is where the predicted cache would end."
)


def ledger_section(group: Group, prefix: str) -> list[Section]:
    """A chart and a table per phase; nothing where no peak of memory was read."""
    cells = _cells(group)
    found = Section("Where the memory went", LEAD, alerts=alarms(group.rows))
    for phase in PEAKS:
        parts = {a: ledger(rows, phase) for a, rows in cells.items()}
        parts = {a: own for a, own in parts.items() if own}
        if parts:
            found.charts.append(_chart(f"{prefix}-{phase}", phase, parts, cells))
    if found.charts:
        context = next(iter(cells.values()))["context"].iloc[0]
        found.lead += f" Here: {context_name(context)}."
    return [found] if found.charts or found.alerts else []


def _cells(group: Group) -> dict[str, pd.DataFrame]:
    """Architecture -> rows of its timed cell at the largest context that all that were timed have, if any."""
    rows = cost_rows(group, "cache_bytes_live")
    rows = rows[(rows["context"] != NO_CONTEXT) & rows["repeat"].notna()]
    if rows.empty:
        return {}
    rows = rows[rows["num_requests"] == rows["num_requests"].min()]
    reached = rows.groupby("context")["architecture"].nunique()
    context = reached.index[reached == reached.max()].max()
    keys = rows[rows["context"] == context].drop_duplicates("architecture").set_index("architecture")["cell"]
    own = group.rows[group.rows["cell"].isin(set(keys))]
    parts = dict(list(own.groupby("cell")))
    return {a: parts[keys[a]] for a in group.architectures if a in keys}


def _chart(slug: str, phase: str, parts: dict[str, list[Part]], cells: dict[str, pd.DataFrame]) -> Chart:
    title, names = TITLES[phase], [short(name) for name in parts]
    panel = Panel(title=title)
    panel.y.set(0, len(parts))
    panel.y.ticks = [len(parts) - n - 0.5 for n in range(len(parts))]
    panel.y.labels, panel.y.label_size = names, 8.5
    panel.x.format = Ticks(format_bytes)
    high = max(total(own) for own in parts.values())
    panel.x.set(0, high * 1.02)
    step = 2.0 ** max(0, (int(high) // 5).bit_length())
    panel.x.ticks = [n * step for n in range(int(high / step) + 1)]
    for place, (name, own) in enumerate(parts.items()):
        _bar(panel, len(parts) - place - 1, own, _predicted(cells[name]))
    fig = Figure(5.0, 1.9 + 0.27 * len(parts), [panel])
    there = {part.name for own in parts.values() for part in own if part.num_bytes}
    used = [name for name in COLOURS if name in there]
    fig.entries, fig.columns, fig.handle = [Named(name, color=COLOURS[name]) for name in used], 3, 9.0
    drawing = render(fig, slug, title)
    return Chart(slug, title, drawing, _table(phase, parts, cells))


def _bar(panel: Panel, y: float, own: list[Part], predicted: float | None) -> None:
    start = 0.0
    for part in own:
        width = float(part.num_bytes or 0)
        if width > 0:
            panel.boxes([(start, y + 0.18, width, 0.64)], COLOURS.get(part.name, INK))
        if part.name == "cache" and predicted is not None:
            panel.plot([start + predicted] * 2, [y + 0.08, y + 0.92], Pen(INK, 1.4))
        start += max(width, 0.0)


def _predicted(rows: pd.DataFrame) -> float | None:
    values = rows.loc[(rows["metric"] == "cache_bytes_predicted") & rows["value"].notna(), "value"]
    return None if values.empty else float(values.max())


def _table(phase: str, parts: dict[str, list[Part]], cells: dict[str, pd.DataFrame]) -> Table:
    """Architectures down, parts across, predicted beside live."""
    names = list(dict.fromkeys(part.name for own in parts.values() for part in own))
    rows, met = [], []
    for architecture, own in parts.items():
        known, predicted = {part.name: part for part in own}, _predicted(cells[architecture])
        doubtful = _doubts(cells[architecture], phase)
        fields = [_entry(known.get(name), doubtful.get(name)) for name in names]
        at = names.index("cache") + 1 if "cache" in names else len(names)
        fields.insert(at, Entry(NOTHING if predicted is None else format_bytes(predicted)))
        rows.append([Entry(architecture), *fields, Entry(format_bytes(total(own)))])
        met += doubtful.values()
    columns = [*names]
    columns.insert(names.index("cache") + 1 if "cache" in names else len(names), "cache, predicted")
    table = table_of(["architecture", *columns, "together"], rows)
    sources = {part.name: part.source for own in parts.values() for part in own}
    table.notes.append("; ".join(f"{name}: {source}" for name, source in sources.items()) + ".")
    table.notes.extend(notes_of(met))
    return table


def _doubts(rows: pd.DataFrame, phase: str) -> dict[str, Doubt]:
    """Part -> doubt about the number that it is, or is taken from."""
    found = {name: doubt for (name,), doubt in _by_metric(rows).items()}
    peak = next((found[name] for name in PEAKS[phase][0] if name in found), None)
    told = {"cache": found.get("cache_bytes_live"), "activations + logits": peak}
    told["driver"] = found.get(PEAKS[phase][1])
    return {name: doubt for name, doubt in told.items() if doubt}


def _by_metric(rows: pd.DataFrame) -> dict[tuple, Doubt]:
    return {(key if isinstance(key, tuple) else (key,)): d for key, d in doubts(rows, ["metric"]).items()}


def _entry(part: Part | None, doubt: Doubt | None) -> Entry:
    if part is None or part.num_bytes is None:
        return Entry(NOTHING)
    return Entry(signed(format_bytes(part.num_bytes), doubt))
