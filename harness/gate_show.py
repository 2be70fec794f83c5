"""What the terminal shows of a gate at work, and of a calibration."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from .comparison import Calibration
from .comparison.calibration import Noise
from .metrics import metric
from .show import console
from .sides import Side


class Turns:
    """A live bar in a terminal; elsewhere one line per turn and per failed cell."""

    def __init__(self) -> None:
        self.start, self.last = time.monotonic(), ""
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("preparing", total=None)

    def __enter__(self) -> Turns:
        self.bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def expect(self, sides: tuple[Side, Side], replicates: int) -> None:
        """The cells of the first set; a second one makes the bar longer."""
        cells = [(side, cell) for side in sides for cell in side.cells if cell.replicate < replicates]
        done = sum((side.folder / "cells" / f"{cell.key}.parquet").exists() for side, cell in cells)
        self.bar.update(self.task, total=len(cells), completed=done)
        before = f"; {done} were measured before, with another --out they are anew" if done else ""
        console.print(f"{len(cells)} cells, in turns, in {sides[0].folder.parent}{before}", markup=False)

    def hear(self, side: Side, event: dict[str, Any]) -> None:
        if event["event"] == "sampler":
            console.print(f"{side.name}: no time series of a job: {event['note']}", markup=False)
            return
        cell = next(cell for cell in side.cells if cell.key == event["cell"])
        turn = f"{side.name} {cell.replicate} · {cell.suite.partition(':')[0]} {cell.process or ''}".rstrip()
        task = self.bar.tasks[0]
        if task.total is not None and task.completed >= task.total:
            self.bar.update(self.task, total=task.completed + 1)
        self.bar.update(self.task, advance=1, description=turn)
        if turn != self.last and not console.is_terminal:
            console.print(f"{time.monotonic() - self.start:6.1f} s  {turn}", markup=False)
        self.last = turn
        if event["status"] != "ok":
            told = f"{event['status']} in {side.name}: {cell.architecture} · {cell.suite} {cell.axes}"
            console.print(f"{told}: {event['message']}", markup=False)


def noise_table(found: Calibration, threshold: float) -> None:
    """The noise of every point, and in one line per latency what that means for a gate."""
    table = Table("latency", "architecture", "cell", "noise", "processes per side")
    for entry in found.entries:
        place = ", ".join(f"{name} {value}" for name, value in json.loads(entry.axes).items())
        where = f"{entry.suite.partition(':')[0]} {place}"
        row = (
            metric(entry.metric).label,
            entry.architecture,
            where,
            f"{entry.noise:.1%}",
            str(entry.processes),
        )
        table.add_row(*row)
    console.print(table)
    for name in dict.fromkeys(entry.metric for entry in found.entries):
        console.print(_in_short([entry for entry in found.entries if entry.metric == name], threshold))


def _in_short(entries: list[Noise], threshold: float) -> str:
    noise = [entry.noise for entry in entries]
    above = sum(value > threshold for value in noise)
    return (
        f"{metric(entries[0].metric).label}: noise {statistics.median(noise):.1%} in the median, at most "
        f"{max(noise):.1%}; at {above} of {len(noise)} points it is above the threshold of {threshold:.0%} "
        "and takes its place."
    )
