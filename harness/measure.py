"""One execution of one cell: its cases go through the loop in batches, and rows come out.

A suite either lists its cases and scores the answers, or is *driven* by another library that calls
back with cases of its own (`Suite.drive`). Both end in `Measurement.run`, so the cost, the evictions
and the statistics of either are recorded by the same lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from suites.suite import Answer, Case, Suite

from .execute import execute
from .plan import Cell, Settings
from .pretrained import beyond, most_fed, within_window
from .retained import Retained
from .rows import case_rows, cell_rows, cost_rows, model_rows, retained_rows, with_evictions
from .store import Row


class Measurement:
    """Collects the rows of one execution. `repeat`: -1 warm-up, None neither warmed nor repeated."""

    def __init__(
        self,
        model: Any,
        suite: Suite,
        cell: Cell,
        settings: Settings,
        repeat: int | None,
        base: Callable[..., Row],
        on_phase: Callable[[str], None],
        load_s: float | None = None,
        context_length: int | None = None,
    ) -> None:
        self.model, self.suite, self.cell, self.settings = model, suite, cell, settings
        self.repeat, self.base, self.on_phase, self.load_s = repeat, base, on_phase, load_s
        self.context_length = context_length  # what the checkpoint was trained for
        self.rows: list[Row] = []
        self.evicted: list[int] = []
        self.retained: list[Retained] = []
        self.retained_base: Row | None = None  # of all batches of the cell

    def measure(self) -> list[Row]:
        """Run the cell; the warm-up gives no rows."""
        if self.suite.driven:
            results = self.suite.drive(self.cell.axes, self.run)
            self.rows += cell_rows(self.base(self.cell), results)
        else:
            self.run(list(self.suite.cases(self.cell.axes)))
        if self.retained and self.retained_base is not None:
            self.rows += retained_rows(self.retained_base, self.retained)
        return [] if self.repeat == -1 else with_evictions(self.rows, self.evicted)

    def run(self, cases: Sequence[Case]) -> list[Answer]:
        """Execute cases in batches of at most `settings.batch` (latency suites: all at once)."""
        self.prompt_mode = prompt_mode(self.model, self.settings, max(len(case.prompt) for case in cases))
        size = len(cases) if self.suite.interleaved else self.settings.batch
        answers: list[Answer] = []
        for start in range(0, len(cases), size):
            answers += self._batch(cases[start : start + size])
        return answers

    def _batch(self, batch: Sequence[Case]) -> list[Answer]:
        answers, readings = execute(
            self.model, batch, self.suite.context.tokenizer, self.settings.device,
            prefill_chunk=self.settings.prefill_chunk, on_phase=self.on_phase,
        )  # fmt: skip
        base = self.base(
            self.cell,
            batch=len(batch),
            prompt_mode=self.prompt_mode,
            scoring_mode=readings.scoring_mode,
            implementation=self.model.implementation,
            message=self._message(batch),
        )
        first = self.repeat in (None, 0)
        if first and not self.rows:
            self.rows += model_rows(base, self.model, self.load_s)
        self.rows += cost_rows(base, self.model, readings, self.repeat)
        if first:
            self.rows += case_rows(base, self.suite, batch, answers, readings)
            self.retained += readings.retained
            self.retained_base = base if self.retained_base is None else self._shared(base)
        self.evicted += readings.evicted
        return answers

    def _message(self, batch: Sequence[Case]) -> str | None:
        """What must be said with every number of these cases."""
        shape, options = getattr(self.model, "shape", None), getattr(self.model, "options", None)
        found = [beyond(most_fed(batch), self.context_length)]
        if self.settings.model is not None and shape is not None:
            found.append(within_window(shape, getattr(options, "budget", None)))
        return "; ".join(filter(None, found)) or None

    def _shared(self, base: Row) -> Row:
        """What the cell's numbers over several batches have in common."""
        assert self.retained_base is not None
        message = self.retained_base.message or base.message
        return dataclasses.replace(self.retained_base, batch=None, message=message)


def prompt_mode(model: Any, settings: Settings, longest: int) -> str:
    """How prompts of at most `longest` tokens met the policy; chunks change what a bulk policy does, so
    they are in the name where a prompt was cut into them."""
    chunk = settings.prefill_chunk
    cut = chunk is not None and longest > chunk
    return f"{model.prompt_mode}, chunks of {chunk}" if cut else model.prompt_mode
