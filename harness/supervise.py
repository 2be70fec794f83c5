"""Keep one job going: start workers, listen, enforce time limits, turn deaths into rows.

The parent blocks in `select`; it never spins while something is being measured. Whatever happens to
a worker, the cell in flight gets its row and a fresh worker goes on with the rest.
"""

from __future__ import annotations

import json
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
from .machine_limits import oom_kills
from .plan import Cell, Job, Settings
from .rows import base_row, failure_row
from .sampler import Sampler, write_telemetry
from .store import StoreError, read_table, write_rows
from .worker import CONTRACT_VERSION, EXIT_CANNOT_WRITE, EXIT_CELL_FAILED, EXIT_ENVIRONMENT

Event = dict[str, Any]

#: Seconds that a worker may take to import torch and read the text, whatever `timeout_s` says.
STARTUP_S = 300.0


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

    def run(self, job: Job) -> None:
        """Measure all cells of a job. Raises EnvironmentRefuses, KeyboardInterrupt."""
        groups = [list(group) for group in job.groups]
        marks: list[Event] = []
        attempt = 0
        telemetry = self.out / "telemetry" / f"{job.id}.parquet"
        earlier = self._earlier(telemetry, job)
        try:
            while groups:
                before = sum(map(len, groups))
                sample = telemetry.with_name(f".{job.id}-{attempt}.parquet")
                flying = self._one_worker(job, groups, sample, marks)
                attempt += 1
                groups = [
                    left for group in groups if (left := [c for c in group if c.key not in self.statuses])
                ]
                if flying is None and sum(map(len, groups)) == before:
                    raise EnvironmentRefuses("A worker ended without measuring anything.")
        finally:
            samples = sorted(telemetry.parent.glob(f".{job.id}-*.parquet"))
            if samples or marks:
                write_telemetry(telemetry, job.id, [*earlier, *samples], marks)
            for sample in samples:
                sample.unlink(missing_ok=True)

    def _earlier(self, telemetry: Path, job: Job) -> list[Path]:
        """What an interrupted session left of this job, unless it speaks of cells that no longer count."""
        try:
            told = set(read_table(telemetry).column("cell").drop_null().to_pylist())
        except StoreError:
            return []
        return [telemetry] if told <= {*self.statuses, *(c.key for g in job.groups for c in g)} else []

    def _one_worker(self, job: Job, groups: list[list[Cell]], sample: Path, marks: list[Event]) -> str | None:
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
        sampler = Sampler(sample, device=self.settings.device)
        try:
            sampler.start(process.pid)
            listener = _Listener(self, process, marks, {c.key: c for g in groups for c in g})
            return listener.listen(errors)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            sampler.stop()
            if sampler.note is not None:
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
        self, supervisor: Supervisor, process: subprocess.Popen, marks: list[Event], cells: dict[str, Cell]
    ) -> None:
        self.supervisor, self.process, self.marks, self.cells = supervisor, process, marks, cells
        self.flying: str | None = None
        self.oom_kills_before = oom_kills()
        self.phase: str | None = "load"
        self.deadline = time.monotonic() + max(STARTUP_S, supervisor.settings.timeout_s)

    def listen(self, errors: Any) -> str | None:
        stream, buffer = self.process.stdout, b""
        assert stream is not None
        while True:
            readable, _, _ = select.select([stream], [], [], max(self.deadline - time.monotonic(), 0))
            if not readable:
                return self._timed_out()
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        code = self.process.wait()
        unsettled = [key for key in self.cells if key not in self.supervisor.statuses]
        if not unsettled or (code == EXIT_CELL_FAILED and self.flying in self.supervisor.statuses):
            return self.flying
        errors.seek(0)
        words = errors.read().strip().splitlines()
        if code in (EXIT_CANNOT_WRITE, EXIT_ENVIRONMENT):
            sentence = words[-1] if words else "the worker gave no reason."
            raise EnvironmentRefuses(sentence[:1].upper() + sentence[1:])
        return self._died(code, words)

    def _hear(self, event: Event) -> None:
        if event["event"] == "start":
            # The time limit is per execution of a cell, so each repeat starts it anew.
            self.flying, self.phase = event["cell"], "load"
            self.deadline = time.monotonic() + self.supervisor.settings.timeout_s
        elif event["event"] == "phase":
            self.phase = event["phase"]
            if self.phase == "allocate":  # so does each of its batches
                self.deadline = time.monotonic() + self.supervisor.settings.timeout_s
            self.marks.append({k: event[k] for k in ("t_s", "cell", "phase", "architecture")})
        elif event["event"] == "done":
            self.flying = self.flying or event["cell"]
            self.supervisor.settle(event["cell"], "ok")
            self.deadline = time.monotonic() + self.supervisor.settings.timeout_s
        elif event["event"] == "failed":
            self.flying = event["cell"]  # a row may fail to be written after its partner was in flight
            self.supervisor.settle(event["cell"], event["status"], event["message"])
        self.supervisor.on_event(event)

    def _timed_out(self) -> str | None:
        self.process.kill()
        limit = self.supervisor.settings.timeout_s
        return self._blame("timeout", f"no result within {limit:g} s (--timeout-s)")

    def _died(self, code: int, words: list[str]) -> str | None:
        if code < 0:
            name = signal.Signals(-code).name
            if -code == signal.SIGKILL and (oom_kills() or 0) > (self.oom_kills_before or 0):
                return self._blame("oom", f"the system ran out of memory and ended a process by {name}")
            return self._blame("crash", f"the worker was ended by {name}")
        last = words[-1] if words else "no message"
        return self._blame("crash", f"the worker ended with exit code {code}: {last}")

    def _blame(self, status: str, message: str) -> str | None:
        """The cell in flight takes the blame; between two cells nobody does, and a fresh worker goes on.

        Raises EnvironmentRefuses if no cell was ever begun: that is no cell's fault.
        """
        if self.flying is None:
            raise EnvironmentRefuses(f"A worker ended before it measured anything ({message}).")
        if self.flying not in self.supervisor.statuses:
            self.supervisor.record_failure(self.cells[self.flying], status, message, self.phase)
        return self.flying
