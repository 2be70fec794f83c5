"""--model: what is recorded of a checkpoint - labels, manifest, remarks - and that it is what is opened."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from command_help import ask
from harness_help import ROOT
from model_help import SIZES, desk_with_a_book, llama, measured
from pretrained_help import write_checkpoint
from tokenizer_help import write_byte_bpe

from harness.errors import UsageError
from harness.loading import short, weights_of
from harness.manifest import write_manifest
from harness.plan import Cell, Plan, Settings
from harness.pretrained import open_model
from harness.rows import base_row, cell_rows
from harness.runner import prepare
from harness.worker import CONTRACT_VERSION, EXIT_ENVIRONMENT
from models import lookup


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    return desk_with_a_book(tmp_path, monkeypatch)


def test_labels_name_checkpoint_and_fingerprint(desk):
    path = llama(desk / "tiny")
    opened = open_model(path)
    found = weights_of("tova", Settings(model=str(path)), opened.pretrained)
    assert found.label == f"tiny@{opened.pretrained.fingerprint[:12]}"
    assert found.cards["tiny"]["sha256"] == opened.pretrained.fingerprint
    assert "200" in found.cards["tiny"]["notes"] and found.cards["tiny"]["parameters"] > 0
    assert short("sampled-" + "0" * 64) == "sampled-" + "0" * 12 and short("ab" * 32) == "ab" * 6


# --- remarks --------------------------------------------------------------------------------------


def test_the_remark_is_no_reason_for_a_missing_number():
    """The report explains numbers that are not there by their message."""
    base = replace(base_row("run", Cell("key", "tova", "pg19", {}), Settings()), message="beyond")
    found = list(cell_rows(base, {"one": 1.0, "none": math.nan}))
    assert [row.message for row in found] == ["beyond", None]


def test_the_plan_says_what_goes_beyond_the_context(desk):
    llama(desk / "tiny")
    done = ask("plan", "--model", "tiny", "-a", "tova", "-s", "decode", "--contexts", "100,300")
    assert done.code == 0
    assert "goes up to 332 tokens, beyond the checkpoint's context of 200." in done.out


def test_a_window_within_the_budget_is_remarked_and_stands_in_the_rows(desk):
    write_checkpoint(desk / "sliding", "mistral", **SIZES | {"sliding_window": 40})
    write_byte_bpe(desk / "sliding")
    specs = ("transformer", "tova:budget=39", "tova:budget=40")
    plan = Plan("p", specs, ("decode:contexts=60,new_tokens=3",), Settings(model="sliding"))
    prepared = prepare(plan)
    (remark,) = prepared.remarks
    assert remark.startswith("tova:budget=40: the checkpoint's own sliding window of 40 tokens lies within")
    for spec in specs:
        found = measured(prepared, spec, prepared.plan.suites[0])
        said = {row.message for row in found if not math.isnan(row.value)}
        assert said == {remark.removeprefix(f"{spec}: ").rstrip(".") if spec == specs[2] else None}
        budgets = [row.value for row in found if row.metric == "budget_tokens"]
        assert budgets == ([] if spec == "transformer" else [float(spec[-2:])])
        kept = {row.metric for row in found if row.metric.startswith("retained")}
        assert bool(kept) is (spec != "transformer"), "a window of the network is no policy"


# --- what is opened is what was prepared ----------------------------------------------------------


def refusal_of_worker(desk: Path, prepared, **changes) -> str:
    """What a worker process says to its job file, which has no cell to measure; "" if all is well."""
    job = {
        "version": CONTRACT_VERSION, "parent_pid": os.getpid(), "run": "r", "out": "r", "text": None,
        "text_label": None, "sources": {}, "machine": "m", "weights": {}, "groups": [], "architectures": {},
        "settings": asdict(prepared.settings), "checkpoint": prepared.checkpoint,
    }  # fmt: skip
    (desk / "JOB.json").write_text(json.dumps(job | changes))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.worker", "JOB.json"], cwd=desk, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (EXIT_ENVIRONMENT if done.stderr else 0) and "Traceback" not in done.stderr
    return done.stderr


def test_a_worker_refuses_what_changed_since_it_was_prepared(desk, monkeypatch):
    path = llama(desk / "tiny")
    prepared = prepare(Plan("p", ("tova:budget=8",), ("decode:contexts=20",), Settings(model="tiny")))
    (desk / "mine.py").write_text("pass")
    monkeypatch.setenv("KVMARK_ARCHITECTURES", str(desk / "mine.py"))
    known = {"mine:budget=4": lookup.fingerprint("mine"), "tova:budget=8": None}
    assert refusal_of_worker(desk, prepared, architectures=known) == ""
    said = refusal_of_worker(desk, prepared, architectures={"mine:budget=4": "abc"})
    assert re.fullmatch(
        "the file of architecture 'mine:budget=4' changed from abc to [0-9a-f]{64}[.]\n", said
    )
    for touched in ("tokenizer.json", "config.json"):
        content = (path / touched).read_text()
        (path / touched).write_text(content + " ")
        said = refusal_of_worker(desk, prepared)
        assert said.startswith(f"the checkpoint changed from {prepared.checkpoint} to tiny@"), said
        (path / touched).write_text(content)


def test_the_manifest_names_budgets_and_another_spelling_is_the_same_plan(desk):
    path, out = llama(desk / "tiny"), desk / "r"
    out.mkdir()

    def manifest(model: str, **settings):
        suite = ("decode:contexts=20",)
        prepared = prepare(Plan("p", ("tova:budget=8",), suite, Settings(model=model, **settings)))
        return write_manifest(prepared, out)

    first = manifest("tiny")
    assert first["architectures"] == {"tova:budget=8": {"sha256": None, "budget": 8}}
    for spelling in ("./tiny", str(path)):
        again = manifest(spelling, tokenizer="tiny/tokenizer.json")
        assert again["cells"] == first["cells"] and again["created"] == first["created"]
    with pytest.raises(UsageError, match="another plan"):
        manifest("tiny", seed=1)
    write_checkpoint(desk / "b" / "tiny", "llama", **SIZES | {"rms_norm_eps": 1e-5})
    write_byte_bpe(desk / "b" / "tiny")
    with pytest.raises(UsageError, match="another plan"):
        manifest("b/tiny")
