"""A finished search as a table, from its rows alone: in a terminal or as Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pandas as pd

from .frontier import GRANULARITY
from .metrics import NOTHING, format_bytes, format_count, format_share

COLUMNS = (
    "architecture", "batch", "predicted", "largest context", "measured / predicted",
    "peak there", "predicted there", "first failure", "probes",
)  # fmt: skip

#: Which bytes are meant, by device.
_KINDS = {
    "cpu": "Limit and prediction count private writable memory; peak and held are resident memory, in which "
    "shared files of libraries are, too.",
    "cuda": "Peak and held are those of torch's allocator; the limit is what the driver called free.",
}


@dataclass(frozen=True)
class Shown:
    """Cells of the table as text, and what must be said below it."""

    rows: list[tuple[str, ...]]
    notes: list[str]


def shown(rows: pd.DataFrame) -> Shown:
    """The results among the rows of a run, in their order."""
    found = rows[rows["metric"].str.startswith("frontier_")]
    table, notes = [], []
    limits = found.loc[found["metric"] == "frontier_limit_bytes", "value"].unique()
    notes.append(
        f"Memory: {' and '.join(map(format_bytes, limits))}. Each context was prefilled and decoded in a "
        f"process of its own. Found to within {format_share(GRANULARITY)}, on the assumption that whatever "
        "is longer than a context that ran out of memory runs out, too."
    )
    notes += [_KINDS[kind] for kind in dict.fromkeys(str(device)[:4] for device in found["device"])]
    for (architecture, axes), group in found.groupby(["architecture", "axes"], sort=False):
        named = {row.metric: row for row in group.itertuples()}
        batch = format_count(json.loads(axes)["batch"])
        table.append((architecture, batch, *_cells(named)))
        notes.append(f"Tried with {architecture}, batch {batch}: {named['frontier_probes'].message}.")
    return Shown(table, notes)


def markdown(rows: pd.DataFrame) -> str:
    """The same as a Markdown table with its notes."""
    done = shown(rows)
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(cells)} |" for cells in done.rows]
    return "\n".join([*lines, "", *(f"{note}\n" for note in done.notes)])


def print_table(rows: pd.DataFrame) -> None:
    """To the terminal."""
    from rich.console import Console
    from rich.table import Table

    done, console = shown(rows), Console(width=None if Console().is_terminal else 180)
    table = Table(*COLUMNS)
    for cells in done.rows:
        table.add_row(*cells)
    console.print(table)
    for note in done.notes:
        console.print(note, markup=False, highlight=False)


def _cells(named: dict) -> tuple[str, ...]:
    def number(metric: str) -> float:
        return named[metric].value if metric in named else math.nan

    def or_why(metric: str) -> str:
        return str(named[metric].message) if math.isnan(number(metric)) else format_count(number(metric))

    measured, predicted = number("frontier_context"), number("frontier_context_predicted")
    share = measured / predicted if predicted else math.nan
    failure = NOTHING
    if "frontier_failure_context" in named:
        row = named["frontier_failure_bytes"]
        held = "" if math.isnan(row.value) else f", {format_bytes(row.value)} held"
        failure = f"{format_count(number('frontier_failure_context'))}: {row.phase}{held}"
    return (
        or_why("frontier_context_predicted"),
        or_why("frontier_context"),
        NOTHING if math.isnan(share) else f"×{share:.2f}",
        format_bytes(number("frontier_fit_bytes")),
        format_bytes(number("frontier_fit_bytes_predicted")),
        failure,
        format_count(number("frontier_probes")),
    )
