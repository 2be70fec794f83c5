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
from .plan import Cell, Job, Settings
from .rows import base_row, failure_row
from .sampler import Sampler, write_telemetry
from .store import write_rows
from .worker import CONTRACT_VERSION, EXIT_CANNOT_WRITE, EXIT_CELL_FAILED, EXIT_ENVIRONMENT

Event = dict[str, Any]


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
        samples: list[Path] = []
        marks: list[Event] = []
        attempt = 0
        try:
            while groups:
                before = sum(map(len, groups))
                sample = self.out / "telemetry" / f".{job.id}-{attempt}.parquet"
                flying = self._one_worker(job, groups, sample, marks)
                samples += [sample] if sample.exists() else []
                attempt += 1
                groups = [
                    left for group in groups if (left := [c for c in group if c.key not in self.statuses])
                ]
                if flying is None and sum(map(len, groups)) == before:
                    raise EnvironmentRefuses("A worker ended without measuring anything.")
        finally:
            if samples or marks:
                write_telemetry(self.out / "telemetry" / f"{job.id}.parquet", job.id, samples, marks)
            for sample in samples:
                sample.unlink(missing_ok=True)

    def _one_worker(
        self, job: Job, groups: list[list[Cell]], sample: Path, marks: list[Event]
    ) -> str | None:
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
            [sys.executable, "-m", "harness.worker", str(path)],
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
            sampler.stop()
            errors.close()

    def record_failure(self, cell: Cell, status: str, message: str, phase: str | None) -> None:
        """Write the row of a cell whose worker could not."""
        base = base_row(
            self.common["run"], cell, self.settings, machine=self.common["machine"],
            text=self.common["text_label"], weights=self.common["weights"].get(cell.architecture),
        )  # fmt: skip
        row = failure_row(base, status, message, phase)
        write_rows(self.out / "cells" / f"{cell.key}.parquet", [row])
        self.settle(cell.key, status, message)

    def settle(self, key: str, status: str, message: str | None = None) -> None:
        self.statuses[key] = status
        self.on_event({"event": "settled", "cell": key, "status": status, "message": message})


class _Listener:
    """Reads one worker's events and knows which cell is in flight since when."""

    def __init__(
        self, supervisor: Supervisor, process: subprocess.Popen, marks: list[Event], cells: dict[str, Cell]
    ) -> None:
        self.supervisor, self.process, self.marks, self.cells = supervisor, process, marks, cells
        self.flying: str | None = None
        self.phase: str | None = "load"
        self.since = time.monotonic()

    def listen(self, errors: Any) -> str | None:
        stream, buffer = self.process.stdout, b""
        assert stream is not None
        while True:
            left = self.since + self.supervisor.settings.timeout_s - time.monotonic()
            readable, _, _ = select.select([stream], [], [], max(left, 0))
            if not readable:
                return self._timed_out()
            data = os.read(stream.fileno(), 1 << 16)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        code = self.process.wait()
        if code == 0 or code == EXIT_CELL_FAILED:
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
            self.flying, self.phase, self.since = event["cell"], "load", time.monotonic()
        elif event["event"] == "phase":
            self.phase = event["phase"]
            self.marks.append({k: event[k] for k in ("t_s", "cell", "phase", "architecture")})
        elif event["event"] == "done":
            self.supervisor.settle(event["cell"], "ok")
            self.since = time.monotonic()
        elif event["event"] == "failed":
            self.supervisor.settle(event["cell"], event["status"], event["message"])
        self.supervisor.on_event(event)

    def _timed_out(self) -> str:
        self.process.kill()
        limit = self.supervisor.settings.timeout_s
        return self._blame("timeout", f"no result within {limit:g} s")

    def _died(self, code: int, words: list[str]) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
            return self._blame("crash", f"the worker was ended by {name}{hint}")
        last = words[-1] if words else "no message"
        return self._blame("crash", f"the worker ended with exit code {code}: {last}")

    def _blame(self, status: str, message: str) -> str:
        key = self.flying or next(iter(self.cells))
        self.supervisor.record_failure(self.cells[key], status, message, self.phase)
        return key
