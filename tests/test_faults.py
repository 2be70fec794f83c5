"""A run whose processes die, hang or meet a full disk at a stated point: nothing finished is lost or changed.

Each story ends alike: the same command completes, what was finished has the same bytes, nothing is left over.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from fault_help import AFTER, BEFORE, FILL, Fault, Life, Nursery
from harness_help import Bench, cells, rows, telemetry

from harness.store import outcome, read_table

pytestmark = pytest.mark.full

#: Two jobs: two cells that share a process, and one with three batches and so a journal.
PLAN = ("--arch", "transformer", "--arch", "window:budget=64", "--repeats", "1", "--batch", "1")
PLAN += ("--suite", "decode:contexts=32,new_tokens=2")
PLAN += ("--suite", "needle:lengths=128,depths=0.5,trials=3,max_new=2")
RUN = ("run", *PLAN, "--no-ceilings", "--no-report")


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    for name, (method, act, *_) in TOYS.items():
        path = bench.source / "models" / "architectures" / f"{name}.py"
        path.write_text(f'"""The toy {name}."""' + TOY.replace("{method}", method.replace("{act}", act)))
    nursery = Nursery(bench, *PLAN)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(nursery) -> Life:
    life = nursery.run(*RUN, "--out", "whole")
    assert life.code == 0, nursery.err
    return life


def left_over(run: Path) -> list[str]:
    """Hidden files and journals that nobody needs any more."""
    found = [path.relative_to(run) for path in run.rglob("*") if path.name.startswith(".")]
    found += [path.relative_to(run) for path in (run / "unfinished").glob("*")]
    return sorted(str(path) for path in found if str(path) != ".lock")


def it_goes_on(nursery: Nursery, run: Path, finished: dict[str, bytes], *more: str) -> None:
    """The same command completes and keeps what there was."""
    life = nursery.run(*RUN, "--out", str(run), *more)
    assert life.code == 0, nursery.err
    after = cells(run)
    assert {name: after.get(name) for name in finished} == finished
    assert len(after) == 4 and set(rows(run).status) == {"ok"}
    assert set(rows(run).cell) == {name.removesuffix(".parquet") for name in after}
    assert left_over(run) == []


# --- killed at a rename ----------------------------------------------------------------------------

#: What is renamed, by whom, and how often in one run.
RENAMES = {
    ("parent", "run.json"): 1,
    ("worker", "/cells/"): 4,
    ("sampler", "/telemetry/"): 3,
    ("parent", "/telemetry/"): 3,
    ("parent", "/rows.parquet"): 1,
    ("parent", "/telemetry.parquet"): 1,
}
#: The first and the last of each that one process makes: a fault comes back with every new worker.
MOST = {"worker": 2, "sampler": 1, "parent": 3}
POINTS = [(*where, nth) for where, many in RENAMES.items() for nth in sorted({1, min(many, MOST[where[0]])})]
#: Cells that lose their worker: all four, one after the other; or the one that was to be written next.
LOST = {(1, BEFORE): 4, (1, AFTER): 1, (2, BEFORE): 1, (2, AFTER): 0}


def test_these_are_all_the_renames_of_a_run(whole):
    """So that the next test misses none; a report's would come after the rows are safe."""
    inside = whole.renamed
    for (role, path), many in RENAMES.items():
        assert len([r for r, name in inside if r == role and path in "/" + name.strip("'")]) == many, inside
    assert len(inside) == sum(RENAMES.values())


@pytest.mark.parametrize("act", [BEFORE, AFTER])
@pytest.mark.parametrize(("role", "path", "nth"), POINTS)
def test_a_process_that_is_killed_at_a_rename(nursery, whole, tmp_path, role, path, nth, act):
    run = tmp_path / "run"
    life = nursery.run(*RUN, "--out", str(run), fault=Fault(role, "os.rename", path, nth, act))
    assert "Traceback" not in nursery.err
    finished = cells(run) if (run / "cells").exists() else {}
    stories = {name: outcome(run / "cells" / name) for name in finished}
    assert None not in stories.values(), "half a file"
    failed = [story for story in stories.values() if story[0] != "ok"]
    if role == "parent":
        assert life.code == -signal.SIGKILL and failed == []
    elif role == "sampler":
        assert life.code == 0 and failed == [] and "the sampler was ended by SIGKILL" in nursery.out
    else:
        assert len(failed) == LOST[nth, act]
        assert life.code == (1 if failed else 0), nursery.err
        assert all(story == ("crash", "the worker was ended by SIGKILL") for story in failed)
    it_goes_on(nursery, run, {n: b for n, b in finished.items() if stories[n][0] == "ok"}, "--retry-failed")


def test_the_series_of_a_killed_session_is_kept(nursery, whole, tmp_path):
    """All was measured when the parent died: the next session has no job, and still finds the series."""
    run = tmp_path / "run"
    nursery.run(*RUN, "--out", str(run), fault=Fault("parent", "os.rename", "/telemetry/", 3))
    finished = cells(run)
    assert len(finished) == 4
    it_goes_on(nursery, run, finished)
    found, before = telemetry(run), telemetry(nursery.bench.cwd / "whole")
    marks, expected = (t[t.kind == "mark"][["job", "cell", "phase"]].value_counts() for t in (found, before))
    assert marks.sort_index().equals(expected.sort_index())
    assert set(found[found.kind == "sample"].job) == set(before.job)
    assert not found.duplicated().any()


def test_a_sampler_that_is_killed_costs_its_samples_and_nothing_else(nursery, whole, tmp_path):
    run = tmp_path / "run"
    life, killed = nursery.start(*RUN, "--out", str(run)), False
    while life.code is None:
        nursery.watch(life, 1.0)
        if not killed and life.ticks["worker"] > 20:
            os.kill(life.pids["sampler"], signal.SIGKILL)
            killed = True
    assert life.code == 0 and "the sampler was ended by SIGKILL" in nursery.out
    series = [read_table(path) for path in sorted((run / "telemetry").glob("*.parquet"))]
    notes = [(table.schema.metadata or {}).get(b"kvmark_sampler_note") for table in series]
    assert b"the sampler was ended by SIGKILL" in notes
    assert all("mark" in table.column("kind").to_pylist() for table in series)
    it_goes_on(nursery, run, cells(run))


# --- disk full -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("role", "event", "path", "nth"),
    [
        ("parent", "open", "/jobs/", 1),
        ("worker", "tempfile.mkstemp", "/cells/", 2),
        ("worker", "open", "/unfinished/", 3),
        ("sampler", "tempfile.mkstemp", "/telemetry/", 1),
        ("parent", "open", ".marks", 2),
        ("parent", "tempfile.mkstemp", "/telemetry/", 1),
        ("parent", "os.rename", "/telemetry/", 3),  # then rows.parquet has no room
    ],
)
def test_a_disk_that_fills_up_at_any_write(nursery, whole, small_disk, role, event, path, nth):
    run, filler = small_disk / "run", small_disk / "filler"
    fault = Fault(role, event, path, nth, FILL, str(filler))
    life = nursery.run(*RUN, "--out", str(run), fault=fault)
    assert filler.exists(), "the fault did not happen"
    assert "Traceback" not in nursery.err
    assert life.code == 3 and "No space left on device" in nursery.err, nursery.err
    assert str(run) in nursery.err and nursery.err.count("\n") == 1
    finished = cells(run)
    assert all(outcome(run / "cells" / name) == ("ok", None) for name in finished)
    filler.unlink()
    it_goes_on(nursery, run, finished)


# --- hanging, dying and lying workers --------------------------------------------------------------

TOY = """
import ctypes, os, stat, sys, time
import torch
from .transformer import Model as Transformer
from .transformer import Options as Options

class Model(Transformer):
{method}
"""

#: Where it happens: around the call, at a context of 64 in all but the first.
_LOAD = """
    def train(self, mode=True):
        {act}
        return super().train(mode)
"""
_ALLOCATE = """
    def new_cache(self, batch, capacity, *arguments, **named):
        if capacity > 60: {act}
        return super().new_cache(batch, capacity, *arguments, **named)
"""
_CALL = """
    def extend(self, tokens_BT, valid_BT, cache, logits="last"):
        if tokens_BT.shape[1] == {at} and max(cache.seen) + {at} > 60: {act}
        return super().extend(tokens_BT, valid_BT, cache, logits)
"""
_PREFILL, _DECODE = _CALL.replace("{at}", "64"), _CALL.replace("{at}", "1")
_HANG = "time.sleep(3600)"
#: Into the pipe of the events, past the worker.
_SAY = "[os.write(fd, {words}) for fd in range(3, 64) if os.path.exists('/proc/self/fd/%d' % fd)"
_SAY += " and stat.S_ISFIFO(os.fstat(fd).st_mode)]"
_CHILD = "[os.fork() == 0 and time.sleep(3600), os.abort()]"

#: Toy -> its method, what it does; and the story that must stand in its row.
TOYS = {
    "hangs_at_load": (_LOAD, _HANG, "timeout", "load", "no result within 10 s"),
    "hangs_at_allocate": (_ALLOCATE, _HANG, "timeout", "allocate", "no result within 10 s"),
    "hangs_at_prefill": (_PREFILL, _HANG, "timeout", "prefill", "no result within 10 s"),
    "hangs_at_decode": (_DECODE, _HANG, "timeout", "decode", "no result within 10 s"),
    "stops": (_PREFILL, "os.kill(os.getpid(), 19)", "timeout", "prefill", "no result within 10 s"),
    "segfaults": (_PREFILL, "ctypes.string_at(0)", "crash", "prefill", "ended by SIGSEGV"),
    "garbles": (
        _DECODE,
        _SAY.format(words=r"b'\xff what?\n'"),
        "crash",
        "decode",
        r"no event: '\ufffd what?'",
    ),
    "orphans": (_PREFILL, _CHILD, "crash", "prefill", "ended by SIGABRT"),
}
TOY_PLAN = ("--shape", "tiny", "--suite", "decode:contexts=32+64,new_tokens=2", "--repeats", "1")


@pytest.fixture(scope="module")
def misbehaved(nursery):
    """One run of all toys, each of which fails in its own way at 64 tokens."""
    chosen = [word for name in ("transformer", *TOYS) for word in ("--arch", name)]
    life = nursery.run("run", *TOY_PLAN, *chosen, "--no-ceilings", "--timeout-s", "10", "--out", "toys")
    return life, nursery.err, rows(nursery.bench.cwd / "toys")


@pytest.mark.parametrize("name", TOYS)
def test_each_way_to_fail_is_told_with_its_phase(misbehaved, name):
    """Hung in each phase, stopped, killed by a signal, babbling, leaving children: nobody else is touched."""
    _, _, status, phase, words = TOYS[name]
    _, _, table = misbehaved
    mine = table[table.architecture == name]
    failed = mine[mine.status != "ok"]
    sizes = ["32", "64"] if name == "hangs_at_load" else ["64"]
    assert [axes.split()[-1].rstrip("}") for axes in failed["axes"]] == sizes, failed
    assert set(failed.status) == {status} and set(failed.phase) == {phase}
    assert all(words in message for message in failed.message)
    assert (name == "hangs_at_load") != ("prefill_s" in set(mine.metric)), "its other size was measured"


def test_the_run_of_all_failures_ends_well(nursery, misbehaved):
    """No process is left (the nursery sees to that: a worker's children go with it), and others are whole."""
    life, err, table = misbehaved
    assert (
        life.code == 1
        and err == f"kvmark: {len(TOYS) + 1} of 18 cells crashed or timed out; see the report.\n"
    )
    whole = table[table.architecture == "transformer"]
    assert (whole.status == "ok").all() and len(whole[whole.metric == "prefill_s"]) == 2
    assert left_over(nursery.bench.cwd / "toys") == []


# --- the clock -------------------------------------------------------------------------------------

#: Every look at the wall clock goes back by an hour.
BACKWARDS = """
import datetime, itertools, time
back, wall, wall_ns = itertools.count(), time.time, time.time_ns
time.time = lambda: wall() - 3600 * next(back)
time.time_ns = lambda: wall_ns() - 3600 * 10**9 * next(back)
class Backwards(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Backwards
sys_modules = __import__("sys").modules
for module in list(sys_modules.values()):
    if getattr(module, "__name__", "").split(".")[0] in ("harness", "suites", "models"):
        if hasattr(module, "datetime"):
            module.datetime = Backwards
"""


def test_a_wall_clock_that_goes_backwards_changes_nothing(nursery, whole, tmp_path):
    """Killed half-way, resumed a day "earlier"; all times are of the monotonic clock, so all are positive."""
    run = tmp_path / "run"
    fault = Fault("worker", "os.rename", "/cells/", 2, AFTER)
    life = nursery.run(*RUN, "--out", str(run), fault=fault, first=BACKWARDS)
    assert life.code in (0, 1), nursery.err
    finished = {n: b for n, b in cells(run).items() if outcome(run / "cells" / n)[0] == "ok"}
    again = nursery.run(*RUN, "--out", str(run), "--retry-failed", first=BACKWARDS)
    assert again.code == 0, nursery.err
    it_goes_on(nursery, run, finished)
    table, series = rows(run), telemetry(run)
    assert not (table[table.unit == "s"].value < 0).any()
    assert series.t_s.between(0, 10**9).all(), "seconds since boot, not since 1970"
    assert all(part.t_s.is_monotonic_increasing for _, part in series.groupby("job"))
    expected = rows(nursery.bench.cwd / "whole")
    assert set(table.metric) - {"load_s"} == set(expected.metric) - {"load_s"}
