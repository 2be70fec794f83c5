"""The time series of a job on the disk, put together from what the samplers and the parent saw.

    telemetry/JOB.parquet           all workers and sessions of one job, in order of time
    telemetry/.JOB-PID-N.parquet    samples of worker N of the session of parent PID } until the job is over
    telemetry/.JOB.marks            marks as they come, a line of JSON each          }

What is hidden outlives a parent that is killed; the next session puts it where it belongs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sampler import write_telemetry
from .store import StoreError, read_table

if TYPE_CHECKING:
    import pyarrow as pa


class Series:
    """One job's series while it is recorded. All methods raise OSError."""

    def __init__(self, folder: Path, job: str) -> None:
        self.job, self.path = job, folder / f"{job}.parquet"
        self.note: str | None = None  # why there are no samples
        self._marks = folder / f".{job}.marks"

    def sample(self, worker: int) -> Path:
        """Where this session's sampler of a worker writes."""
        return self.path.with_name(f".{self.job}-{os.getpid()}-{worker}.parquet")

    def append(self, mark: dict[str, Any]) -> None:
        """Add {"t_s", "cell", "phase", "architecture"}."""
        with self._marks.open("a", encoding="utf-8") as file:
            file.write(json.dumps(mark) + "\n")

    def merge(self, counting: Collection[str]) -> None:
        """Put what is hidden into the series; whatever speaks of cells that no longer count goes.

        A file that cannot be read is as good as none: it must not keep the run from going on.
        """
        samples, marks = sorted(self.path.parent.glob(f".{self.job}-*.parquet")), self._told()
        if samples or marks:
            counting = set(counting)
            earlier = [t for t in _readable(self.path) if counting.issuperset(_cells(t))]
            fresh = [table for path in samples for table in _readable(path)]
            if not counting.issuperset(mark["cell"] for mark in marks):
                fresh, marks = [], []
            write_telemetry(self.path, self.job, [*earlier, *fresh], marks, self.note)
        for path in (*samples, self._marks):
            path.unlink(missing_ok=True)

    def _told(self) -> list[dict[str, Any]]:
        marks = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._marks.read_bytes().splitlines():
                with contextlib.suppress(ValueError):  # cut off by a full disk or a kill
                    marks.append(json.loads(line))
        return marks


def _readable(path: Path) -> list[pa.Table]:
    try:
        return [read_table(path)]
    except StoreError:
        return []


def _cells(table: pa.Table) -> list[str]:
    return table.column("cell").drop_null().to_pylist()


def collect(folder: Path, counting: Collection[str]) -> None:
    """Merge what a killed session left in the telemetry folder. Raises OSError."""
    hidden = {path.name[1:].split("-")[0].split(".")[0] for path in folder.glob(".*") if path.is_file()}
    for job in sorted(hidden):
        Series(folder, job).merge(counting)
