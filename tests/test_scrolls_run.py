"""The scrolls suite through the cache, with our own weights: what its rows hold, and whom they tell apart."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest
from harness_help import Bench, rows
from scrolls_help import ROWS, asked, write

import suites
from harness.loading import load_model
from harness.measure import Measurement
from harness.plan import Cell, Settings
from harness.rows import base_row
from suites import Context
from suites.data import find
from suites.scrolls.tasks import TASKS
from suites.tokenizer import ByteTokenizer

SETTINGS = Settings(batch=8)
GENUINE = os.environ.get("KVMARK_DATA")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def measure(architecture: str, spec: str) -> list:
    suite = suites.load(spec, Context(ByteTokenizer(), None))
    found = []
    for axes in suite.cells():
        found += Measurement(
            load_model(architecture, SETTINGS), suite, Cell("key", architecture, spec, axes), SETTINGS, None,
            base=lambda cell, **known: base_row("run", cell, SETTINGS, **known),
            on_phase=lambda phase: None,
        ).measure()  # fmt: skip
    return found


def nlls(found: list) -> dict[str, float]:
    return {row.case: row.value for row in found if row.metric == "gold_nll_nats"}


def test_gold_likelihood_tells_an_evicting_cache_from_a_full_one(data):
    """At an eighth of the prompt all requests evict, and at the whole prompt and answer none does."""
    names = "Anna Boris Clara David Emma Fritz Greta Hans Ida Jakob Klara Leo".split()
    examples = []
    for n, name in enumerate(names):
        story = " ".join(f"In the year {1700 + 3 * i + n} {name} went to the sea again." for i in range(30))
        examples += asked(f"n{n}", "Who went to the sea?", f"It was {name}.", document=story)
    write(data, "narrative_qa", examples)
    spec = "scrolls:tasks=narrative_qa,length=512,max_new=2"
    full, same, tova = (measure(a, spec) for a in ("transformer", "tova:budget=600", "tova:budget=64"))
    exercised = {row.case for row in tova if row.metric == "evicted_tokens" and row.value > 0}
    assert exercised == set(nlls(full)) == {f"n{n}" for n in range(12)}
    differs = [abs(value - nlls(full)[case]) > 1e-6 for case, value in nlls(tova).items()]
    assert sum(differs) >= 0.9 * len(exercised)
    assert not any(row.value for row in same if row.metric == "evicted_tokens")
    assert nlls(same) == pytest.approx(nlls(full), abs=1e-4)


def test_rows_hold_predictions_by_id_and_neither_inputs_nor_references(data):
    for task, its_rows in ROWS.items():
        write(data, task, its_rows)
    found = measure("tova:budget=64", f"scrolls:tasks={'+'.join(ROWS)},length=512,max_new=8")
    answers = {row.case: row.answer for row in found if row.metric == "answer_tokens"}
    assert set(answers) == {its_rows[0]["id"] for its_rows in ROWS.values()}
    assert all(isinstance(answer, str) for answer in answers.values())
    assert {row.metric for row in found} >= {"gold_nll_nats", "rouge2", "token_f1", "exact_match"}
    told = json.dumps([{**asdict(row), "answer": None} for row in found], ensure_ascii=False)
    for words in ("naïve", "sacks", "miller", "baker", "plot"):
        assert words not in told
    modes = {row.scoring_mode for row in found if row.case == "q1" and row.metric == "seen_tokens"}
    assert modes == {"cache-extend, segments of 512", "cache-generate"}
    seen = {row.case for row in found if row.metric == "evicted_tokens" and row.value == 0}
    assert not seen, "every prompt is longer than the budget"


def test_a_short_answer_ends_with_its_line_and_is_marked_without_what_follows(data):
    """Our own network repeats a list whose lines begin with the cue; of a summary no line is the end."""
    for task in ("qasper", "squality"):
        write(data, task, asked("a1", "Which number?", "4711", document="Answer: 4711\n" * 12))
    found = measure("transformer", "scrolls:tasks=qasper+squality,prompt=scrolls,length=512,max_new=30")
    phrase, summary = [row for row in found if row.metric == "answer_tokens"]
    assert (phrase.answer, phrase.value) == (" 4711", len(" 4711\n"))
    assert summary.answer.startswith(" 4711\nAnswer: ") and summary.value == 30
    scores = {row.metric: row.value for row in found if row.metric in ("token_f1", "rouge1")}
    assert scores["token_f1"] == 1 and scores["rouge1"] < 1


@pytest.mark.full
@pytest.mark.skipif(not GENUINE, reason="KVMARK_DATA is unset: no genuine SCROLLS rows")
def test_genuine_rows_of_every_task_run_end_to_end(tmp_path, monkeypatch):
    here = [task for task in TASKS if find(f"scrolls/{task}/validation.jsonl")]
    if not here:
        pytest.skip("KVMARK_DATA holds no scrolls folder")
    bench = Bench(tmp_path)
    monkeypatch.setenv("KVMARK_CACHE", GENUINE)  # what a bench hands on
    spec = f"scrolls:tasks={'+'.join(here)},length=1024,examples=2,max_new=16"
    done = bench.run(
        "run",
        "--arch",
        "transformer",
        "--arch",
        "tova:budget=128",
        "--suite",
        spec,
        "--out",
        "r",
        "--no-report",
    )
    assert done.code == 0, done.err
    table = rows(bench.cwd / "r")
    gold = table[table.metric == "gold_nll_nats"]
    assert len(gold) == 2 * 2 * len(here) and (gold.value > 0).all()
    by_case = gold.pivot(index=["axes", "case"], columns="architecture", values="value")
    assert len(by_case) == 2 * len(here)
    assert ((by_case["transformer"] - by_case["tova:budget=128"]).abs() > 1e-6).mean() >= 0.9
    assert table[table.metric == "answer_tokens"].answer.notna().all()
    assert set(table.text) == {suites.load(spec, Context(ByteTokenizer(), None)).source()}
    evicting = table[table.architecture == "tova:budget=128"]
    assert (evicting.requests_with_eviction == evicting.requests).all()
