"""What a terminal or a README shows of a run: its verdicts, and the tables of tasks, as plain strings."""

from __future__ import annotations

from dataclasses import dataclass, field

from .budgets import absent_alerts, near, said
from .groups import AXIS_NAMES, Group, groups
from .html import Table, printable
from .lm_eval import lm_eval_suites, lm_eval_table
from .load import Run
from .remarks import alerts, weight_notes
from .scrolls import scrolls_suites, scrolls_tables
from .tasks import task_tables
from .verdict import headline


@dataclass(frozen=True)
class Summary:
    """A table as plain strings, for a terminal; `notes` belong below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def summary(run: Run) -> list[Summary]:
    """The verdicts of a run, one per axis (trained and random weights never share a table), each followed by
    the scores of its tasks. Warnings stand below the first table, remarks on weights below the last."""
    found = []
    for whole in groups(run):
        group = near(whole)
        tables = [table for table in [headline(group)] if len(table.columns) > 2] + _tasks(group)
        for number, table in enumerate(tables):
            notes = [*table.notes]
            notes += [*alerts(whole), *absent_alerts(whole), said(whole)] if number == 0 else []
            notes += weight_notes(group) if number == len(tables) - 1 else []
            found.append(_summary(group, table, list(filter(None, notes))))
    return found


def _tasks(group: Group) -> list[Table]:
    tables = [table for suite in scrolls_suites(group) for table in scrolls_tables(group, suite)]
    tables += [lm_eval_table(group, suite) for suite in lm_eval_suites(group)]
    return [table for table in [*tables, *task_tables(group)] if table.rows]


def _summary(group: Group, table: Table, notes: list[str]) -> Summary:
    title = f"{group.run.name}, {AXIS_NAMES.get(group.axis, group.axis)}. {table.caption}"
    rows = [[printable(entry.plain) for entry in row] for row in table.rows]
    return Summary(printable(title), [*map(printable, table.columns)], rows, [*map(printable, notes)])
