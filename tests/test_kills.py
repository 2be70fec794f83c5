"""Two hundred random kills of a small run: whoever dies, whenever, nothing finished is lost or changed.

A folder is begun, killed up to ten times while the same command tries to complete it, and then let go. Who
dies is drawn, and after how many of its dealings with the file system (`fault_help`), which spreads the kills
over a life from the first look at the folder to the last rename, on a fast machine as on a slow one; up to
20 ms more let it die inside a computation, too.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from fault_help import Life, Nursery
from harness_help import Bench, cells, rows
from test_faults import left_over

from harness.store import outcome

pytestmark = pytest.mark.full

KILLS, PER_FOLDER, CELLS = 200, 10, 3
#: Two jobs: one of two cells, and one of a cell that has three batches and so a journal.
PLAN = ("--arch", "window:budget=64", "--repeats", "1", "--batch", "1")
PLAN += ("--suite", "decode:contexts=32+64,new_tokens=2")
PLAN += ("--suite", "needle:lengths=128,depths=0.5,trials=3,max_new=2")
RUN = ("run", *PLAN, "--no-ceilings")
#: Who dies, and how often. "run": parent and sampler, as by `kill -9 -GROUP`; "all": the worker with them.
VICTIMS = {"parent": 10, "worker": 4, "sampler": 1, "run": 3, "all": 2}
#: Its page and table are drawn from the rows, and cost more than the run.
NO_PAGE = """
import harness.report, harness.show
harness.report.build, harness.show.summary_table = lambda runs, out: out, lambda folder: None
"""
#: What identifies a number.
NAMES = ["cell", "metric", "case", "repeat", "step", "layer", "bin", "phase", "axes"]


def kill(victim: str, life: Life, signal_number: int) -> bool:
    """Send it; False if nobody of those is left."""
    roles = {"run": ("parent", "sampler"), "all": ("parent", "sampler", "worker")}.get(victim, (victim,))
    sent = False
    for role in roles:
        if role in life.pids and Path(f"/proc/{life.pids[role]}/cmdline").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(life.pids[role], signal_number)
                sent = True
    return sent


def killed_once(
    nursery: Nursery, run: Path, rng: random.Random, usual: Counter[str]
) -> tuple[str | None, Life]:
    """The command with one random kill; None if it completed before its victim had done so much."""
    victim = rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
    number = rng.choice([signal.SIGKILL] * 3 + [signal.SIGSEGV if victim == "worker" else signal.SIGKILL])
    counted = {"worker": "worker", "sampler": "worker"}.get(victim, "parent")
    done = len(list((run / "cells").glob("*.parquet")))
    most = (
        usual[counted] * (CELLS - done) // CELLS if counted == "worker" else usual[counted] * 3 // (3 + done)
    )
    at, delay_s = rng.randint(1, max(most, 1)), rng.uniform(0, 0.02) * rng.randint(0, 1)
    life, sent = nursery.start(*RUN, "--out", str(run), first=NO_PAGE), False
    end = time.monotonic() + 300
    while life.code is None:
        assert time.monotonic() < end, "waited in vain"
        nursery.watch(life, 1.0)
        if not sent and life.code is None and life.ticks[counted] >= at:
            time.sleep(delay_s)
            sent = kill(victim, life, number)
            at = at if sent else 10**9
    return (victim if sent else None), life


def lasting(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by what identifies them, without what each process has anew: how long it loaded, and how much
    of its memory was resident, which two runs share now and then."""
    own = table.metric.str.match("load_s|baseline_|peak_|rss_")
    table = table[~own].drop(columns=["run", "validity", "validity_reasons"])
    table = table.astype(dict.fromkeys(NAMES, "string")).fillna(dict.fromkeys(NAMES, "-"))
    return table.assign(batch_of_cell=table.groupby(NAMES).cumcount()).set_index([*NAMES, "batch_of_cell"])


def agreed(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """What two undisturbed runs have in common to the last bit: all but times and memory."""
    assert one.index.is_unique
    both = one.index.intersection(other.index)
    plain = [table.loc[both].drop(columns="message").map(repr) for table in (one, other)]
    return one.loc[both][(plain[0] == plain[1]).all(axis=1) & one.loc[both].value.notna()]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(Bench(tmp_path_factory.mktemp("bench")), *PLAN)
    yield nursery
    nursery.close()


def undisturbed(nursery: Nursery, name: str, *more: str) -> Life:
    life = nursery.run(*RUN, "--out", str(nursery.bench.cwd / name), *more, first=NO_PAGE)
    assert life.code == 0, nursery.err
    return life


def test_two_hundred_random_kills(nursery):
    bench, rng = nursery.bench, random.Random(6)
    usual = undisturbed(nursery, "one").ticks
    undisturbed(nursery, "two")
    expected = agreed(*(lasting(rows(bench.cwd / name)) for name in ("one", "two")))
    metrics = {"accuracy_strict", "cache_bytes_live", "evicted_tokens", "answer_tokens", "prefill_flops"}
    assert metrics <= set(expected.index.get_level_values("metric")), "what must repeat exactly"
    kills, ended, stories = Counter(), Counter(), Counter()
    folder = 0
    while kills.total() < KILLS:
        run = bench.cwd / f"killed-{folder}"
        folder += 1
        for _ in range(PER_FOLDER):
            before = cells(run) if run.exists() else {}
            victim, life = killed_once(nursery, run, rng, usual)
            said = nursery.err
            assert "Traceback" not in said, said
            after = cells(run) if (run / "cells").exists() else {}
            assert {name: after.get(name) for name in before} == before, "a finished cell is lost or changed"
            told = {name: outcome(run / "cells" / name) for name in after.keys() - before.keys()}
            assert None not in told.values(), "half a cell"
            failed = [message for status, message in told.values() if status != "ok"]
            if victim is not None:
                kills[victim] += 1
                ended[life.code] += 1
            # A worker died: one cell has its story, or none was in flight. Other deaths are no cell's fault.
            assert len(failed) <= (victim == "worker"), told
            assert all(m.startswith("the worker was ended by SIG") for m in failed), failed
            stories.update(failed)
            assert life.code in (-9, 0, 1, 3), said
            if life.code == 3:
                assert "before it measured anything" in said, said
            if life.code in (0, 1):
                break
        kept = {name: data for name, data in cells(run).items() if outcome(run / "cells" / name)[0] == "ok"}
        if life.code != 0:
            undisturbed(nursery, run.name, "--retry-failed")
        assert kept.items() <= cells(run).items(), "a finished cell is lost or changed"
        assert left_over(run) == []
        now = lasting(rows(run))
        assert now.index.is_unique and set(now.status) == {"ok"}
        pd.testing.assert_frame_equal(now.reindex(expected.index), expected)
    print(
        f"{kills.total()} kills in {folder} folders: {dict(kills)}; exit codes {dict(ended)}; {dict(stories)}"
    )
    assert ended[-9] > KILLS / 4 and stories, "the parent died, and workers in mid-cell"
