"""How long a report of about 10,000 rows takes, and how large its page is.

    python tests/simulations/report_size.py [RUN...]

Draws an invented run (seven architectures, three contexts, decode steps, needles, books, telemetry; finished,
as `kvmark run` leaves it), or the run folders that are named, each in a process of its own with one thread,
which draws figures in as many others as there are cores. Seconds are of the whole process, interpreter and
imports included, the median of five drawings. Prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
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

    from harness.runner import assemble

    write_run(folder, steps=76)
    keys = [cell["key"] for cell in json.loads((folder / "run.json").read_text())["cells"]]
    assemble(folder, keys)
    return folder


def drawn(run: Path, out: Path) -> tuple[float, float]:
    """(wall-clock seconds, CPU seconds) of one drawing."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", DRAW, str(run.resolve()), str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | ONE_THREAD)
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(runs: list[Path]) -> None:
    print("| run | rows | seconds | CPU seconds | page, bytes | figures |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs or [invented(Path(folder) / "invented")]):
            out = Path(folder) / f"page-{number}"
            wall_s, cpu_s = map(statistics.median, zip(*(drawn(run, out) for _ in range(5)), strict=True))
            rows, size = pq.read_metadata(run / "rows.parquet").num_rows, (out / "index.html").stat().st_size
            figures = len(list((out / "figures").iterdir()))
            print(
                f"| {run.name} | {rows:,} | {wall_s:.1f} | {cpu_s:.1f} | {size:,} | {figures} |", flush=True
            )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
