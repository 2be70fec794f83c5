"""The one loop, held to independent computations: each token scored once, greedy is argmax, bytes add up."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import models
from harness import execute as loop
from harness.execute import execute, score_segment
from models.architecture import Architecture
from models.conformance.options import with_budget
from models.spec import canonical
from suites.suite import Case
from suites.tokenizer import ByteTokenizer

N = 29
#: Far below N: every policy evicts.
TIGHT = 6
TOKENIZER = ByteTokenizer()


def specs(budget: int) -> list[str]:
    """Every architecture of the folder, with this budget if it has one, and YOCO's other mixer."""
    found = ["yoco:mixer=retention"]
    for name in models.names():
        _, options = models.parse(name)
        has_budget = any(field.name == "budget" for field in dataclasses.fields(options))
        found.append(canonical(name, with_budget(options, budget) if has_budget else options))
    return found


ample = pytest.mark.parametrize("spec", specs(N))
tight = pytest.mark.parametrize("spec", specs(TIGHT))


@pytest.fixture
def model(network):
    def build(spec: str) -> Architecture:
        return network(spec, "conv", torch.float64, vocab=TOKENIZER.vocab_size)

    return build


def draw(seed: int, length: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, 256, (length,), generator=generator).tolist())


def forced(lengths, step=False) -> list[Case]:
    """One case per (prompt length, continuation length), each with its own tokens and seed."""
    return [
        Case(f"c{i}", draw(i, p), forced=draw(100 + i, f), step_forced=step, seed=i)
        for i, (p, f) in enumerate(lengths)
    ]


def logprobs_of_forward(model, case: Case) -> list[float]:
    """From one parallel pass without any cache: each forced token under the logits before it."""
    ids = torch.tensor([case.prompt + case.forced])
    scores = model.forward(ids)[0].log_softmax(-1)
    first = len(case.prompt)
    return [scores[first + t - 1, token].item() for t, token in enumerate(case.forced)]


def close(a, b, limit=1e-9) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= limit for x, y in zip(a, b, strict=True))


@ample
@pytest.mark.parametrize("segment", [1, 5, 512])
def test_every_forced_token_is_scored_once_as_forward_would(model, monkeypatch, spec, segment):
    """Ragged prompts and continuations in one batch; segments of 5 cross every row's end."""
    monkeypatch.setattr(loop, "SCORE_SEGMENT", segment)
    cases = forced([(9, 20), (1, 11), (14, 1), (17, 12)])
    net = model(spec)
    answers, readings = execute(net, cases, TOKENIZER, "cpu")
    for case, answer in zip(cases, answers, strict=True):
        assert answer.tokens == case.forced
        assert close(answer.logprobs, logprobs_of_forward(net, case))
    assert readings.scoring_mode.startswith("cache-extend")
    assert readings.new_tokens == [20, 11, 1, 12]


@tight
def test_below_the_budget_one_segment_is_not_another_policy(model, monkeypatch, spec):
    """Scoring one token per call goes through the same evictions as decoding them one by one."""
    net = model(spec)
    lengths = [(11, 12), (4, 12)]
    monkeypatch.setattr(loop, "SCORE_SEGMENT", 1)
    scored, _ = execute(net, forced(lengths), TOKENIZER, "cpu")
    stepped, readings = execute(net, forced(lengths, step=True), TOKENIZER, "cpu")
    for a, b in zip(scored, stepped, strict=True):
        assert a.tokens == b.tokens
        assert close(a.logprobs, b.logprobs)
    assert readings.scoring_mode == "cache-step"
    assert len(readings.parts[0].step_s) == 11, "the last forced token is scored and never fed"


@ample
def test_stepwise_scores_are_those_of_forward(model, spec):
    cases = forced([(9, 12), (3, 12)], step=True)
    net = model(spec)
    for case, answer in zip(cases, execute(net, cases, TOKENIZER, "cpu")[0], strict=True):
        assert close(answer.logprobs, logprobs_of_forward(net, case))


def test_eviction_acts_while_a_continuation_is_scored(model):
    """A window scores a long continuation worse or better, but never as the full cache does."""
    cases = forced([(2, 24)])
    full, _ = execute(model("transformer"), cases, TOKENIZER, "cpu")
    window, _ = execute(model(f"window:budget={TIGHT}"), cases, TOKENIZER, "cpu")
    same = [abs(a - b) < 1e-9 for a, b in zip(full[0].logprobs, window[0].logprobs, strict=True)]
    assert same[:5] == [True] * 5
    assert not any(same[8:])


def greedy(net, case: Case, count: int) -> list[int]:
    """Argmax of a fresh forward over everything so far, again for every token."""
    ids = list(case.prompt)
    for _ in range(count):
        ids.append(net.forward(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(case.prompt) :]


def asking(prompts, max_new, stop=()) -> list[Case]:
    return [
        Case(f"g{i}", draw(i, p), max_new_tokens=n, stop=stop, seed=i)
        for i, (p, n) in enumerate(zip(prompts, max_new, strict=True))
    ]


@ample
def test_greedy_generation_is_the_argmax_of_forward(model, spec):
    """Rows of different prompts and limits; those that are done stand still and disturb nobody."""
    net, cases = model(spec), asking([13, 5, 9], [7, 2, 12])
    answers, readings = execute(net, cases, TOKENIZER, "cpu")
    for case, answer in zip(cases, answers, strict=True):
        expected = greedy(net, case, case.max_new_tokens)
        assert list(answer.tokens) == expected
        assert answer.text == TOKENIZER.decode(expected)
        assert close(
            answer.logprobs, logprobs_of_forward(net, dataclasses.replace(case, forced=answer.tokens))
        )
    assert readings.scoring_mode == "cache-generate"
    assert readings.new_tokens == [7, 2, 12]


def test_a_stop_string_ends_one_row_only(model):
    net, cases = model("transformer"), asking([13, 5], [12, 12])
    free = [answer.text for answer in execute(net, cases, TOKENIZER, "cpu")[0]]
    stop = next(c for c in free[0][2:] if c not in free[1])
    stopped, other = execute(net, asking([13, 5], [12, 12], (stop,)), TOKENIZER, "cpu")[0]
    assert stopped.text == free[0][: free[0].index(stop)]
    assert TOKENIZER.decode(stopped.tokens) == free[0][: free[0].index(stop) + 1]
    assert len(stopped.tokens) == len(stopped.logprobs)
    assert other.text == free[1]


def test_the_earliest_of_several_stop_strings_counts(model):
    """Both are complete with the same token; the longer one begins earlier."""
    net = model("transformer")
    text = execute(net, asking([13], [12]), TOKENIZER, "cpu")[0][0].text
    new = next(at for at in range(1, 12) if text[at] not in text[:at])
    late, early = text[new], text[new - 1 : new + 1]
    answer = execute(net, asking([13], [12], (late, early)), TOKENIZER, "cpu")[0][0]
    assert answer.text == text[: new - 1] != text[: text.index(late)]


def test_a_continuation_is_greedy_if_every_token_of_it_is_the_likeliest(model):
    net, (asked,) = model("transformer"), asking([13], [4])
    likeliest = tuple(greedy(net, asked, 4))
    for step in (False, True):
        for wrong in (None, 0, 3):
            forced = tuple(t ^ (at == wrong) for at, t in enumerate(likeliest))
            case = dataclasses.replace(asked, forced=forced, step_forced=step, max_new_tokens=0)
            assert execute(net, [case], TOKENIZER, "cpu")[0][0].greedy is (wrong is None)


def test_the_end_token_ends_generation(model):
    net, cases = model("transformer"), asking([13], [12])
    tokens = execute(net, cases, TOKENIZER, "cpu")[0][0].tokens

    class Early(ByteTokenizer):
        eos = (-1, tokens[3])

    ended = execute(net, cases, Early(), "cpu")[0][0].tokens
    assert ended == tokens[: tokens.index(tokens[3]) + 1]


def test_a_limit_of_nothing_generates_nothing(model):
    answers, _ = execute(model("transformer"), asking([4, 4], [0, 3]), TOKENIZER, "cpu")
    assert (answers[0].tokens, answers[0].text) == ((), "")
    assert len(answers[1].tokens) == 3


@pytest.mark.parametrize("chunk", [1, 4, 100])
@tight
def test_prompt_chunks_do_not_change_a_stepwise_policy(model, spec, chunk):
    """Ragged prompts; a row that ended in an earlier chunk keeps its logits from there."""
    net = model(spec)
    if net.prompt_mode not in ("parallel", "stepwise"):
        pytest.skip(f"{net.prompt_mode}: what it keeps depends on the calls, and its rows say so")
    cases = forced([(17, 6), (3, 6), (8, 6)])
    whole, _ = execute(net, cases, TOKENIZER, "cpu")
    parts, _ = execute(net, cases, TOKENIZER, "cpu", prefill_chunk=chunk)
    for a, b in zip(whole, parts, strict=True):
        assert close(a.logprobs, b.logprobs)


def test_what_is_timed_step_by_step_stands_alone(model):
    net = model("transformer")
    for mixed in (asking([4], [4]), forced([(4, 4)])):
        with pytest.raises(ValueError, match="cannot share a batch"):
            execute(net, mixed + forced([(4, 4)], step=True), TOKENIZER, "cpu")


def test_scored_segments_are_whole_blocks():
    """At most 512 tokens or the user's chunk, except that one block is the least that makes sense."""
    found = [score_segment(block, chunk) for block in (1, 100, 600) for chunk in (None, 70, 350, 5000)]
    assert found == [512, 70, 350, 512, 500, 70, 300, 500, 600, 70, 350, 600]


@pytest.mark.parametrize("spec", sorted({*specs(N), *specs(TIGHT)}))
@pytest.mark.parametrize("step", [False, True])
def test_predicted_bytes_are_the_live_bytes_of_this_very_execution(model, spec, step):
    _, readings = execute(model(spec), forced([(9, 12), (3, 12)], step), TOKENIZER, "cpu")
    assert readings.live == readings.predicted
    assert readings.live.total > 0
    assert readings.capacity == 21


@pytest.mark.parametrize("spec", [f"{name}:budget={TIGHT}" for name in ("window", "random", "tova")])
def test_evictions_are_counted_per_request(model, spec):
    """Layers times what was seen beyond the budget; the last forced token is never seen."""
    net = model(spec)
    _, readings = execute(net, forced([(9, 12), (3, 2), (20, 1)]), TOKENIZER, "cpu")
    layers = net.shape.num_layers
    assert readings.evicted == [layers * (20 - TIGHT), 0, layers * (20 - TIGHT)]


@ample
def test_an_ample_budget_evicts_nothing(model, spec):
    if spec.startswith("yoco"):
        pytest.skip("its lower half keeps a window or a state by design")
    assert execute(model(spec), forced([(9, 20), (3, 2)]), TOKENIZER, "cpu")[1].evicted == [0, 0]


@pytest.mark.parametrize(
    ("cases", "middle"),
    [(forced([(4, 4)]), "score"), (forced([(4, 4)], True), "decode"), (asking([4], [4]), "generate")],
)
def test_phases_are_announced_in_order(model, cases, middle):
    heard: list[str] = []
    execute(model("transformer"), cases, TOKENIZER, "cpu", on_phase=heard.append)
    assert heard == ["allocate", "prefill", middle, "idle"]


def test_the_random_control_draws_by_the_seed_of_the_case(model):
    """Same cases, same numbers; another seed, others; and a row does not depend on its neighbours."""
    net, cases = model(f"random:budget={TIGHT}"), forced([(12, 9), (12, 9)])
    first, second = execute(net, cases, TOKENIZER, "cpu")[0]
    assert execute(net, cases, TOKENIZER, "cpu")[0] == [first, second]
    assert close(execute(net, cases[1:], TOKENIZER, "cpu")[0][0].logprobs, second.logprobs)
    reseeded = [dataclasses.replace(cases[0], seed=99), cases[1]]
    other = execute(net, reseeded, TOKENIZER, "cpu")[0]
    assert not close(other[0].logprobs, first.logprobs)
    assert close(other[1].logprobs, second.logprobs)


@pytest.mark.parametrize(("chunk", "segment"), [(None, 512), (7, 7), (600, 512)])
def test_a_chunk_bounds_scored_segments_too_and_their_number_is_said(model, monkeypatch, chunk, segment):
    net, seen = model("transformer"), []
    extend = net.extend

    def watched(tokens_BT, *rest, **more):
        seen.append(tokens_BT.shape[1])
        return extend(tokens_BT, *rest, **more)

    monkeypatch.setattr(net, "extend", watched)
    _, readings = execute(net, forced([(5, 30)]), TOKENIZER, "cpu", prefill_chunk=chunk)
    assert readings.scoring_mode == f"cache-extend, segments of {segment}"
    assert max(seen) == min(segment, 29)
