"""How long a report of about 10,000 rows takes, and how large its page is.

    python tests/simulations/report_size.py [RUN...]

Draws an invented run (seven architectures, three contexts, decode steps, needles, books, telemetry), or the
run folders that are named, each in a process of its own, on one thread. CPU seconds are of the whole process,
interpreter and imports included. Prints a Markdown table.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DRAW = "import sys; from pathlib import Path; from harness.report import build; "
DRAW += "build([Path(sys.argv[1])], Path(sys.argv[2]))"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def invented(folder: Path) -> Path:
    """About 10,000 rows."""
    from recorded_run import write_run

    return write_run(folder, steps=76)


def measured(run: Path, out: Path) -> tuple[int, float, int, int]:
    """(rows, CPU seconds, bytes of the page, figures) of one drawing."""
    files = list((run / "cells").glob("*.parquet")) or [run / "rows.parquet"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", DRAW, str(run.resolve()), str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | ONE_THREAD)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    return rows, seconds, (out / "index.html").stat().st_size, len(list((out / "figures").iterdir()))


def main(runs: list[Path]) -> None:
    print("| run | rows | CPU seconds | page, bytes | figures |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs or [invented(Path(folder) / "invented")]):
            rows, seconds, size, figures = measured(run, Path(folder) / f"page-{number}")
            print(f"| {run.name} | {rows:,} | {seconds:.1f} | {size:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
