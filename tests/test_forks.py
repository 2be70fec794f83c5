"""Cases that share a prompt are one request until they part; watched spans are looked for in the cache."""

from __future__ import annotations

import dataclasses

import pytest
from test_execute import TIGHT, TOKENIZER, N, close, draw, model, specs  # noqa: F401

from harness.execute import execute, requests
from models.cache import Cache
from suites.suite import Case

tight = pytest.mark.parametrize("spec", specs(TIGHT))


def family(seed: int, length: int) -> list[Case]:
    """Two continuations that are scored and two answers that are generated, all after one prompt."""
    prompt = draw(seed, length)
    return [
        Case(f"{seed}a", prompt, forced=draw(seed + 1, 9), seed=seed),
        Case(f"{seed}b", prompt, max_new_tokens=7, seed=seed),
        Case(f"{seed}c", prompt, forced=draw(seed + 2, 3), seed=seed),
        Case(f"{seed}d", prompt, max_new_tokens=2, seed=seed),
    ]


def test_equal_prompt_and_seed_is_one_request():
    a, b = family(1, 5), family(2, 5)
    other = dataclasses.replace(a[0], seed=77)
    assert requests([a[0], b[0], a[1], other, b[3], a[2]]) == [0, 1, 0, 2, 1, 0]
    timed = [dataclasses.replace(a[0], step_forced=True)] * 2
    assert requests(timed) == [0, 1], "what is timed is never halved"


@tight
def test_a_shared_prompt_gives_the_answers_of_prompts_of_their_own(model, spec):  # noqa: F811
    """Ragged prompts, scored and generated mixed: each case as if it were alone in the world."""
    net, cases = model(spec), [*family(10, N), *family(20, TIGHT - 2), Case("x", draw(3, 11), draw(4, 5))]
    together, readings = execute(net, cases, TOKENIZER, "cpu")
    assert len(readings.prompt_tokens) == 3 and [part.phase for part in readings.parts] == [
        "score",
        "generate",
    ]
    for index, case in enumerate(cases):
        (alone,), own = execute(net, [case], TOKENIZER, "cpu")
        assert together[index].tokens == alone.tokens and together[index].text == alone.text
        assert close(together[index].logprobs, alone.logprobs) and together[index].greedy == alone.greedy
        assert readings.evicted[index] == own.evicted[0]
        assert readings.modes[index] == own.scoring_mode


def test_greedy_says_whether_each_forced_token_was_the_likeliest(model):  # noqa: F811
    net, prompt = model("tova:budget=6"), draw(5, 20)
    (said,), _ = execute(net, [Case("g", prompt, max_new_tokens=6)], TOKENIZER, "cpu")
    wrong = (*said.tokens[:-1], (said.tokens[-1] + 1) % 256)
    cases = [Case("y", prompt, forced=said.tokens), Case("n", prompt, forced=wrong)]
    assert [answer.greedy for answer in execute(net, cases, TOKENIZER, "cpu")[0]] == [True, False]


# --- what is watched -------------------------------------------------------------------------------


def test_a_window_holds_what_is_recent_and_nothing_else(model):  # noqa: F811
    """20 tokens of prompt, a window of 6, an answer of 4: three of them are fed."""
    net = model(f"window:budget={TIGHT},sinks=0")
    case = Case("w", draw(6, 20), forced=draw(7, 4), watched=((0, 3), (13, 17), (16, 20)))
    _, readings = execute(net, [case, Case("other", draw(8, 5), forced=draw(9, 4))], TOKENIZER, "cpu")
    shares = {(h.phase, h.layer, h.span): h.share for h in readings.held[0]}
    for layer in range(net.shape.num_layers):
        assert [shares["prefill", layer, span] for span in range(3)] == [0, 0.75, 1]
        assert [shares["score", layer, span] for span in range(3)] == [0, 0, 0.75]
    assert readings.held[1] == []


def test_each_layer_answers_for_itself(model, monkeypatch):  # noqa: F811
    """A full cache from which layer 2 lost the span, and one KV head of layer 1 half of it."""
    net, real = model("transformer"), Cache.kept_positions

    def without(cache):
        found = {name: positions.clone() for name, positions in real(cache).items()}
        names = sorted(found)
        found[names[2]][:, :, 5:9] = -1
        found[names[1]] = found[names[1]].repeat(1, 2, 1)
        found[names[1]][:, 1, 5:7] = -1
        return found

    monkeypatch.setattr(Cache, "kept_positions", without)
    case = Case("w", draw(6, 20), max_new_tokens=2, watched=((5, 9),))
    _, readings = execute(net, [case], TOKENIZER, "cpu")
    told = {h.layer: h.share for h in readings.held[0] if h.phase == "generate"}
    assert told == {0: 1, 1: 0.75, 2: 0} | {layer: 1 for layer in range(3, net.shape.num_layers)}


def test_slots_without_positions_say_nothing(model):  # noqa: F811
    case = Case("w", draw(6, 40), max_new_tokens=2, watched=((5, 9),))
    assert execute(model("lococo:budget=6"), [case], TOKENIZER, "cpu")[1].held == [[]]
