"""What the terminal shows: the plan's jobs, progress while running, the verdict at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from .metrics import NOTHING, format_bytes
from .plan import Job
from .predicted import beyond
from .runner import Prepared

#: Wide enough for the verdict where output goes to a file.
console = Console(width=None if Console().is_terminal else 160)


def plan_table(prepared: Prepared, predict: Callable[[Job], tuple[int, int] | None]) -> None:
    """Jobs in the order in which they would run.

    `predict` gives the bytes of all weights that a job's process holds together and of its largest
    cache, or None where nobody can say.
    """
    jobs = prepared.jobs(set())
    table = Table("job", "suite", "architectures", "cells", "weights, predicted", "largest cache, predicted")
    for job in jobs:
        cells = [cell for group in job.groups for cell in group]
        sizes = predict(job)
        specs = list(dict.fromkeys(cell.architecture for cell in cells))
        table.add_row(
            job.id,
            cells[0].suite,
            "\n".join(specs),
            str(len(cells)),
            *((NOTHING, NOTHING) if sizes is None else map(format_bytes, sizes)),
        )
    console.print(table)
    text = prepared.text.label if prepared.text else "none needed"
    console.print(f"{len(jobs)} jobs, {len(prepared.cells)} cells; text: {text}")
    limit = prepared.plan.device_memory_bytes
    if limit is None:
        return
    there = f"the {limit / 1e9:g} GB that this plan is meant for"
    missed = list(beyond(prepared, limit))
    for cell, size in missed:
        place = ", ".join(f"{name} {value:,}" for name, value in cell.axes.items())
        console.print(
            f"Predicted not to fit into {there}: {cell.architecture}, {place} ({size / 1e9:.1f} GB)",
            markup=False,
        )
    if not missed:
        console.print(f"Predicted to fit into {there}: every latency cell", markup=False)


class Progress:
    """A live bar in a terminal; elsewhere one line per job and per failed cell."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.cells = {cell.key: cell for cell in prepared.cells}
        self.start = time.monotonic()
        self.done = 0
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        self.bar.__enter__()
        self.task = self.bar.add_task("preparing", total=len(self.cells))
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def hear(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "resume":
            self.done = event["done"]
            self.bar.update(self.task, completed=self.done)
            if self.done:
                console.print(f"{self.done} of {event['cells']} cells were measured before.")
            if event["others"]:
                console.print(
                    f"{event['others']} cells here were measured with another checkpoint, text, package, "
                    "source or machine: they stay in cells/, and rows.parquet leaves them out."
                )
        elif kind == "start":
            cell = self.cells[event["cell"]]
            axes = " ".join(f"{k}={v}" for k, v in cell.axes.items())
            self.bar.update(self.task, description=f"{cell.architecture} · {cell.suite.split(':')[0]} {axes}")
        elif kind == "job" and not console.is_terminal:
            elapsed_s = time.monotonic() - self.start
            console.print(f"{elapsed_s:6.1f} s  {self.done}/{len(self.cells)} cells; {event['suite']}")
        elif kind == "sampler":
            console.print(f"no time series of a job: {event['note']}", markup=False)
        elif kind == "settled":
            self.done += 1
            self.bar.update(self.task, completed=self.done)
            if event["status"] != "ok":
                cell = self.cells[event["cell"]]
                console.print(
                    f"{event['status']}: {cell.architecture} · {cell.suite} {cell.axes}: {event['message']}",
                    markup=False,
                )


def summary_table(folder: Path) -> None:
    """The report's verdict as a table in the terminal, with what must be said below it."""
    from .report import load_run, summary

    for section in summary(load_run(folder)):
        table = Table(*section.columns, title=section.title)
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        for note in section.notes:
            console.print(note, markup=False, highlight=False)
