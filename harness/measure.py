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

from .execute import even_parts, execute, requests
from .journal import Batch, Journal
from .plan import Cell, Settings
from .pretrained import beyond, most_fed, within_window
from .retained import Retained
from .rows import (
    asked_rows,
    case_rows,
    cell_rows,
    cost_rows,
    model_rows,
    not_finite,
    retained_rows,
    with_evictions,
)
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
        journal: Journal | None = None,
    ) -> None:
        self.model, self.suite, self.cell, self.settings = model, suite, cell, settings
        self.repeat, self.base, self.on_phase, self.load_s = repeat, base, on_phase, load_s
        self.context_length = context_length  # what the checkpoint was trained for
        self.journal = journal  # where finished batches outlive this process
        self.rows: list[Row] = []
        self.evicted: list[int] = []
        self.retained: list[Retained] = []
        self.bases: list[Row] = []  # of every batch
        self.unsound: list[str] = []  # what speaks against answers that a driven suite was given

    def measure(self) -> list[Row]:
        """Run the cell; the warm-up gives no rows."""
        if self.suite.driven:
            results = self.suite.drive(self.cell.axes, self.run)
            base = self._of_all() if self.bases else self.base(self.cell)
            self.rows += cell_rows(base, results, "; ".join(dict.fromkeys(self.unsound)) or None)
        else:
            self.run(list(self.suite.cases(self.cell.axes)))
        if self.retained:
            self.rows += retained_rows(self._of_all(), self.retained)
        return [] if self.repeat == -1 else with_evictions(self.rows, self.evicted)

    def run(self, cases: Sequence[Case]) -> list[Answer]:
        """Execute cases in batches. A suite that drives gets its answers, in the order of the cases; those of
        others are not kept beyond their rows, and the list is empty.
        """
        self.prompt_mode = prompt_mode(self.model, self.settings, max(len(case.prompt) for case in cases))
        answers: dict[int, Answer] = {}
        for chosen in self._batches(cases):
            batch = self._batch([cases[index] for index in chosen])
            answers |= dict(zip(chosen, batch.answers, strict=self.suite.driven))
            self.bases.append(batch.base)
            self.rows += batch.rows
            self.evicted += batch.evicted
            self.retained += batch.retained
        given = [answers[index] for index in sorted(answers)]
        if self.suite.driven:
            self.unsound += filter(None, map(not_finite, cases, given))
        return given

    def _batches(self, cases: Sequence[Case]) -> list[list[int]]:
        """At most `settings.batch` requests each (latency suites: all at once), the longest first.

        Requests of like length stand together, so that little is padded; what does not fit is found at once.
        """
        if self.suite.interleaved:
            return [list(range(len(cases)))]
        members: dict[int, list[int]] = {}
        for index, request in enumerate(requests(cases)):
            members.setdefault(request, []).append(index)
        # By the prompt first: continuations are put together anew by their own lengths.
        groups = sorted(
            members.values(),
            key=lambda group: (-len(cases[group[0]].prompt), -max(cases[i].num_tokens for i in group)),
        )
        most = min(self.settings.batch, self.suite.most_together or self.settings.batch)
        return [[index for group in part for index in group] for part in even_parts(groups, most)]

    def _batch(self, cases: Sequence[Case]) -> Batch:
        """Execute one batch, or find it in the journal of an earlier session."""
        if self.journal and (found := self.journal.get(cases)):
            return found
        answers, readings = execute(
            self.model, cases, self.suite.context.tokenizer, self.settings.device,
            prefill_chunk=self.settings.prefill_chunk, graphs=self.settings.graphs, on_phase=self.on_phase,
        )  # fmt: skip
        base = self.base(
            self.cell,
            batch=len(readings.prompt_tokens),
            prompt_mode=self.prompt_mode,
            scoring_mode=readings.scoring_mode,
            implementation=self.model.implementation + (", CUDA graphs" if self.settings.graphs else ""),
            message=self._message(cases),
        )
        first = self.repeat in (None, 0)
        # Only a library that drives asks for answers again: those of whole books are tens of bytes a token.
        done = Batch(base, answers if self.suite.driven else [], readings.evicted)
        if first and not self.rows:
            done.rows += model_rows(base, self.model, self.load_s)
        done.rows += cost_rows(base, self.model, readings, self.repeat)
        if first:
            done.rows += asked_rows(base, cases, self.repeat)
            done.rows += case_rows(base, self.suite, cases, answers, readings)
            done.retained = readings.retained
        if self.journal:
            self.journal.put(cases, done)
        return done

    def _of_all(self) -> Row:
        """What the cell's numbers over all its batches have in common."""
        message = next((base.message for base in self.bases if base.message), None)
        batch = self.bases[0].batch if len(self.bases) == 1 else None
        return dataclasses.replace(self.bases[0], batch=batch, message=message)

    def _message(self, batch: Sequence[Case]) -> str | None:
        """What must be said with every number of these cases."""
        shape, options = getattr(self.model, "shape", None), getattr(self.model, "options", None)
        found = [getattr(self.model, "remark", None), beyond(most_fed(batch), self.context_length)]
        if self.settings.model is not None and shape is not None:
            found.append(within_window(shape, getattr(options, "budget", None)))
        return "; ".join(filter(None, found)) or None


def prompt_mode(model: Any, settings: Settings, longest: int) -> str:
    """How prompts of at most `longest` tokens met the policy; chunks change what a bulk policy does, so
    they are in the name where a prompt was cut into them."""
    chunk = settings.prefill_chunk
    cut = chunk is not None and longest > chunk
    return f"{model.prompt_mode}, chunks of {chunk}" if cut else model.prompt_mode
