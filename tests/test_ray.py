"""Real Ray with two workers: interrupted, resumed, its workers killed; the rows are those of a local run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
from harness_help import TINY, Bench, cells, rows, telemetry, wait_for

pytestmark = pytest.mark.full

#: Hangs while HERE/hang-NAME exists, and says which process the worker and its Ray worker are.
HANG = """
name = type(self).__module__.rsplit(".", 1)[-1]
while (HERE / f"hang-{name}").exists():
    (HERE / f"new-{name}").write_text(f"{os.getpid()} {os.getppid()}")
    (HERE / f"new-{name}").rename(HERE / f"at-{name}")
    time.sleep(0.05)
"""
PLAN = (*TINY, "--no-interleave", "--arch", "transformer", "--arch", "fragile", "--arch", "doomed")
COMMAND = ("run", *PLAN, "--executor", "ray", "--workers", "2", "--out", "spread")
#: What says what a number is; times, and what follows from them, differ from run to run.
IDENTITY = ["cell", "architecture", "suite", "metric", "unit", "case", "repeat", "replicate", "step", "layer"]
IDENTITY += ["bin", "axes", "axis", "prompt_mode", "scoring_mode", "implementation", "dtype", "device"]
IDENTITY += ["threads", "batch", "evictions", "requests", "weights", "text", "machine", "phase", "status"]
EXACT = ("cache_bytes_live", "cache_bytes_predicted", "weights_bytes", "prefill_flops", "read_bytes_per_step")


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    for name in ("fragile", "doomed"):
        bench.toy(name, HANG)
        (bench.here / f"hang-{name}").touch()
    yield bench
    for path in bench.here.glob("hang-*"):
        path.unlink()
    bench.close()


def hanging(bench: Bench, name: str, process) -> tuple[int, int]:
    """The worker that hangs now and the Ray worker that started it; the next one has to say so anew."""
    wait_for(lambda: (bench.here / f"at-{name}").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    worker, above = map(int, (bench.here / f"at-{name}").read_text().split())
    return worker, above


def kill_the_ray_worker(bench: Bench, name: str, process) -> None:
    worker, above = hanging(bench, name, process)
    os.kill(above, signal.SIGKILL)
    wait_for(lambda: not alive(worker))  # it dies with its parent
    (bench.here / f"at-{name}").unlink()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_ray_gives_the_rows_of_a_local_run_whatever_befalls_it(bench):
    """One story, since each chapter costs seconds."""
    run = bench.cwd / "spread"

    # Ctrl-C: finished cells came while others ran; nothing goes on behind our back.
    process = bench.start(*COMMAND)
    try:
        pids = [*hanging(bench, "fragile", process), *hanging(bench, "doomed", process)]
        wait_for(lambda: len(cells(run)) == 4)
        finished = cells(run)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.startswith("kvmark: Interrupted; the same command") and "Traceback" not in err
    wait_for(lambda: not any(map(alive, pids)))
    assert cells(run) == finished
    for path in bench.here.glob("at-*"):
        path.unlink()

    # The same command goes on. One Ray worker is killed once, one twice.
    process = bench.start(*COMMAND)
    try:
        kill_the_ray_worker(bench, "fragile", process)
        kill_the_ray_worker(bench, "doomed", process)
        hanging(bench, "fragile", process)  # so it was retried
        (bench.here / "hang-fragile").unlink()
        kill_the_ray_worker(bench, "doomed", process)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert err == "kvmark: 1 of 6 cells crashed or timed out; see the report.\n"
    assert process.returncode == 1 and "4 of 6 cells were measured before" in out
    assert {name: data for name, data in cells(run).items() if name in finished} == finished
    table = rows(run)
    failed = table[table.status != "ok"]
    assert failed.architecture.tolist() == ["doomed"] and failed.status.tolist() == ["crash"]
    assert "lost twice" in failed.message.iloc[0] and "WorkerCrashedError" in failed.message.iloc[0]
    assert set(telemetry(run).query("kind == 'mark'").architecture) >= {"transformer", "fragile"}

    # Local runs take over where Ray left, and measure the same.
    (bench.here / "hang-doomed").unlink()
    done = bench.ask("run", *PLAN, "--out", "spread", "--retry-failed")
    assert done.code == 0 and "5 of 6 cells were measured before" in done.out, done.err
    assert bench.ask("run", *PLAN, "--out", "local").code == 0
    # One load_s per process, so a job that was cut off and went on has one more.
    loaded = "metric != 'load_s'"
    spread, local = (rows(bench.cwd / out).query(loaded).reset_index() for out in ("spread", "local"))
    pd.testing.assert_frame_equal(spread[IDENTITY], local[IDENTITY])
    exact = spread.metric.isin(EXACT)
    assert set(spread.metric[exact]) == set(EXACT)
    assert (spread.value[exact] == local.value[exact]).all()
    manifest = json.loads((run / "run.json").read_text())
    assert set(manifest["machines"]) == set(spread.machine) == {manifest["machine"]["id"]}
    card = manifest["machines"][manifest["machine"]["id"]]
    assert card["source_hash"] == manifest["machine"]["source_hash"]
    assert not [path.name for path in run.rglob(".*") if path.name != ".lock"]
