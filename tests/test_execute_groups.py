"""Continuations of one batch that are scored in groups: nobody's answer may depend on who stood beside it."""

from __future__ import annotations

import math

import pytest
import torch
from test_execute import TOKENIZER, draw, tight

from harness import execute as loop
from harness.clock import Window
from harness.execute import even_parts, execute
from suites.suite import Case


@pytest.fixture
def questions() -> list[Case]:
    """Seven questions of different length with three choices of different length each."""
    return [
        Case(f"q{q}c{c}", draw(q, 4 + 3 * q), forced=draw(50 + 3 * q + c, 1 + (5 * q + 7 * c) % 11), seed=q)
        for q in range(7)
        for c in range(3)
    ]


@tight
def test_groups_say_what_each_case_says_alone(network, monkeypatch, spec, questions):
    net = network(spec, "conv", torch.float64, vocab=TOKENIZER.vocab_size)
    monkeypatch.setattr(loop, "SCORE_ROWS", 5)  # but never below the number of requests: 7, 7, 7
    seen: list[int] = []
    score = loop.score

    def noting(model, cases, *others):
        seen.append(len(cases))
        assert [len(case.forced) for case in cases] == sorted((len(c.forced) for c in cases), reverse=True)
        return score(model, cases, *others)

    monkeypatch.setattr(loop, "score", noting)
    answers, readings = execute(net, questions, TOKENIZER, "cpu")
    assert seen == [7, 7, 7]
    monkeypatch.setattr(loop, "score", score)
    alone = [execute(net, [case], TOKENIZER, "cpu") for case in questions]
    for case, answer, (single, _) in zip(questions, answers, alone, strict=True):
        assert answer.tokens == case.forced
        assert answer.logprobs == pytest.approx(single[0].logprobs, abs=1e-9)
    assert readings.evicted == [own.evicted[0] for _, own in alone]
    assert readings.new_tokens == [len(case.forced) for case in questions]


def test_groups_are_one_part_whose_cost_is_all_of_theirs(network, monkeypatch, questions):
    net = network("transformer", "conv", torch.float64, vocab=TOKENIZER.vocab_size)
    monkeypatch.setattr(loop, "SCORE_ROWS", 1)
    windows: list[Window] = []
    add = Window.__add__
    monkeypatch.setattr(Window, "__add__", lambda a, b: windows.append(b) or add(a, b))
    _, readings = execute(net, questions, TOKENIZER, "cpu")
    (part,) = readings.parts
    assert part.num_tokens == sum(len(case.forced) for case in questions)
    assert len(windows) == 2 and part.window.wall_s > sum(window.wall_s for window in windows) > 0
    assert part.peak_bytes is None or part.peak_bytes > 0


def test_even_parts_are_few_and_even():
    for count in range(1, 40):
        for most in range(1, 12):
            parts = even_parts(range(count), most)
            sizes = [len(part) for part in parts]
            assert [item for part in parts for item in part] == list(range(count))
            assert len(parts) == math.ceil(count / most) and max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1


def test_windows_add_up_and_what_one_does_not_know_stays_unknown():
    both = Window(1.0, 2.0, 1.5, 0.5) + Window(3.0, 6.0, 4.0, 0.1)
    assert both == Window(4.0, 8.0, 5.5, pytest.approx((0.5 * 2 + 0.1 * 6) / 8))
    unknown = Window(1.0, 2.0, 1.5, None) + Window(3.0, 6.0, None, 0.1)
    assert unknown == Window(4.0, 8.0, None, None)


@tight
def test_a_group_that_holds_every_request_once_leaves_the_prompts_cache_to_the_next(network, spec):
    """Yes-or-no questions, as many as a group holds: the longer answers are a group in their order."""
    net = network(spec, "conv", torch.float64, vocab=TOKENIZER.vocab_size)
    cases = [
        Case(f"q{q}c{c}", draw(q, 9 + q % 3), forced=draw(50 + 2 * q + c, 2 + 5 * c), seed=q)
        for q in range(12)
        for c in range(2)
    ]
    answers, readings = execute(net, cases, TOKENIZER, "cpu")
    alone = [execute(net, [case], TOKENIZER, "cpu") for case in cases]
    for answer, (single, _) in zip(answers, alone, strict=True):
        assert answer.logprobs == pytest.approx(single[0].logprobs, abs=1e-9)
    assert readings.evicted == [own.evicted[0] for _, own in alone]


@tight
def test_what_is_held_of_watched_spans_is_of_each_case_itself(network, spec):
    """Prompts and spans of different length in one batch, scored and generating, several on one prompt."""
    net = network(spec, "conv", torch.float64, vocab=TOKENIZER.vocab_size)
    spans = [((1, 4),), ((2, 9), (11, 13)), ((6, 8),)]
    cases = [
        Case(f"c{i}", draw(i, 9 + 4 * i), watched=spans[i], seed=i, **how)
        for i in range(3)
        for how in ({"forced": draw(60 + i, 3 + i)}, {"max_new_tokens": 2 + i})
    ]
    _, readings = execute(net, cases, TOKENIZER, "cpu")
    alone = [execute(net, [case], TOKENIZER, "cpu")[1].held[0] for case in cases]
    assert readings.held == alone
    shares = {held.share for own in alone for held in own}
    keeps_all = spec.startswith(("lococo", "transformer", "yoco:mixer=retention"))
    assert keeps_all or len(shares) > 1, "something was lost"
