"""Keep one job going: start workers, listen, enforce time limits, turn deaths into rows.

The parent blocks in `select`; it never spins while something is being measured. Whatever happens to
a worker, the cell in flight gets its row and a fresh worker goes on with the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import ROOT
from .events import Event, NoEvent, Reader
from .machine_limits import oom_kills, signal_name
from .plan import Cell, Job, Settings
from .rows import base_row, failure_row
from .sampler import Sampler
from .series import Series
from .store import LONGEST_MESSAGE, outcome, write_rows
from .sweep import left_out
from .worker import (
    CONTRACT_VERSION,
    EXIT_CANNOT_WRITE,
    EXIT_CELL_FAILED,
    EXIT_ENVIRONMENT,
    EXIT_NO_TURNS,
)

#: Seconds that a worker may take to import torch and read the text, whatever `timeout_s` says.
STARTUP_S = 300.0
#: Seconds between looks at a silent worker: what it started may hold the pipe open when it is dead.
LOOK_S = 2.0


class EnvironmentRefuses(Exception):
    """This machine cannot run the job (no such device, results cannot be written); one sentence."""


@dataclass
class Supervisor:
    """Runs jobs of one run, one worker at a time. `common` is what every job file holds."""

    out: Path
    settings: Settings
    common: dict[str, Any]
    on_event: Callable[[Event], None] = lambda event: None
    statuses: dict[str, str] = field(default_factory=dict)  # cell key -> status of this session
    before: dict[str, int] = field(default_factory=dict)  # cell key -> when a file to be replaced was written

    def run(self, job: Job) -> None:
        """Measure all cells of a job. Raises EnvironmentRefuses, KeyboardInterrupt."""
        groups = [list(group) for group in job.groups]
        keys = [cell.key for group in groups for cell in group]
        self.before |= {key: written for key in keys if (written := self._written(key)) is not None}
        series = Series(self.out / "telemetry", job.id)
        attempt = 0
        try:
            while groups:
                before = sum(map(len, groups))
                flying = self._one_worker(job, groups, attempt, series)
                attempt += 1
                for cell, message in list(left_out([c for group in groups for c in group], self.statuses)):
                    self.record_failure(cell, "oom", message, None)
                groups = [
                    left for group in groups if (left := [c for c in group if c.key not in self.statuses])
                ]
                if flying is None and sum(map(len, groups)) == before:
                    raise EnvironmentRefuses("A worker ended without measuring anything.")
        finally:
            series.merge({*self.statuses, *keys})

    def _written(self, key: str) -> int | None:
        try:
            return (self.out / "cells" / f"{key}.parquet").stat().st_mtime_ns
        except OSError:
            return None

    def settle_unsaid(self, key: str) -> None:
        """A cell whose worker wrote its file and died before it could say so is finished all the same."""
        if key not in self.statuses and self._written(key) not in (None, self.before.get(key)):
            found = outcome(self.out / "cells" / f"{key}.parquet")
            if found is not None:
                if found[0] == "ok":  # as its worker would have done next
                    (self.out / "unfinished" / f"{key}.jsonl").unlink(missing_ok=True)
                self.settle(key, *found)

    def _one_worker(self, job: Job, groups: list[list[Cell]], attempt: int, series: Series) -> str | None:
        """Start a worker and listen until it ends; returns the key of a cell that failed, if any."""
        path = self.out / "jobs" / f"{job.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.common | {
            "version": CONTRACT_VERSION,
            "parent_pid": os.getpid(),
            "groups": [[vars(cell) for cell in group] for group in groups],
        }
        path.write_text(json.dumps(content), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(self.settings.threads),
        }
        errors = (self.out / "jobs" / f"{job.id}.stderr").open("w+", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            # -P: a folder called `models` (or another checkout) in the working directory is not ours.
            [sys.executable, "-P", "-m", "harness.worker", str(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment,
            start_new_session=True,
        )  # fmt: skip
        sampler = Sampler(series.sample(attempt), device=self.settings.device)
        try:
            sampler.start(process.pid)
            listener = _Listener(self, process, series, {c.key: c for g in groups for c in g})
            return listener.listen(errors)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # whatever it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.close()
            sampler.stop()
            if sampler.note is not None:
                series.note = sampler.note
                self.on_event({"event": "sampler", "note": sampler.note})
            errors.close()

    def record_failure(self, cell: Cell, status: str, message: str, phase: str | None) -> None:
        """Write the row of a cell whose worker could not."""
        base = base_row(
            self.common["run"], cell, self.settings,
            machine=self.common["machine"], text=self.common["sources"].get(cell.suite),
            weights=self.common["weights"].get(cell.architecture),
        )  # fmt: skip
        row = failure_row(base, status, message, phase)
        write_rows(self.out / "cells" / f"{cell.key}.parquet", [row])
        self.settle(cell.key, status, message)

    def settle(self, key: str, status: str, message: str | None = None) -> None:
        self.statuses[key] = status
        self.on_event({"event": "settled", "cell": key, "status": status, "message": message})


class _Listener:
    """Reads one worker's events and knows which cell is in flight since when (None: none yet, or done)."""

    def __init__(
        self, supervisor: Supervisor, process: subprocess.Popen, marks: Any, cells: dict[str, Cell]
    ) -> None:
        self.supervisor, self.process, self.marks, self.cells = supervisor, process, marks, cells
        self.flying: str | None = None
        self.oom_kills_before = oom_kills()
        self.phase: str | None = "load"
        self._allow(max(STARTUP_S, supervisor.settings.timeout_s))

    def listen(self, errors: Any) -> str | None:
        """Until the worker ends; returns the cell that was in flight last. `errors` is its stderr's file."""
        stream, reader = self.process.stdout, Reader(self.cells)
        assert stream is not None
        while True:
            left_s = max(self.deadline - time.monotonic(), 0)
            readable, _, _ = select.select([stream], [], [], min(left_s, LOOK_S))
            if readable:
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    break
                try:
                    for event in reader.feed(data):
                        self._hear(event)
                except NoEvent as fault:
                    self._end()
                    return self._blame("crash", str(fault))
            elif self.process.poll() is not None:
                break
            elif time.monotonic() >= self.deadline:
                return self._timed_out()
        try:
            code = self.process.wait(max(self.deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:  # it closed the pipe and stays
            return self._timed_out()
        self._settle_unsaid()
        unsettled = [key for key in self.cells if key not in self.supervisor.statuses]
        if not unsettled or (code == EXIT_CELL_FAILED and self.flying in self.supervisor.statuses):
            return self.flying
        words = _last_lines(errors)
        if code in (EXIT_CANNOT_WRITE, EXIT_ENVIRONMENT, EXIT_NO_TURNS):
            sentence = words[-1] if words else "the worker gave no reason."
            raise EnvironmentRefuses(sentence[:1].upper() + sentence[1:])
        return self._died(code, words)

    def _allow(self, seconds: float) -> None:
        self.limit_s, self.deadline = seconds, time.monotonic() + seconds

    def _hear(self, event: Event) -> None:
        if event["event"] == "start":
            # The time limit is per execution of a cell, so each repeat starts it anew.
            self.flying, self.phase = event["cell"], "load"
            self._allow(self.supervisor.settings.timeout_s)
        elif event["event"] == "phase":
            self.flying, self.phase = event["cell"], event["phase"]
            if self.phase == "allocate":  # so does each of its batches
                self._allow(self.supervisor.settings.timeout_s)
            self.marks.append({k: event[k] for k in ("t_s", "cell", "phase", "architecture")})
        elif event["event"] == "wait":
            self._allow(math.inf)  # others measure meanwhile, each within its own limit
        elif event["event"] == "done":
            self.flying = self.flying or event["cell"]
            self.supervisor.settle(event["cell"], "ok")
            self._allow(self.supervisor.settings.timeout_s)
        elif event["event"] == "failed":
            self.flying = event["cell"]  # a row may fail to be written after its partner was in flight
            self.supervisor.settle(event["cell"], event["status"], event["message"])
        self.supervisor.on_event(event)

    def _end(self) -> None:
        """Kill the worker, and wait: what it is just writing appears, or never will."""
        self.process.kill()
        self.process.wait()

    def _timed_out(self) -> str | None:
        self._end()
        if self.flying is None:
            return self._blame("timeout", f"it did not begin within {self.limit_s:g} s")
        return self._blame("timeout", f"no result within {self.limit_s:g} s (--timeout-s)")

    def _died(self, code: int, words: list[str]) -> str | None:
        if code < 0:
            name = signal_name(-code)
            if -code == signal.SIGKILL and (oom_kills() or 0) > (self.oom_kills_before or 0):
                return self._blame("oom", f"the system ran out of memory and ended a process by {name}")
            return self._blame("crash", f"the worker was ended by {name}")
        last = words[-1] if words else "no message"
        return self._blame("crash", f"the worker ended with exit code {code}: {last}")

    def _settle_unsaid(self) -> None:
        for key in self.cells:
            self.supervisor.settle_unsaid(key)

    def _blame(self, status: str, message: str) -> str | None:
        """The cell in flight takes the blame; between two cells nobody does, and a fresh worker goes on.

        Raises EnvironmentRefuses if no cell was ever begun: that is no cell's fault.
        """
        self._settle_unsaid()
        if self.flying is None and not self.supervisor.statuses.keys() & self.cells.keys():
            raise EnvironmentRefuses(f"A worker ended before it measured anything ({message}).")
        if self.flying is not None and self.flying not in self.supervisor.statuses:
            self.supervisor.record_failure(self.cells[self.flying], status, message, self.phase)
        return self.flying


def _last_lines(errors: Any) -> list[str]:
    """The end of what was written to a file, each line cut where it is longer than a row's message."""
    raw = errors.buffer
    raw.seek(0, os.SEEK_END)
    raw.seek(max(raw.tell() - (1 << 16), 0))
    lines = raw.read().decode(errors="replace").strip().splitlines()
    return [line[:LONGEST_MESSAGE] for line in lines]
