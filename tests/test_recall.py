"""Associative recall: the sequences are well posed, every value asked for is there once, scoring is exact."""

from __future__ import annotations

import math
from string import ascii_lowercase

import pytest
import torch
from suite_help import OTHERS, TOKENIZER, all_cases

import suites
from harness.execute import execute, requests
from models.spec import SpecError
from suites import Answer, Context
from suites.documents import TextError


@pytest.fixture(params=["bytes", *OTHERS])
def anyone(request, tmp_path):
    """Every tokenizer, the bytes included."""
    return TOKENIZER if request.param == "bytes" else OTHERS[request.param](tmp_path)


def cases_of(options: str, tokenizer=TOKENIZER, seed: int = 0) -> list:
    return all_cases(f"recall:{options}", Context(tokenizer, None, seed))


def answer_of(prompt: tuple[int, ...], key_tokens: int) -> int:
    """What followed the last `key_tokens` tokens where they stood before: what an induction head says."""
    key = prompt[-key_tokens:]
    places = [i for i in range(len(prompt) - key_tokens) if prompt[i : i + key_tokens] == key]
    assert len(places) == 1, "the key occurs once before it is asked for"
    return prompt[places[0] + key_tokens]


@pytest.mark.parametrize("options", ["", "tokens=letters,key_tokens=2,", "key_tokens=3,"])
def test_the_value_that_followed_the_key_is_the_answer(anyone, options):
    key_tokens = suites.options(f"recall:{options}").key_tokens
    cases = cases_of(f"{options}lengths=200,pairs=4+30,trials=2,queries=5", anyone)
    assert len(cases) == 2 * (4 + 5)
    for case in cases:
        assert len(case.prompt) == case.axes["prompt_tokens"] == 200 - key_tokens
        assert len(case.forced) == key_tokens + 1
        assert answer_of(case.prompt + case.forced[:-1], key_tokens) == case.forced[-1]
        ((start, stop),) = case.watched
        assert stop == start + 1 and case.prompt[start] == case.forced[-1]
        assert case.axes["distance"] == 200 - start
        first = 0 if anyone.bos is None else 1
        assert first == 0 or case.prompt[0] == anyone.bos
        assert set(case.prompt[first:]) <= set(anyone.plain_ids)


def test_pairs_come_first_then_filler_that_is_neither_key_nor_value():
    for case in cases_of("lengths=300,pairs=40,trials=2,queries=3"):
        stated, filler, key = case.prompt[1:81], case.prompt[81:], case.forced[0]
        keys, values = stated[::2], stated[1::2]
        assert len(set(keys)) == len(set(values)) == 40 and not set(keys) & set(values)
        assert key in keys and not set(filler) & (set(keys) | set(values))
        assert len(set(filler)) > 60


def test_queries_of_a_trial_share_their_context_and_trials_do_not():
    cases = cases_of("lengths=100,pairs=8,trials=3,queries=8")
    contexts = [(case.prompt, case.seed) for case in cases]
    assert len(set(contexts)) == 3 and contexts[:8] == contexts[:1] * 8
    assert all(len({case.forced for case in cases[n : n + 8]}) == 8 for n in (0, 8, 16))
    assert len({case.id for case in cases}) == 24 and max(requests(cases)) == 2, "a trial is one request"


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ("", {4: 4, 16: 8, 64: 8}),
        ("pairs=4", {4: 4}),
        ("pairs=16+4,queries=16", {4: 4, 16: 16}),
        ("pairs=16,queries=2", {16: 2}),
    ],
)
def test_notes_say_how_many_of_the_pairs_are_asked_for(options, asked):
    suite = suites.load(f"recall:lengths=200,trials=1,{options}", Context(TOKENIZER, None))
    assert {cell["pairs"]: len(list(suite.cases(cell))) for cell in suite.cells()} == asked
    told = ", ".join(f"{count} of {pairs} pairs" for pairs, count in asked.items())
    assert suite.notes()["queries"] == f"{told} in each trial"


def test_cases_are_the_same_every_time_and_others_with_another_seed():
    options = "lengths=100,pairs=8,trials=2"
    assert cases_of(options) == cases_of(options) == cases_of("lengths=100,pairs=8,trials=4")[:16]
    other = cases_of(options, seed=1)
    assert not {c.prompt for c in other} & {c.prompt for c in cases_of(options)}
    assert not {c.id for c in other} & {c.id for c in cases_of(options)}


def test_letters_are_letters(anyone):
    for case in cases_of("lengths=120,pairs=8,trials=1,key_tokens=2,tokens=letters", anyone):
        first = 0 if anyone.bos is None else 1
        texts = {anyone.decode([id]).strip() for id in case.prompt[first:]}
        assert texts <= set(ascii_lowercase)


def test_scoring_is_the_likeliest_token_and_its_cost():
    suite = suites.load("recall:lengths=100,pairs=4", Context(TOKENIZER, None))
    case = next(suite.cases(suite.cells()[0]))
    for found in (True, False):
        answer = Answer(case.forced, (math.log(0.5), math.log(0.25)), likeliest=(not found, found))
        score = suite.score(case, answer)
        assert score == {"recall_accuracy": float(found), "gold_nll_nats": pytest.approx(math.log(4))}


@pytest.mark.parametrize("spec", ["h2o:budget=16", "snapkv:budget=16,window=4", "tova:budget=16,prompt=bulk"])
def test_a_policy_that_decides_at_the_end_of_the_prompt_meets_its_decision(network, spec):
    """The key is asked for after it: the value's likelihood is that of what was kept."""
    cases = cases_of("lengths=100,pairs=8,trials=1")
    full, evicting = (
        execute(network(name, "conv", torch.float64, vocab=TOKENIZER.vocab_size), cases, TOKENIZER, "cpu")
        for name in ("transformer", spec)
    )
    assert all(evicting[1].evicted)
    pairs = zip(full[0], evicting[0], strict=True)
    assert all(abs(a.logprobs[-1] - b.logprobs[-1]) > 1e-6 for a, b in pairs)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("pairs=0", "1 or more"),
        ("queries=0", "1 or more"),
        ("queries=100,pairs=4", "queries must be 4 or less"),
        ("queries=65", "queries must be 64 or less"),
        ("key_tokens=5", "1 to 4"),
        ("lengths=100,pairs=64", "130 or more"),
        ("lengths=130,pairs=64,key_tokens=2", "195 or more"),
        ("tokens=words", "plain, letters"),
    ],
)
def test_wrong_options_are_one_sentence(options, named):
    with pytest.raises(SpecError, match=named):
        suites.load(f"recall:{options}", Context(TOKENIZER, None))


def test_a_vocabulary_that_is_too_small_is_one_sentence():
    with pytest.raises(TextError, match="256 tokens make 85 keys, 90 are asked for"):
        cases_of("lengths=300,pairs=90")
    assert len(cases_of("lengths=300,pairs=85,trials=1")) == 8
    with pytest.raises(TextError, match="26 tokens make 8 keys"):
        cases_of("lengths=300,pairs=9,tokens=letters")


def test_recall_runs_through_the_cache(network):
    """Accuracy is the argmax of the forward; a window loses what stood first."""
    suite = suites.load("recall:lengths=60,pairs=12,trials=2,queries=4", Context(TOKENIZER, None))
    cases = list(suite.cases(suite.cells()[0]))
    net = network("transformer", vocab=260)
    answers, readings = execute(net, cases, TOKENIZER, "cpu")
    for case, answer, found in zip(cases, answers, readings.held, strict=True):
        logits_V = net.forward(torch.tensor([case.prompt + case.forced[:-1]]))[0, -1]
        score = suite.score(case, answer)
        assert score["recall_accuracy"] == float(logits_V.argmax() == case.forced[-1])
        assert score["gold_nll_nats"] == pytest.approx(-logits_V.log_softmax(-1)[case.forced[-1]].item())
        assert {one.share for one in found} == {1.0}
    _, readings = execute(network("window:budget=16", vocab=260), cases, TOKENIZER, "cpu")
    assert {one.share for found in readings.held for one in found} == {0.0}
