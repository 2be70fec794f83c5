"""What misbehaves gets its row and the sweep goes on: toys that die in every way we know, each for real."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import pandas as pd
import pytest
from fault_help import last_words
from harness_help import Bench, Done, cells, one_sentence, processes_of, rows, wait_for

from harness.supervise import EnvironmentRefuses

full = pytest.mark.full

SIZES = ("--shape", "tiny", "--suite", "decode:new_tokens=2", "--contexts", "32,64,96", "--repeats", "1")
LIMIT = 3 << 30
#: One toy waits for it to pass; the others must not, however little of the machine they get.
TIMEOUT_S = "30"
GIVE_UP_S = 600.0

#: Toy -> what it does at 64 tokens; it is sound at 32 and 96.
TOYS = {
    "aborts": "os.abort()",
    "raises": 'raise RuntimeError("the policy lost its place.\\\\nsecond line")',
    "leaves": "os._exit(0)",
    "quits": "raise SystemExit(0)",
    "refused": 'raise OSError(12, "Cannot allocate memory")',
    "sleeps": "time.sleep(3600)",
    "victim": '(HERE / "victim").write_text(str(os.getpid()))\ntime.sleep(3600)',
    "hogs": "self.hoard = [torch.ones(1 << 26) for _ in range(40)]",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    for name, act in TOYS.items():
        bench.toy(name, act)
    yield bench
    bench.close()


def measure(bench: Bench, out: str, *toys: str, more: tuple[str, ...] = ()) -> Done:
    chosen = [word for name in ("transformer", *toys) for word in ("--arch", name)]
    page = () if out == "broken" else ("--no-report",)
    return bench.run("run", *SIZES, *chosen, "--out", out, *page, *more, give_up_s=GIVE_UP_S)


def kill_the_victim(bench: Bench) -> None:
    """As soon as it says who it is; it may be the last toy of a run on a busy machine."""
    wait_for(lambda: (bench.here / "victim").exists() and (bench.here / "victim").read_text(), GIVE_UP_S)
    os.kill(int((bench.here / "victim").read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def broken(bench) -> tuple[Done, pd.DataFrame]:
    """One run with everything that ends in a crash or a timeout."""
    killer = threading.Thread(target=kill_the_victim, args=(bench,), daemon=True)
    killer.start()
    names = [name for name in TOYS if name != "hogs"]
    done = measure(bench, "broken", *names, more=("--timeout-s", TIMEOUT_S))
    return done, rows(bench.cwd / "broken")


EXPECTED = {
    "aborts": ("crash", "SIGABRT"),
    "raises": ("crash", "RuntimeError: the policy lost its place"),
    "leaves": ("crash", "exit code 0"),
    "quits": ("crash", "SystemExit"),
    "refused": ("oom", "OSError: [Errno 12] Cannot allocate memory"),  # as any file's opening may be
    "sleeps": ("timeout", f"{TIMEOUT_S} s"),
    "victim": ("crash", "SIGKILL"),
}


@full
@pytest.mark.parametrize("name", EXPECTED)
def test_a_failure_is_a_row_with_status_message_and_phase(broken, name):
    status, words = EXPECTED[name]
    _, table = broken
    mine = table[table.architecture == name]
    failed = mine[mine.status != "ok"]
    assert failed.status.tolist() == [status]
    row = failed.iloc[0]
    assert words in row.message and "\n" not in row.message
    assert (row.metric, row.phase, row["axes"]) == ("failure", "prefill", '{"batch": 1, "context": 64}')
    assert (row.weights, row.machine) == (mine.weights.iloc[0], mine.machine.iloc[0])
    assert pd.isna(row.value) == (status != "oom")  # what it held then
    # Nothing else of that cell, and its other sizes are measured.
    assert len(mine[mine["axes"] == row["axes"]]) == 1
    assert set(mine[mine.metric == "prefill_s"]["axes"]) == {
        '{"batch": 1, "context": 32}', '{"batch": 1, "context": 96}',
    }  # fmt: skip


@full
def test_partners_of_a_failed_cell_are_measured_all_the_same(broken):
    _, table = broken
    partner = table[table.architecture == "transformer"]
    assert (partner.status == "ok").all()
    assert len(partner[partner.metric == "prefill_s"]) == 3


@full
def test_crashes_and_timeouts_end_with_exit_code_1(bench, broken):
    done, _ = broken
    assert done.code == 1
    assert done.err == "kvmark: 6 of 24 cells crashed or timed out; see the report.\n"
    assert (bench.cwd / "reports" / "local" / "broken" / "index.html").exists()
    assert "aborts" in done.out and processes_of(bench.cwd / "broken") == []


@full
def test_a_failed_cell_is_not_tried_again_and_still_counts(bench, broken):
    """It is an outcome; whoever wants another try takes another --out or mends the code."""
    before = cells(bench.cwd / "broken")
    chosen = [word for name in ("transformer", *EXPECTED) for word in ("--arch", name)]
    again = bench.ask("run", *SIZES, *chosen, "--out", "broken", "--timeout-s", TIMEOUT_S, "--no-report")
    assert again.code == 1 and cells(bench.cwd / "broken") == before


@full
def test_out_of_memory_is_a_measured_outcome(bench):
    """A real limit of the kernel on the worker; the row is written although the memory is still held."""
    done = measure(bench, "full", "hogs", more=("--memory-limit-bytes", str(LIMIT)))
    assert done.code == 0, done.err
    table = rows(bench.cwd / "full")
    failed = table[table.status != "ok"]
    assert failed.status.tolist() == ["oom"] and failed.architecture.tolist() == ["hogs"]
    assert failed.phase.tolist() == ["prefill"] and "memory" in failed.message.iloc[0]
    assert len(table[table.metric == "prefill_s"]) == 5
    assert "oom" in done.out


@full
def test_no_memory_at_all_is_out_of_memory_too(bench):
    """A limit below what torch holds already: every cell has its row, none is lost to a traceback."""
    done = measure(bench, "none", more=("--memory-limit-bytes", "1000"))
    assert (done.code, set(rows(bench.cwd / "none").status)) == (0, {"oom"}), done.err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where we may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


#: Fills the disk up while HERE/fill names it.
FILL = """
if (HERE / "fill").exists():
    with open((HERE / "fill").read_text(), "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
"""


@full
def test_a_full_disk_loses_no_finished_cell(bench, small_disk):
    bench.toy("fills", FILL)
    (bench.here / "fill").write_text(str(small_disk / "filler"))
    run = small_disk / "run"
    done = measure(bench, str(run), "fills")
    sentence = one_sentence(done, 3)
    assert str(run) in sentence and os.strerror(errno.ENOSPC) in sentence
    finished = cells(run)
    assert len(finished) == 2, "the group at 32 tokens was done before the disk was full"
    assert processes_of(run) == []

    (small_disk / "filler").unlink()
    (bench.here / "fill").unlink()
    again = measure(bench, str(run), "fills")
    assert again.code == 0, again.err
    assert "2 of 6 cells were measured before" in again.out
    after = cells(run)
    assert len(after) == 6 and {name: after[name] for name in finished} == finished
    assert (rows(run).status == "ok").all()


@full
def test_a_disk_that_is_full_from_the_start(bench, small_disk):
    with open(small_disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(b"x" * 4096)
    sentence = one_sentence(measure(bench, str(small_disk / "run")), 3)
    assert os.strerror(errno.ENOSPC) in sentence


@full
def test_a_package_of_the_same_name_in_the_working_directory_is_not_ours(bench, tmp_path: Path):
    """Another checkout, or somebody's `models` package, where the command is given."""
    for name in ("models", "harness", "suites"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not kvmark')\n")
    bench.cwd, before = tmp_path, bench.cwd
    try:
        done = measure(bench, "run")
    finally:
        bench.cwd = before
    assert (done.code, len(cells(tmp_path / "run"))) == (0, 3), done.err


# --- what a worker's last words are worth: a process that says them and ends ----------------------


DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("script", "statuses"),
    [
        # Between two cells: the finished one keeps its rows, and the next one has not begun.
        (f"say('start', 'a'); say('done', 'a'); {DIE}", {"a": "ok"}),
        (f"say('start', 'b'); {DIE}", {"b": "crash"}),
        (f"say('start', 'a'); say('start', 'b'); say('done', 'a'); {DIE}", {"a": "ok", "b": "crash"}),
        # After the last cell there is nobody left to blame.
        (f"[say('done', c) for c in 'abc']; {DIE}", dict.fromkeys("abc", "ok")),
        # The row of a cannot be written although b was started last: b is not to blame.
        (
            "[say('start', c) for c in 'ab']; say('failed', 'a', status='oom', message='m'); sys.exit(10)",
            {"a": "oom"},
        ),
        # A quiet end in mid-work is no success.
        ("say('start', 'a'); sys.exit(0)", {"a": "crash"}),
        ("say('start', 'a'); say('done', 'a'); time.sleep(60)", {"a": "ok"}),
        ("say('start', 'a'); time.sleep(60)", {"a": "timeout"}),
    ],
)
def test_only_an_unfinished_cell_takes_the_blame(tmp_path, script, statuses):
    assert last_words(tmp_path, script) == statuses


def test_a_worker_that_never_began_is_no_cells_fault(tmp_path):
    """Nothing is journalled, so that the same command measures everything once the machine is mended."""
    with pytest.raises(EnvironmentRefuses, match="before it measured anything"):
        last_words(tmp_path, DIE)
    assert not list((tmp_path / "cells").glob("*"))
