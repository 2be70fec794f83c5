"""Suites whose cells are a grid of tasks: what goes across a table, what goes down it, who had to evict.

The axes of a cell stand in the run's manifest. One of them (a task, a number of pairs) goes across; any
other that differs between the cells of a suite goes down beside the architecture, so that numbers of two
lengths or two kinds of prompt are never pooled. An axis is pooled only where the caller says so, and one that
has a single value for whatever goes across stands in the header.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from ..metrics import NOTHING
from .groups import NEVER_EVICT, Group
from .html import Entry, Table, table_of

#: Architecture, values of the axes that go down, what goes across.
Key = tuple[str, tuple[str, ...], str]


@dataclass(frozen=True)
class Grid:
    """`rows` of one suite, failures among them, with the columns `across` and `down`.

    `names` are the axes that go down, `headers` what stands above each column.
    """

    rows: pd.DataFrame
    names: list[str]
    headers: dict[str, str]

    @cached_property
    def ok(self) -> pd.DataFrame:
        """Rows with a number."""
        return self.rows[(self.rows["status"] == "ok") & self.rows["value"].notna()]

    @property
    def failures(self) -> dict[Key, Entry]:
        """Failed cells by their place."""
        rows = self.rows[self.rows["status"] != "ok"]
        keys = zip(rows["architecture"], rows["down"], rows["across"], rows["status"], strict=True)
        return {(a, d, c): Entry(status, failed=True) for a, d, c, status in keys}

    def acted(self, architecture: str, down: tuple[str, ...], across: str | None = None) -> str:
        """What to say beside a quality number: in what share of its requests the policy took something.

        Empty for an architecture that keeps every token by design, and where nobody counted.
        """
        total, acted = self._counts.get((architecture, down, across), (0, 0))
        if not total:
            return ""
        return f"acted in {100 * acted / total:.0f} %" if acted else "not exercised"

    @cached_property
    def _counts(self) -> dict[tuple[str, tuple[str, ...], str | None], tuple[float, float]]:
        """Requests, and those in which the policy acted, by place and over all columns."""
        found: dict[tuple[str, tuple[str, ...], str | None], tuple[float, float]] = {}
        cells = self.ok.drop_duplicates("cell").dropna(subset=["requests", "requests_with_eviction"])
        for cell in cells[~cells["family"].isin(NEVER_EVICT)].itertuples():
            if str(cell.prompt_mode).partition(",")[0] == "parallel":
                continue
            for across in (cell.across, None):
                key = (cell.architecture, cell.down, across)
                total, acted = found.get(key, (0, 0))
                found[key] = (total + cell.requests, acted + cell.requests_with_eviction)
        return found


def grid(group: Group, suite: str, across: str, pooled: Iterable[str] = ()) -> Grid:
    """The cells of a suite laid out; `pooled` axes go neither across nor down."""
    rows = group.rows[group.rows["suite"] == suite]
    there = set(rows["cell"])
    axes = {cell["key"]: cell.get("axes") or {} for cell in group.run.cells if cell["key"] in there}
    place = {key: _text(own.get(across)) for key, own in axes.items()}
    seen: dict[str, dict[str, set[str]]] = {}
    for key, own in axes.items():
        for name in {*own} - {across, *pooled}:
            seen.setdefault(name, {}).setdefault(place[key], set()).add(_text(own[name]))
    names = sorted(name for name, values in seen.items() if any(len(v) > 1 for v in values.values()))
    headers = {column: column for column in place.values()}
    for name in sorted(seen.keys() - set(names)):
        if len(set.union(*seen[name].values())) > 1:  # it differs, but only from column to column
            for column, (value,) in seen[name].items():
                headers[column] += f"\n{name} {value}"
    down = {key: tuple(_text(own.get(name)) for name in names) for key, own in axes.items()}
    return Grid(rows.assign(across=rows["cell"].map(place), down=rows["cell"].map(down)), names, headers)


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:,g}" if isinstance(value, (int, float)) and abs(value) < 1e6 else str(value)


def notes(*parts: str) -> str:
    """Lines of small print, empty ones left out."""
    return " · ".join(part for part in parts if part)


def lay_out(
    group: Group, found: Grid, entries: dict[Key, Entry], headers: dict[str, str], caption: str
) -> Table:
    """Architectures (and the axes that go down) against columns; `headers` are the columns by their key.

    Lines of which nothing is known are left out. What all entries of a column say of their number of cases
    is said once, above them.
    """
    headers, entries = dict(headers), dict(entries)
    for column in headers:
        own = {key: entry for key, entry in entries.items() if key[2] == column and not entry.failed}
        counts = {_count(entry) for entry in own.values()}
        if len(counts) == 1 and (count := counts.pop()):
            headers[column] += f"\n{count}"
            entries |= {key: _without(entry, count) for key, entry in own.items()}
    rows = []
    for down in sorted({down for _, down, _ in entries}, key=_order):  # what compares stands together
        for architecture in group.architectures:
            fields = [entries.get((architecture, down, key), Entry(NOTHING)) for key in headers]
            if any(field.text != NOTHING for field in fields):
                rows.append([Entry(architecture), *map(Entry, down), *fields])
    return table_of(["architecture", *found.names, *headers.values()], rows, caption)


def _count(entry: Entry) -> str:
    return next((line for line in entry.note.split(" · ") if line.startswith("n = ")), "")


def _without(entry: Entry, line: str) -> Entry:
    return Entry(entry.text, notes(*(part for part in entry.note.split(" · ") if part != line)))


def _order(down: tuple[str, ...]) -> list[tuple[float, str]]:
    """Numbers by size, words after them."""

    def place(text: str) -> tuple[float, str]:
        try:
            return float(text.replace(",", "")), ""
        except ValueError:
            return float("inf"), text

    return [place(text) for text in down]
