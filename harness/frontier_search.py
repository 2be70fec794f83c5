"""The search for the largest context, probe by probe; every probe is an ordinary cell of the decode suite.

    plan      decode:new_tokens=8 over architectures x batches; the contexts are found, not planned
    probe     cells/KEY.parquet: one context, measured by a fresh worker like any cell; out of memory is a row
    result    cells/KEY.parquet per architecture x batch: rows `frontier_*`, with axes {"batch": N}

A probe's key hashes that of its planned cell and the context, so a finished probe is never repeated: the
same command goes on where it was interrupted, and a larger --max-context starts from what is known.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .frontier import most_fitting, next_context
from .frontier_memory import Memory
from .frontier_rows import ANSWERS, Probe, read_probe, result_rows
from .metrics import format_count
from .plan import Cell, digest
from .predicted import predictor
from .rows import base_row
from .runner import Prepared, finished
from .runner import run as run_plan
from .store import write_rows

#: Decode steps after each prompt: what fits a prompt and no answer does not fit.
NEW_TOKENS = 8


@dataclass
class Search:
    """One search: architectures x batches of `prepared`, up to `ceiling` tokens, in the folder `out`."""

    prepared: Prepared
    out: Path
    memory: Callable[[], Memory]  # asked once there is something to probe
    ceiling: int
    on_probe: Callable[[Cell, Probe], None] = lambda cell, probe: None
    probes: list[Cell] = field(default_factory=list)
    outcomes: dict[str, Probe] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Search all; returns what crashed or timed out, one sentence each. `rows.parquet` is there then.

        Raises UsageError (the folder holds another plan, or is in use), EnvironmentRefuses,
        KeyboardInterrupt.
        """
        planned: dict[tuple[str, int], Cell] = {}
        for cell in self.prepared.cells:  # of the suite's own contexts one is enough to name a search
            planned.setdefault((cell.architecture, cell.axes["batch"]), cell)
        self.remember(planned)
        results, stopped = [], []
        for cell in planned.values():
            batch = {"batch": cell.axes["batch"]}
            key = digest("frontier", cell.key, "up to", self.ceiling)
            result = dataclasses.replace(cell, key=key, axes=batch)
            results.append(result)
            if reason := self.one(cell, result):
                stopped.append(f"{cell.architecture}, batch {cell.axes['batch']}: {reason}")
        self.measure([*results, *self.probes])
        return stopped

    def remember(self, planned: dict[tuple[str, int], Cell]) -> None:
        """Finished probes of an earlier session with the same keys."""
        path = self.out / "run.json"
        if not path.exists():
            return
        try:
            known = [Cell(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        except (OSError, ValueError, KeyError, TypeError):
            return  # not a manifest of ours: the first probe says so
        for cell in known:
            base = planned.get((cell.architecture, cell.axes.get("batch")))
            if base and "context" in cell.axes and cell.key == _key(base, cell.axes["context"]):
                self.probes.append(cell)
        done = finished(self.out, [cell.key for cell in self.probes])
        self.probes = [cell for cell in self.probes if cell.key in done]
        self.outcomes = {cell.key: read_probe(self.out, cell) for cell in self.probes}

    def one(self, planned: Cell, result: Cell) -> str | None:
        """Search for one architecture and batch, and write its result; returns why it ended early, if so."""
        if finished(self.out, [result.key]) and self.next(planned, self.ceiling) is None:
            return self.stopped(planned)
        batch, weights = planned.axes["batch"], self.prepared.weights[planned.architecture]
        memory, chosen = self.memory(), self.prepared.plan.settings
        predict = predictor(planned.architecture, weights.shape, chosen, batch, NEW_TOKENS, memory.held_bytes)
        predicted = most_fitting(memory.limit_bytes, predict, self.ceiling)
        guess = self.ceiling if predicted is None else predicted
        while (context := self.next(planned, guess)) is not None:
            axes = {"context": context, "batch": batch}
            cell = dataclasses.replace(planned, key=_key(planned, context), axes=axes)
            self.measure([*self.probes, cell])
            self.probes.append(cell)
            self.outcomes[cell.key] = read_probe(self.out, cell)
            self.on_probe(cell, self.outcomes[cell.key])
        reason = self.stopped(planned)
        base = base_row(
            self.out.name, result, chosen, machine=self.prepared.machine["id"], weights=weights.label,
            text=None, batch=batch, phase="frontier",
        )  # fmt: skip
        rows = result_rows(
            base, self.tried(planned), predicted, predict, memory.limit_bytes, self.ceiling, reason
        )
        write_rows(self.out / "cells" / f"{result.key}.parquet", rows)
        return reason

    def next(self, planned: Cell, guess: int) -> int | None:
        """The context to probe next; None: the answer is known, or a crash has ended the search."""
        fits = {context: found.status == "ok" for context, found in self.tried(planned).items()}
        return None if self.stopped(planned) else next_context(fits, guess, self.ceiling)

    def stopped(self, planned: Cell) -> str | None:
        """What ended a search that says nothing about memory."""
        for context, found in self.tried(planned).items():
            if found.status not in ANSWERS:
                return f"{found.told()} at {format_count(context)} tokens"
        return None

    def tried(self, planned: Cell) -> dict[int, Probe]:
        """Outcomes by context, ascending, of the probes within the ceiling."""
        mine = (planned.architecture, planned.axes["batch"])
        found = {
            cell.axes["context"]: self.outcomes[cell.key]
            for cell in self.probes
            if (cell.architecture, cell.axes["batch"]) == mine and cell.axes["context"] <= self.ceiling
        }
        return dict(sorted(found.items()))

    def measure(self, cells: list[Cell]) -> None:
        """Whatever of these has no rows yet; the folder's tables hold all of them afterwards."""
        run_plan(dataclasses.replace(self.prepared, cells=cells), self.out, ceilings=False)


def _key(planned: Cell, context: int) -> str:
    return digest("frontier", planned.key, context)
