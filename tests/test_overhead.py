"""Who watches must not be seen: the parent and the sampler of a real run, by their own CPU time.

A worker that sleeps for more than a minute is watched meanwhile. The time counts from inside that sleep, when
both have started and imported all they need, and it is CPU time against elapsed time: a busy machine makes
the minute longer and gives nobody more to do.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness_help import Bench, rows, wait_for

LEAST_S, SHARE = 60.0, 0.01

#: Sleeps in the first execution only.
SLEEPS = """
if not (HERE / "begun").exists():
    (HERE / "begun").touch()
    time.sleep(66)
    (HERE / "ended").touch()
"""


def cpu_s(pid: int) -> float:
    """User and system time of a process, of all its threads, without its children's."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def child(pid: int, module: str) -> int | None:
    """The child of a process that runs this module of ours."""
    for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if module in Path(f"/proc/{found}/cmdline").read_bytes().decode().split("\0"):
            return int(found)
    return None


@pytest.mark.full
def test_parent_and_sampler_use_less_than_a_hundredth_of_a_core(tmp_path):
    bench = Bench(tmp_path)
    bench.toy("sleeps", SLEEPS)
    words = (
        "--shape",
        "tiny",
        "--suite",
        "decode:contexts=64,new_tokens=2",
        "--repeats",
        "1",
        "--no-ceilings",
    )
    process = bench.start("run", *words, "--arch", "sleeps", "--timeout-s", "600", "--out", "run")
    try:
        wait_for(lambda: (bench.here / "begun").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        pids = {"parent": process.pid, "sampler": child(process.pid, "harness.sampler")}
        begin_s, begin = time.monotonic(), {role: cpu_s(pid) for role, pid in pids.items()}
        while not (bench.here / "ended").exists():
            now_s, now = time.monotonic(), {role: cpu_s(pid) for role, pid in pids.items()}
            time.sleep(0.5)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert (rows(bench.cwd / "run").status == "ok").all()
    elapsed_s = now_s - begin_s
    shares = {role: (now[role] - begin[role]) / elapsed_s for role in pids}
    print(f"over {elapsed_s:.1f} s:", {role: f"{share:.2%}" for role, share in shares.items()})
    assert elapsed_s >= LEAST_S
    assert sum(shares.values()) < SHARE, shares
