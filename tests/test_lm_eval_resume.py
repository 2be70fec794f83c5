"""Hundreds of requests, killed in the middle: a run goes on where it was, and each budget asks for itself.

A thousand in the slow tier.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from harness_help import Bench, rows, wait_for
from lm_eval_help import write_model, write_rows

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

#: TOVA that writes down each batch it is given a cache for; a batch takes long enough to be interrupted.
LOGGED = '''"""TOVA that counts its batches."""

import os
import time
from pathlib import Path

from .tova import Model as Tova
from .tova import Options as Options


class Model(Tova):
    def new_cache(self, batch, capacity, dtype=None, device=None, seeds=None, prompts=None):
        if str(device) != "meta":
            with (Path(os.environ["TOY_HERE"]) / "batches").open("a") as file:
                file.write(f"{self.options.budget}\\n")
            time.sleep(0.05)
        return super().new_cache(batch, capacity, dtype, device, seeds, prompts)
'''
BATCH = 20


@pytest.fixture
def bench(tmp_path, monkeypatch, questions):
    """The sources with that architecture, so many questions of two choices, and a checkpoint."""
    monkeypatch.setenv("KVMARK_CACHE", str(write_rows(tmp_path / "cache", questions)))
    write_model(tmp_path / "model")
    bench = Bench(tmp_path)
    (bench.source / "models" / "architectures" / "logged.py").write_text(LOGGED)
    return bench


def command(model: Path, out: str, *budgets: int) -> list[str]:
    plan = model.parent / f"{out}.toml"
    plan.write_text(
        f"architectures = {[f'logged:budget={budget}' for budget in budgets]}\n"
        f'suites = ["lm_eval:tasks=piqa,local=true"]\nmodel = "{model}"\nbatch = {BATCH}\n'
    )
    return ["run", str(plan), "--out", out, "--no-report"]


def executed(bench: Bench) -> Counter:
    """Batches that were begun, by budget."""
    file = bench.here / "batches"
    return Counter(map(int, file.read_text().split()) if file.exists() else ())


def kill(process) -> None:
    """SIGKILL for the parent and for its worker, as when a machine goes down."""
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"harness.worker" in (folder / "cmdline").read_bytes():
                workers.append(int(folder.name))
    assert len(workers) == 1
    for pid in (process.pid, *workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "questions", [pytest.param(200, marks=pytest.mark.full), pytest.param(500, marks=pytest.mark.slow)]
)
def test_a_killed_task_goes_on_and_budgets_share_nothing(bench, tmp_path, questions):
    asked = command(tmp_path / "model", "killed", 16, 24)
    run, batches = bench.cwd / "killed", questions // BATCH
    process = bench.start(*asked)
    try:
        wait_for(lambda: executed(bench)[16] >= batches // 2)
        kill(process)
    finally:
        process.kill()
        process.communicate()
    (journal,) = (run / "unfinished").glob("*.jsonl")
    finished = sum(bool(line.strip()) for line in journal.read_bytes().split(b"\n"))
    begun = executed(bench)[16]
    assert begun - 1 <= finished <= begun < batches, "every batch but the one in flight is on the disk"
    assert not list((run / "cells").iterdir()) and executed(bench)[24] == 0

    done = bench.run(*asked)
    assert (done.code, done.broke) == (0, None), done.err
    assert executed(bench)[16] == begun + batches - finished, "nothing that was finished was asked again"
    assert executed(bench)[24] == batches, "another budget asks everything"
    assert not list((run / "unfinished").iterdir())

    table = rows(run)
    assert set(table.requests) == {2 * questions} and set(table.status) == {"ok"}
    assert bench.run(*command(tmp_path / "model", "whole", 16)).code == 0
    whole = rows(bench.cwd / "whole")
    mine, others = (table[table.architecture == f"logged:budget={budget}"] for budget in (16, 24))
    for metric in ("acc", "acc_norm", "evicted_tokens", "seen_tokens", "truncated_requests"):
        one, other = (t[t.metric == metric][["case", "value"]].reset_index(drop=True) for t in (mine, whole))
        assert len(one) in (1, 2 * questions) and one.equals(other), metric
    evicted = [t[t.metric == "evicted_tokens"].value.sum() for t in (mine, others)]
    assert evicted[0] > evicted[1] > 0, "the budgets did different things"


def test_the_checkpoints_context_bounds_requests(tmp_path, monkeypatch):
    """Where no max_length is given: in the worker, which cuts, and in the manifest, which says so."""
    monkeypatch.setenv("KVMARK_CACHE", str(write_rows(tmp_path / "cache", 2)))
    model, bench = write_model(tmp_path / "model", context=40), Bench(tmp_path)
    model = ["--model", str(model), "--suite", "lm_eval:tasks=piqa,local=true"]
    done = bench.run("run", "--arch", "window:budget=16", *model, "--out", "cut", "--no-report")
    assert (done.code, done.broke) == (0, None), done.err
    table = rows(bench.cwd / "cut")
    assert table[table.metric == "truncated_requests"].value.item() > 0
    assert table[table.metric == "seen_tokens"].value.max() <= 40
    assert not table.message.astype(str).str.contains("beyond").any()
    assert "40; longer requests are cut" in (bench.cwd / "cut" / "run.json").read_text()
