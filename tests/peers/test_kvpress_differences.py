"""Each documented difference to kvpress 0.5.5 (numbers: README.md beside this file), shown on its own."""

from __future__ import annotations

import pytest
import torch
from kvpress_help import Refused
from kvpress_switches import newest_stays, per_query, ratio_for, run
from test_kvpress import TOLERANCE, stepwise

import models

pytestmark = pytest.mark.peers

P, BUDGET = 40, 12
TOVA = {"name": "TOVAPress", "compression_ratio": ratio_for(BUDGET, P)}
OBSERVED = {"name": "ObservedAttentionPress", "compression_ratio": ratio_for(BUDGET, P)}
SNAP = {"name": "SnapKVPress", "compression_ratio": ratio_for(BUDGET, P), "window_size": 8, "kernel_size": 5}


@pytest.fixture
def llama(network):
    """llama(spec, …): a network in fp32."""
    return lambda spec, **changes: network(spec, dtype=torch.float32, **changes)


def test_1_ratio_of_the_prompt(kvpress, llama, tokens):
    """A ratio keeps more of a longer prompt, at least one token, and falls to int()'s rounding."""
    model = llama(f"tova:budget={BUDGET},prompt=bulk")
    for prompt, ratio, kept in [(40, 0.7, 12), (60, 0.7, 18), (40, 0.9, 3), (40, 0.99, 1)]:
        press = TOVA | {"compression_ratio": ratio}
        assert kvpress(model, tokens(1, prompt), [prompt], press).kept[0].shape[-1] == kept
        ours = run(model, tokens(1, prompt), [prompt]).kept[0]
        assert {len(head) for layer in ours for head in layer[0]} == {BUDGET}


def test_2_acts_once(kvpress, llama, tokens):
    """After its one cut a press lets the cache grow; ours stays at the budget. One step later they part:
    the first step sees budget + 1 keys on both sides."""
    model, ids = llama(f"tova:budget={BUDGET},prompt=bulk"), tokens(2, P + 6)
    calls = [P] + [1] * 6
    theirs, ours = kvpress(model, ids, calls, TOVA), run(model, ids, calls, newest_stays)
    assert [kept.shape[-1] for kept in theirs.kept] == [BUDGET + i for i in range(7)]
    assert {len(head) for kept in ours.kept for layer in kept for row in layer for head in row} == {BUDGET}
    gap = (ours.logits - theirs.logits).abs().amax((0, 2))
    assert gap[: P + 1].max() <= TOLERANCE < gap[P + 1 :].min()


def test_3_true_positions_are_the_callers_duty(kvpress, llama, tokens):
    """Left alone, transformers counts positions from the shrunken cache; ours never does."""
    model, ids = llama(f"snapkv:budget={BUDGET},window=8"), tokens(2, P + 3)
    ours = run(model, ids, [P, 1, 1, 1])
    for positions, agrees in (("true", True), ("cache", False)):
        theirs = kvpress(model, ids, [P, 1, 1, 1], SNAP, positions=positions)
        gap = (ours.logits - theirs.logits).abs()[:, P:].max()
        assert gap <= TOLERANCE if agrees else gap > 0.1


def test_4_order_of_slots(kvpress, llama, tokens):
    """A press leaves keys in the order of their scores, ours in temporal order: attention does not mind."""
    model, ids = llama(f"snapkv:budget={BUDGET},window=8"), tokens(1, P + 1)
    theirs = kvpress(model, ids, [P, 1], SNAP)
    assert (theirs.kept[0].diff(dim=-1) < 0).any()
    assert (run(model, ids, [P, 1]).logits - theirs.logits).abs().max() <= TOLERANCE


def test_5_equal_scores(kvpress, llama, tokens):
    """Ours drops the oldest of equals; torch.topk promises nothing, and does not drop the oldest."""
    model, ids = llama(f"tova:budget={BUDGET},prompt=bulk"), tokens(1, P)
    for block in model.blocks:
        block.mixer.qkv.weight[: model.shape.num_heads * model.shape.head_dim] = 0  # all queries zero
    assert run(model, ids, [P]).kept[0] == [[[list(range(P - BUDGET, P))] * 2]] * 4
    theirs = kvpress(model, ids, [P], TOVA)
    assert theirs.scores[0][..., :-1].unique().numel() == 1
    assert theirs.kept[0].shape[-1] == BUDGET and theirs.sets(0) != run(model, ids, [P]).kept[0]


def test_6_scores_in_the_models_dtype(kvpress, llama, tokens):
    """In bf16 kvpress rounds probabilities before it adds them up, and scores tie; ours add up in fp32."""
    model, ids = llama("tova:budget=12,prompt=bulk").bfloat16(), tokens(1, 1000)
    theirs, ours = kvpress(model, ids, [1000], TOVA, dtype="bfloat16"), run(model, ids, [1000])
    for layer in range(4):
        assert theirs.scores[0][layer, 0, 0].unique().numel() < 800
        assert ours.rated[0][layer][0, 0].unique().numel() > 990


def test_7_padding(kvpress, llama, tokens):
    """Left padding: kvpress scores and keeps it like tokens, or at least takes its ratio of it; ours
    keeps what the row keeps on its own."""
    ids, pad = tokens(2, P), 7
    mask = torch.ones(2, P, dtype=torch.bool)
    mask[1, :pad] = False
    shown = {"SnapKVPress": 0, "TOVAPress": 0, "ObservedAttentionPress": 0}
    for press, spec, change in (
        (SNAP, f"snapkv:budget={BUDGET},window=8", None),
        (TOVA, f"tova:budget={BUDGET},prompt=bulk", newest_stays),
        (OBSERVED, f"h2o:budget={BUDGET},heavy=1", per_query),
    ):
        model = llama(spec)
        alone = press | {"compression_ratio": ratio_for(BUDGET, P - pad)}
        alone = kvpress(model, ids[1:, pad:], [P - pad], alone, "eager")
        ours = run(model, ids, [P], change, valid_BN=mask)
        assert [layer[1] for layer in ours.kept[0]] == [layer[0] for layer in alone.sets(0)]
        for attention in ("sdpa", "eager")[press is OBSERVED :]:
            padded = kvpress(model, ids, [P], press, attention, mask_BN=mask)
            shown[press["name"]] += int((padded.kept[0][:, 1] < 0).sum())
            # the same share of padding and text together: fewer tokens than the row alone would keep
        shorter = kvpress(model, ids[1:, pad:], [P - pad], press, "eager")
        assert shorter.kept[0].shape[-1] < BUDGET == padded.kept[0].shape[-1]
    assert shown["SnapKVPress"] > 0 and shown["TOVAPress"] > 0  # padding in the cache


def test_8_prompt_in_chunks(kvpress, llama, tokens):
    """A press cuts the first chunk only; snapkv cuts the declared prompt once, as if in one call."""
    model, ids, calls = llama(f"snapkv:budget={BUDGET},window=8"), tokens(2, P + 2), [25, 15, 1, 1]
    chunked = kvpress(model, ids, calls, SNAP)
    whole = kvpress(model, ids, [P, 1, 1], SNAP)
    first = int(25 * (1 - SNAP["compression_ratio"]))
    assert [kept.shape[-1] for kept in chunked.kept] == [first, first + 15, first + 16, first + 17]
    ours = run(model, ids, calls, prompts=[P, P])
    assert ours.kept[1] == whole.sets(0)
    assert (ours.logits - whole.logits).abs().max() <= TOLERANCE
    assert (ours.logits - chunked.logits).abs()[:, 25:].max() > 0.1


def test_9_models_own_sliding_window(kvpress, llama, tokens):
    """Where layers see a window of W: transformers crops the cache to W - 1 first, and a press takes its
    ratio of that; with a cache left whole, sdpa scores see beyond the window, eager ones do not."""
    spec = f"snapkv:budget={BUDGET},window=8"
    model, ids = llama(spec, sliding_window=16, sliding_layers=(0, 1, 2, 3)), tokens(2, P)
    ours = run(model, ids, [P])
    cropped = kvpress(model, ids, [P], SNAP, cropped=True)
    assert cropped.kept[0].shape[-1] == int(15 * (1 - SNAP["compression_ratio"]))
    assert kvpress(model, ids, [P], SNAP, "sdpa").sets(0) != ours.kept[0]
    whole = kvpress(model, ids, [P], SNAP, "eager")
    assert whole.sets(0) == ours.kept[0]
    assert (ours.logits - whole.logits).abs().max() <= TOLERANCE


def test_10_snapkv_means_and_sums(kvpress, llama, tokens):
    """kvpress averages over the window's rows and pools each query head before the group's mean; ours
    sums and pools afterwards. Same scores times the window: an order-preserving difference."""
    model, ids = llama(f"snapkv:budget={BUDGET},window=8"), tokens(2, P)
    theirs, ours = kvpress(model, ids, [P], SNAP), run(model, ids, [P])
    for layer in range(4):
        gap = ours.rated[0][layer][..., :-8] / 8 - theirs.scores[0][layer][..., :-8]
        assert gap.abs().max() <= 1e-6
    assert ours.kept[0] == theirs.sets(0)


def test_11_snapkv_below_its_window(kvpress, llama, tokens):
    """Asked to keep less than the window, kvpress drops some of its equal-scored tokens; ours refuses.
    A prompt no longer than the window is refused there and left alone here."""
    model, ids = llama(f"snapkv:budget={BUDGET},window=8"), tokens(1, P)
    small = kvpress(model, ids, [P], SNAP | {"compression_ratio": ratio_for(5, P)})
    assert small.kept[0].shape[-1] == 5 and small.kept[0].min() >= P - 8
    with pytest.raises(ValueError, match="window < budget"):
        models.build("snapkv:budget=5,window=8", model.shape)
    with pytest.raises(Refused, match="greater than the window size"):
        kvpress(model, ids[:, :8], [8], SNAP)
    assert run(model, ids[:, :8], [8]).kept[0] == [[[list(range(8))] * 2]] * 4


def test_12_tova_keeps_the_asking_token(kvpress, llama, tokens):
    """Same scores; ours may drop the newest token, and then keeps its next best instead."""
    model, ids = llama(f"tova:budget={BUDGET},prompt=bulk"), tokens(3, P)
    theirs, ours = kvpress(model, ids, [P], TOVA), run(model, ids, [P])
    dropped = 0
    for layer in range(4):
        gap = ours.rated[0][layer][..., :-1] - theirs.scores[0][layer][:, :1, :-1]
        assert gap.abs().max() <= 1e-6
        for row in range(3):
            mine, other = set(ours.kept[0][layer][row][0]), set(theirs.sets(0)[layer][row][0])
            assert P - 1 in other and len(mine & other) >= BUDGET - 1
            dropped += P - 1 not in mine
            assert (mine == other) == (P - 1 in mine)
    assert dropped > 0


def test_13_observed_attention_is_a_mean(kvpress, llama, tokens):
    """H2O's sum, divided by the number of queries that could see the key; it is not order-preserving."""
    model, ids = llama(f"h2o:budget={BUDGET},heavy=1"), tokens(2, P)
    theirs, ours = kvpress(model, ids, [P], OBSERVED, "eager"), run(model, ids, [P])
    queries = torch.arange(P, 0, -1)
    for layer in range(4):
        assert (ours.rated[0][layer] / queries - theirs.scores[0][layer]).abs().max() <= 1e-6
    assert ours.kept[0] != theirs.sets(0)
    age = [
        sum(sum(head) for layer in kept for row in layer for head in row)
        for kept in (ours.kept[0], theirs.sets(0))
    ]
    assert age[0] < age[1]  # the sum favours early tokens


def test_14_observed_attention_protects_nothing(kvpress, llama, tokens):
    """H2O keeps the newest `budget - heavy`; kvpress drops some of them. The mean alone does not do."""
    ids = tokens(2, P)
    theirs = kvpress(llama("transformer"), ids, [P], OBSERVED, "eager").sets(0)
    ours = run(llama(f"h2o:budget={BUDGET},heavy=0.5"), ids, [P], per_query).kept[0]
    recent = set(range(P - 6, P))
    assert all(recent <= set(head) for layer in ours for row in layer for head in row)
    assert not all(recent <= set(head) for layer in theirs for row in layer for head in row)


def test_15_observed_attention_needs_eager(kvpress, llama, tokens):
    """kvpress reads the full attention matrix; ours makes column sums in blocks, whichever kernel runs."""
    with pytest.raises(Refused, match="eager"):
        kvpress(llama("transformer"), tokens(1, P), [P], OBSERVED, "sdpa")


def test_16_observed_attention_has_no_memory(kvpress, llama, tokens):
    """Run at every step its scores hold the newest query's attention alone (undoing the division they sum
    to 1), divided by the order of slots, which is that of earlier scores. H2O's sums go on."""
    ids, calls = tokens(2, 30), [1] * 30
    theirs = kvpress(
        llama("transformer"), ids, calls, stepwise({"name": "ObservedAttentionPress"}, BUDGET), "eager"
    )
    for scores_LBGn in theirs.scores[BUDGET:]:
        total = (scores_LBGn * torch.arange(BUDGET + 1, 0, -1)).sum(-1)
        assert (total - 1).abs().max() <= 1e-5
    ours = run(llama(f"h2o:budget={BUDGET},heavy=1,prompt=stepwise"), ids, calls)
    for c in range(BUDGET, 30):
        # What all queries so far paid to the keys still held: more than the newest alone could pay.
        assert all(rated.sum(-1).min() > 1.5 for rated in ours.rated[c].values())
    assert ours.kept[-1] != theirs.sets(29)


def test_17_streaming_needs_the_wrapper(kvpress, llama, tokens):
    """StreamingLLMPress alone keeps the same tokens at their original positions: not StreamingLLM. Run at
    every step it is no window either: torch.topk shuffles the slots, whose order it takes for time."""
    model, ids, calls = llama(f"streaming:budget={BUDGET},sinks=4"), tokens(2, P), [1] * P
    press = stepwise({"name": "StreamingLLMPress", "n_sink": 4}, BUDGET)
    theirs, ours = kvpress(model, ids, calls, press), run(model, ids, calls)
    first = BUDGET  # the call that drops the first token
    assert ours.kept[: first + 1] == [theirs.sets(c) for c in range(first + 1)]
    gap = (ours.logits - theirs.logits).abs().amax((0, 2))
    assert gap[: first + 1].max() <= TOLERANCE and gap[first + 1 :].min() > 0.01
    assert ours.kept[first + 1] != theirs.sets(first + 1)


def test_18_streaming_prompt_attends_in_full(kvpress, llama, tokens):
    """Same tokens kept, but above the first layer they are other vectors: ours read the prompt through
    the window, kvpress in full."""
    model, ids = llama(f"streaming:budget={BUDGET},sinks=4"), tokens(2, P)
    inner = {"name": "StreamingLLMPress", "n_sink": 4, "compression_ratio": ratio_for(BUDGET, P)}
    theirs = kvpress(model, ids, [P], {"name": "KeyRerotationPress", "press": inner})
    ours = run(model, ids, [P])
    assert ours.kept[0] == theirs.sets(0)
    gap = (ours.logits - theirs.logits).abs().amax((0, 2))
    assert gap[: BUDGET + 1].max() <= TOLERANCE and gap[BUDGET + 1 :].min() > 0.01


def test_19_streaming_below_its_sinks(kvpress, llama, tokens):
    """Asked to keep less than its sinks, kvpress drops some of them; ours refuses. A prompt no longer than
    the sinks is refused there and left alone here."""
    model, ids = llama(f"streaming:budget={BUDGET},sinks=4"), tokens(1, P)
    press = {"name": "StreamingLLMPress", "n_sink": 4, "compression_ratio": ratio_for(3, P)}
    assert {len(head) for layer in kvpress(model, ids, [P], press).sets(0) for head in layer[0]} == {3}
    with pytest.raises(ValueError, match="sinks < budget"):
        models.build("streaming:budget=3,sinks=4", model.shape)
    with pytest.raises(Refused, match="n_sink"):
        kvpress(model, ids[:, :4], [4], press)
    assert run(model, ids[:, :4], [4]).kept[0] == [[[list(range(4))] * 2]] * 4
