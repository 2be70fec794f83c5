"""One execution of one cell: suites that are driven, suites that list, and models that share weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from harness import continuations, execute
from harness.loading import load_model
from harness.measure import Measurement
from harness.plan import Cell, Settings
from harness.rows import base_row
from suites.suite import Case, Context, Suite
from suites.tokenizer import ByteTokenizer

SETTINGS = Settings(shape="tiny", batch=2)


class Driven(Suite):
    """A toy library: it asks in two rounds, the second depending on the first."""

    driven = True

    def drive(self, cell, run):
        first = run([Case(f"a{i}", (1, 2, 3 + i), forced=(5, 6)) for i in range(3)])
        best = max(range(3), key=lambda i: sum(first[i].logprobs))
        second = run([Case("b", (1, 2, 3 + best, 9), max_new_tokens=2)])
        return {"picked": float(best), "length": float(len(second[0].tokens))}


def measure(suite: Suite, spec: str = "window:budget=4,sinks=1", repeat=None):
    cell = Cell("key", spec, "toy", {"context": 8})
    return Measurement(
        load_model(spec, SETTINGS), suite, cell, SETTINGS, repeat,
        base=lambda cell, **known: base_row("run", cell, SETTINGS, **known),
        on_phase=lambda phase: None,
    ).measure()  # fmt: skip


def test_a_driven_suite_runs_through_the_same_loop():
    """Its cases go through `execute` (cost, evictions, bytes), and its metrics are rows of the cell."""
    rows = measure(Driven(Suite.Options(), Context(ByteTokenizer(), None)))
    values = {row.metric: row for row in rows if row.case is None}
    assert values["picked"].value in (0.0, 1.0, 2.0) and values["length"].value == 2.0
    assert values["cache_bytes_live"].value > 0
    assert {row.case for row in rows if row.metric == "evicted_tokens"} == {"a0", "a1", "a2", "b"}
    assert rows[0].requests == 4 and rows[0].requests_with_eviction == 1  # only "b" sees more than 4 tokens


def test_warm_up_gives_no_rows():
    assert measure(Driven(Suite.Options(), Context(ByteTokenizer(), None)), repeat=-1) == []


class Stepped(Suite):
    axis, interleaved, scored = "systems", True, False

    def cases(self, cell):
        yield Case("c", (1, 2, 3), forced=(4, 5, 6), step_forced=True, scored=self.scored)

    def score(self, case, answer):
        return {"first_logprob": answer.logprobs[0]}


@pytest.mark.parametrize("scored", [True, False])
def test_a_stepped_case_is_scored_only_if_it_wants(scored):
    suite = Stepped(Suite.Options(), Context(ByteTokenizer(), None))
    suite.scored = scored
    rows = measure(suite, "transformer", repeat=0)
    value = next(row.value for row in rows if row.metric == "first_logprob")
    assert math.isnan(value) is not scored
    assert sum(row.metric == "decode_step_s" for row in rows) == 2


def test_architectures_on_the_same_weights_share_their_tensors():
    """A process that holds several pays once; what differs stays apart; answers do not change."""
    shared: dict = {}
    # Both compressors fold into two slots, so their shapes are equal and their weights are not.
    specs = ("transformer", "tova:budget=4", "lococo:budget=4", "lococo:budget=8,heavy=0.75", "yoco")
    models = {spec: load_model(spec, SETTINGS, shared) for spec in specs}
    pointers = {spec: {p.data_ptr() for p in model.parameters()} for spec, model in models.items()}
    assert pointers["transformer"] == pointers["tova:budget=4"]
    assert pointers["transformer"] < pointers["lococo:budget=4"]
    assert not pointers["transformer"] & pointers["yoco"]
    both = pointers["lococo:budget=4"] & pointers["lococo:budget=8,heavy=0.75"]
    assert both == pointers["transformer"]
    tokens_BT = torch.randint(0, 256, (1, 9))
    for spec, model in models.items():
        alone = load_model(spec, SETTINGS)
        assert torch.equal(model(tokens_BT), alone(tokens_BT))


class Scored(Suite):
    """Five requests of growing length in batches of two."""

    def cases(self, cell):
        for i in range(5):
            yield Case(f"c{i}", tuple(range(6 + i)), forced=(4, 5, 6))

    def score(self, case, answer):
        return {}


@pytest.mark.parametrize(
    ("chunk", "mode"), [(None, "stepwise"), (10, "stepwise"), (9, "stepwise, chunks of 9")]
)
def test_chunks_are_named_where_a_prompt_of_the_cell_was_cut(monkeypatch, chunk, mode):
    """The longest prompt has 10 tokens."""
    monkeypatch.setitem(globals(), "SETTINGS", replace(SETTINGS, prefill_chunk=chunk))
    rows = measure(Scored(Suite.Options(), Context(ByteTokenizer(), None)))
    assert {row.prompt_mode for row in rows} == {mode}


def test_what_was_kept_over_several_batches_is_of_no_batch():
    rows = measure(Scored(Suite.Options(), Context(ByteTokenizer(), None)))
    kept = [row for row in rows if row.metric.startswith("retained")]
    assert kept and {row.batch for row in kept} == {None}
    assert {row.batch for row in rows if row not in kept} == {1, 2}
    assert {row.value for row in rows if row.metric == "budget_tokens"} == {4.0}


def test_what_each_case_saw_is_counted_without_the_token_that_is_never_fed():
    rows = measure(Scored(Suite.Options(), Context(ByteTokenizer(), None)))
    seen = {row.case: row.value for row in rows if row.metric == "seen_tokens"}
    assert seen == {f"c{i}": 6 + i + 3 - 1 for i in range(5)}


def test_a_driven_suite_whose_answers_were_not_finite_says_so_with_every_score(monkeypatch):
    """It scores by itself, and the largest of what is no number is its first choice."""

    class Driven(Scored):
        driven = True

        def drive(self, axes, run):
            answers = run(list(self.cases(axes)))
            return {"acc": 1.0, "asked": float(len(answers))}

    real = continuations.score

    def failing(model, cases, *others):
        answers = real(model, cases, *others)
        return [replace(a, logprobs=(math.nan,) * len(a.logprobs)) for a in answers]

    def scores():
        rows = measure(Driven(Suite.Options(), Context(ByteTokenizer(), None)))
        return {row.metric: row.message for row in rows if row.metric in ("acc", "asked")}

    assert scores() == {"acc": None, "asked": None}
    monkeypatch.setattr(execute, "score", failing)
    said = "The model's logits were not finite (first at token 1 of 3)."
    assert scores() == {"acc": said, "asked": said}


def test_logits_that_are_not_finite_are_said_with_the_score(monkeypatch):
    """The third case meets a network that has stopped giving numbers, from its second token on."""

    class Marked(Scored):
        def score(self, case, answer):
            return {"nll_nats": -sum(answer.logprobs), "bucket_nll_nats": [-one for one in answer.logprobs]}

    real = continuations.score

    def failing(model, cases, *others):
        answers = real(model, cases, *others)
        broken = [replace(a, logprobs=(a.logprobs[0], math.nan, math.nan)) for a in answers]
        return [b if case.id == "c2" else a for case, a, b in zip(cases, answers, broken, strict=True)]

    monkeypatch.setattr(execute, "score", failing)
    rows = measure(Marked(Suite.Options(), Context(ByteTokenizer(), None)))
    scored = [row for row in rows if row.metric in ("nll_nats", "bucket_nll_nats")]
    said = "The model's logits were not finite (first at token 2 of 3)."
    assert {row.message for row in scored if row.case == "c2"} == {said}
    assert {row.message for row in scored if row.case != "c2"} == {None}
    assert {row.status for row in scored} == {"ok"}
