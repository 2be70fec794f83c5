"""Memory, power and clocks of a worker over time, from a process of its own that hardly disturbs it.

    parent ──stdin pipe──► python -m harness.sampler --pid WORKER --out FILE.parquet
    it ends, and writes its file, when │ stdin closes (the parent stopped it, or died)
                                       │ the worker exits
                                       │ SIGTERM comes (sent by the kernel when the parent dies)

It sleeps until the next due time and never spins; due times are multiples of the interval after the start, so
a late sample does not shift the later ones. A tick costs some tens of µs for the RSS, and up to a few ms with
NVML: before it takes more than half a hundredth of a core it leaves ticks out. It imports neither torch nor,
before it writes, pyarrow.

Bounded memory: when MAX_SAMPLES are held (33 minutes at 20 ms), every other one is dropped and the interval
doubles, so a run of any length has between half of MAX_SAMPLES and MAX_SAMPLES, evenly spread. Short peaks of
memory between two samples are missed at any interval: the exact peak is harness.clock.PeakMemory's.

One row per tick: source "nvml" (RSS and GPU) or "rss" (no GPU, or a CPU job). What the system does not tell
is null. The time is time.monotonic() just before the reading: one clock for all processes of a Linux machine,
so marks of the parent and the worker fall on the same axis.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import machine_limits, nvml

if TYPE_CHECKING:
    import pyarrow as pa

MAX_SAMPLES = 100_000
#: CPU seconds that it may take: a share of the time that has passed, beside what the first readings cost.
MOST_OF_A_CORE, FIRST_S = 0.005, 0.1

#: Telemetry columns and their Arrow types. Marks fill job, t_s, kind and the last three.
COLUMNS = {
    "job": "string",
    "t_s": "double",
    "kind": "string",  # "sample" | "mark"
    "source": "string",  # "nvml" | "rss"; null for marks
    "rss_bytes": "int64",
    "gpu_used_bytes": "int64",  # the device, other processes included
    "gpu_process_bytes": "int64",
    "foreign_gpu_processes": "int64",  # null unless the worker itself is listed
    "power_w": "double",
    "energy_j": "double",  # a counter: only differences mean anything
    "sm_clock_hz": "double",
    "memory_clock_hz": "double",
    "temperature_c": "double",
    "throttle_reasons": "string",  # comma-separated names, "none", or null for unknown
    "cell": "string",
    "phase": "string",
    "architecture": "string",
}


class Resident:
    """Resident memory of one process, from a file that stays open: opening it costs ten times the reading."""

    def __init__(self, pid: int) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY)

    def read(self) -> int | None:
        """Bytes. None when the process has ended (a zombie holds no page)."""
        if self._fd is None:
            return None
        try:
            pages = int(os.pread(self._fd, 128, 0).split()[1])
        except (OSError, IndexError, ValueError):
            return None
        return pages * resource.getpagesize() or None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, read once."""
    with Resident(pid) as resident:
        return resident.read()


class Series:
    """Samples in order, at most `limit`: then every other one goes and the interval doubles."""

    def __init__(self, interval_s: float, limit: int = MAX_SAMPLES) -> None:
        self.interval_s, self._limit = interval_s, limit - limit % 2
        self.rows: list[dict[str, Any]] = []

    def append(self, row: dict[str, Any]) -> None:
        """Add the newest sample."""
        self.rows.append(row)
        # One more than an even number: the newest is kept, and the next comes a full new interval after it.
        if len(self.rows) > self._limit:
            del self.rows[1::2]
            self.interval_s *= 2


def watch(
    pid: int,
    series: Series,
    gpu: nvml.Gpu | None,
    wait: Callable[[float], bool],
    clock: Callable[[], float] = time.monotonic,
    cpu: Callable[[], float] = time.process_time,
) -> None:
    """Sample until the process ends or `wait(seconds)` returns False."""
    due = start = clock()
    free = cpu() + FIRST_S
    with Resident(pid) as resident:
        while True:
            t_s = clock()
            if (rss := resident.read()) is None:
                return
            row = {"t_s": t_s, "source": "nvml" if gpu else "rss", "rss_bytes": rss}
            series.append(row | gpu.sample(pid) if gpu else row)
            # Ticks that a slow reading has overrun are skipped, not caught up with.
            earliest = max(clock(), start + (cpu() - free) / MOST_OF_A_CORE)
            due += series.interval_s * max(1, math.ceil((earliest - due) / series.interval_s))
            if not wait(max(0.0, due - clock())):
                return


def sample_table(rows: Iterable[Mapping[str, Any]], kind: str, job: str | None, note: str | None) -> pa.Table:
    """Rows under the telemetry schema; a column that a row lacks is null."""
    import pyarrow as pa

    from .store import SCHEMA_VERSION

    meta = {"kvmark_schema": str(SCHEMA_VERSION)} | ({"kvmark_sampler_note": note} if note else {})
    schema = pa.schema([(n, pa.type_for_alias(t)) for n, t in COLUMNS.items()], metadata=meta)
    return pa.Table.from_pylist([{**row, "kind": kind, "job": job} for row in rows], schema=schema)


def write_telemetry(
    path: Path,
    job: str,
    samples: pa.Table | Path | Sequence[pa.Table | Path] | None,
    marks: Iterable[Mapping[str, Any]],
    note: str | None = None,
) -> None:
    """One job's samples (tables or files, one per worker) and marks in one Parquet file, ordered by time.

    What two of them hold (a merge was cut off) is there once. `note` says why samples are missing.

    A mark is {"t_s", "cell", "phase", "architecture"}. Raises StoreError for a file that cannot be read; None
    means that nothing was sampled.
    """
    import pyarrow as pa

    from .store import read_table, write_table

    parts = [] if samples is None else [samples] if isinstance(samples, (pa.Table, Path)) else list(samples)
    tables = [part if isinstance(part, pa.Table) else read_table(part) for part in parts]
    merged = joined([*tables, sample_table(marks, "mark", job, note)])
    column = merged.schema.get_field_index("job")
    merged = merged.set_column(
        column, merged.schema.field(column), pa.array([job] * len(merged), pa.string())
    )
    once = merged.group_by(merged.column_names, use_threads=False).aggregate([])
    write_table(path, once.sort_by("t_s").replace_schema_metadata(merged.schema.metadata))


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Time series below each other, under today's columns: what an older one lacks is null."""
    import pyarrow as pa

    # The first part's metadata wins in concat_tables: a note on why there is no NVML must not get lost.
    metadata = {k: v for table in reversed(tables) for k, v in (table.schema.metadata or {}).items()}
    bare = [table.replace_schema_metadata(None) for table in [sample_table([], "", None, None), *tables]]
    merged = pa.concat_tables(bare, promote_options="default")
    return merged.select(list(COLUMNS)).replace_schema_metadata(metadata)


class Sampler:
    """The parent's handle: `start(pid)`, then `stop()` → the file, or None with the reason in `note`.

    Start it from the main thread (see machine_limits.die_with_parent). `device` is the worker's: a job on the
    CPU is not charged with an idle GPU's power.
    """

    def __init__(
        self, out: Path, interval_s: float = 0.02, device: str = "cpu", gpu_uuid: str | None = None
    ) -> None:
        self.out, self.note = Path(out), None
        self._arguments = ["--interval-s", str(interval_s), "--device", device]
        self._arguments += ["--gpu-uuid", gpu_uuid] if gpu_uuid else []
        self._process: subprocess.Popen[str] | None = None

    def start(self, pid: int, timeout_s: float = 60.0) -> bool:
        """Begin, and return once the first sample is taken. False: no sampling, see `note`.

        Makes the file's folder, and removes an old file. Raises OSError where it may not.
        """
        self.note = None
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.unlink(missing_ok=True)  # what an interrupted run left must not pass for this one's
        # The sampler of this checkout, wherever the working directory is.
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-P", "-m", "harness.sampler", "--pid", str(pid), "--out", str(self.out)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, "--parent-pid", str(os.getpid()), *self._arguments],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        )
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if readable and self._process.stdout.readline():
            return True
        self.stop(timeout_s=1.0)
        ended = "the process had ended before the first sample"
        self.note = self.note or (ended if readable else "the sampler did not start in time")
        return False

    def stop(self, timeout_s: float = 20.0) -> Path | None:
        """End it and return the file that it wrote. A second call returns the same."""
        if self._process is not None:
            process, self._process = self._process, None
            try:
                _, errors = process.communicate(timeout=timeout_s)  # closes stdin, which ends it
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                errors = "the sampler did not end in time and was killed"
            if process.returncode != 0:
                ended = f"the sampler was ended by {machine_limits.signal_name(-process.returncode)}"
                ended = ended if process.returncode < 0 else "the sampler failed without a word"
                self.note = (errors.strip().splitlines() or [ended])[-1]
        return self.out if self.note is None and self.out.exists() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _open_gpu(device: str, uuid: str | None) -> tuple[nvml.Gpu | None, str | None]:
    """The GPU to sample, or None and why."""
    if device == "cpu" and uuid is None:
        return None, "a job on the CPU: no GPU was sampled"
    try:
        return nvml.open_gpu(device, uuid), None
    except nvml.NoGpu as error:
        return None, str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The side process. Exit code 1: the file could not be written; the last line of stderr says why."""
    parser = argparse.ArgumentParser(prog="harness.sampler", description="Sample a process until it ends.")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--interval-s", type=float, default=0.02)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N, as the worker says it")
    parser.add_argument("--gpu-uuid", help="this GPU, whatever the device")
    parser.add_argument("--parent-pid", type=int, help="end when this process, our parent, ends")
    options = parser.parse_args(arguments)

    # Ctrl-C reaches the whole terminal: the parent decides when we end, and the file must be written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_reader, wake_writer = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(wake_writer, b"x"))
    if options.parent_pid is not None:
        machine_limits.die_with_parent(options.parent_pid, signal.SIGTERM)
    gpu, note = _open_gpu(options.device, options.gpu_uuid)
    series = Series(options.interval_s)
    greeted = False

    def wait(seconds: float) -> bool:
        nonlocal greeted
        if not greeted:
            greeted = True
            print("sampling", flush=True)
        readable, _, _ = select.select([sys.stdin, wake_reader], [], [], seconds)
        # Nobody writes to our stdin: readable means that its other end is closed.
        return not readable

    watch(options.pid, series, gpu, wait)
    if not options.out.parent.is_dir():
        print(f"{options.out.parent} is gone.", file=sys.stderr)  # a deleted run is not brought back
        return 1
    from .store import write_table

    try:
        write_table(options.out, sample_table(series.rows, "sample", None, note))
    except OSError as error:
        print(f"{options.out} cannot be written ({error.strerror}).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
