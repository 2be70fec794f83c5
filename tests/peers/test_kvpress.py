"""kvpress 0.5.5 and ours on the same Llama: the same kept sets, and the same logits afterwards.

README.md beside this file lists what differs by definition; `kvpress_switches.py` switches it on, and
`test_kvpress_differences.py` shows that each item is needed (or is none).
"""

from __future__ import annotations

import pytest
import torch
from kvpress_switches import newest_stays, per_query, ratio_for, run

pytestmark = pytest.mark.peers

STEPS = 8
HEADS = [4, 2, 1]
#: fp32 on both sides; logits are of order 5.
TOLERANCE = 1e-4


def agree(ours, theirs, prompt: int, steps: int = STEPS) -> None:
    """Kept sets after the prompt in every layer, row and KV head; logits of the prompt and of all steps."""
    assert ours.kept[0] == theirs.sets(0)
    gap = (ours.logits - theirs.logits).abs()[:, : prompt + steps]
    assert gap.max() <= TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", HEADS)
def test_the_same_network(kvpress, network, tokens, kv_heads, attention):
    """Before any policy: one Llama, two implementations."""
    model, ids = network("transformer", dtype=torch.float32, num_kv_heads=kv_heads), tokens(2, 60)
    theirs = kvpress(model, ids, [40] + [1] * 20, {"name": "KnormPress", "compression_ratio": 0.0}, attention)
    assert (run(model, ids, [40] + [1] * 20).logits - theirs.logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize(
    "prompt, budget, window, kernel",
    [(40, 16, 8, 5), (48, 20, 4, 1), (25, 24, 3, 7), (90, 9, 8, 3), (90, 45, 32, 5)],
)
def test_snapkv(kvpress, network, tokens, prompt, budget, window, kernel, kv_heads):
    """No switch but the budget as a ratio: both cut once, and both sum or average the same rows."""
    model = network(
        f"snapkv:budget={budget},window={window},kernel={kernel}", dtype=torch.float32, num_kv_heads=kv_heads
    )
    ids, calls = tokens(2, prompt + STEPS, seed=prompt), [prompt] + [1] * STEPS
    press = {
        "name": "SnapKVPress",
        "compression_ratio": ratio_for(budget, prompt),
        "window_size": window,
        "kernel_size": kernel,
    }
    for attention in ("sdpa", "eager"):
        theirs = kvpress(model, ids, calls, press, attention)
        agree(run(model, ids, calls), theirs, prompt)


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("prompt, budget", [(40, 12), (40, 39), (90, 5), (33, 1)])
def test_tova_bulk(kvpress, network, tokens, prompt, budget, kv_heads):
    """Switches: the asking token stays, and nothing is evicted after the prompt."""
    N = prompt + STEPS
    model = network(f"tova:budget={N},prompt=bulk", dtype=torch.float32, num_kv_heads=kv_heads)
    ids, calls = tokens(2, N, seed=prompt), [prompt] + [1] * STEPS
    press = {"name": "TOVAPress", "compression_ratio": ratio_for(budget, prompt)}
    for attention in ("sdpa", "eager"):
        theirs = kvpress(model, ids, calls, press, attention)
        agree(run(model, ids, calls, newest_stays, budget), theirs, prompt)


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("prompt, budget", [(40, 12), (90, 7)])
def test_tova_bulk_then_a_step_at_a_time(kvpress, network, tokens, prompt, budget, kv_heads):
    """kvpress' DecodingPress at interval 1 is the step rule: now only the asking token has to stay."""
    N = prompt + 20
    model = network(f"tova:budget={budget},prompt=bulk", dtype=torch.float32, num_kv_heads=kv_heads)
    ids, calls = tokens(2, N, seed=prompt), [prompt] + [1] * 20
    press = {
        "name": "PrefillDecodingPress",
        "prefilling_press": {"name": "TOVAPress", "compression_ratio": ratio_for(budget, prompt)},
        "decoding_press": stepwise({"name": "TOVAPress"}, budget),
    }
    theirs, ours = kvpress(model, ids, calls, press), run(model, ids, calls, newest_stays)
    assert ours.kept == [theirs.sets(c) for c in range(len(calls))]
    assert (ours.logits - theirs.logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("budget", [2, 12])
def test_tova_stepwise(kvpress, network, tokens, budget, kv_heads):
    """A prompt of one token, then one at a time: TOVA as the paper states it, the asking token kept."""
    model, ids = network(f"tova:budget={budget}", dtype=torch.float32, num_kv_heads=kv_heads), tokens(2, 50)
    theirs = kvpress(model, ids, [1] * 50, stepwise({"name": "TOVAPress"}, budget))
    ours = run(model, ids, [1] * 50, newest_stays)
    assert ours.kept == [theirs.sets(c) for c in range(50)]
    assert (ours.logits - theirs.logits).abs().max() <= TOLERANCE
    at_once = run(model, ids, [50], newest_stays)
    assert at_once.kept[0] == theirs.sets(49)
    assert (at_once.logits - theirs.logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("prompt, budget", [(40, 12), (40, 39), (90, 5), (33, 1), (150, 70)])
def test_observed_attention(kvpress, network, tokens, prompt, budget, kv_heads):
    """Switches: sums become means over the queries, no recents (heavy=1), no eviction after the prompt."""
    N = prompt + STEPS
    model = network(f"h2o:budget={N},heavy=1", dtype=torch.float32, num_kv_heads=kv_heads)
    ids, calls = tokens(2, N, seed=prompt), [prompt] + [1] * STEPS
    press = {"name": "ObservedAttentionPress", "compression_ratio": ratio_for(budget, prompt)}
    theirs = kvpress(model, ids, calls, press, "eager")
    agree(run(model, ids, calls, per_query, budget), theirs, prompt)


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("prompt, budget, sinks", [(40, 12, 4), (90, 31, 1), (33, 5, 0), (40, 39, 4)])
def test_streaming(kvpress, network, tokens, prompt, budget, sinks, kv_heads):
    """Re-rotated StreamingLLM. Switch: the prompt attends in full. Queries stand at the cache's length."""
    model = network(f"streaming:budget={budget},sinks={sinks}", dtype=torch.float32, num_kv_heads=kv_heads)
    ids, calls = tokens(2, prompt + 20, seed=prompt), [prompt] + [1] * 20
    inner = {"name": "StreamingLLMPress", "n_sink": sinks, "compression_ratio": ratio_for(budget, prompt)}
    press = {"name": "KeyRerotationPress", "press": inner}
    ours = run(model, ids, calls, full_prompt=True)
    # As it is, the press acts once: the prompt and one step. At every step, it agrees for good.
    agree(ours, kvpress(model, ids, calls, press, positions="cache"), prompt, steps=1)
    press = {
        "name": "PrefillDecodingPress",
        "prefilling_press": press,
        "decoding_press": stepwise(rerotated(sinks), budget),
    }
    theirs = kvpress(model, ids, calls, press, positions="cache")
    assert ours.kept == [theirs.sets(c) for c in range(len(calls))]
    agree(ours, theirs, prompt, steps=20)


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("budget, sinks", [(12, 4), (6, 1), (5, 0)])
def test_streaming_token_by_token(kvpress, network, tokens, budget, sinks, kv_heads):
    """StreamingLLM as published, from the first token on: no switch at all, and ours may take it at once."""
    model = network(f"streaming:budget={budget},sinks={sinks}", dtype=torch.float32, num_kv_heads=kv_heads)
    ids = tokens(2, 50, seed=budget)
    theirs = kvpress(model, ids, [1] * 50, stepwise(rerotated(sinks), budget), positions="cache")
    ours = run(model, ids, [1] * 50)
    assert ours.kept == [theirs.sets(c) for c in range(50)]
    assert (ours.logits - theirs.logits).abs().max() <= TOLERANCE
    at_once = run(model, ids, [50])
    assert at_once.kept[0] == theirs.sets(49)
    assert (at_once.logits - theirs.logits).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kv_heads", HEADS)
@pytest.mark.parametrize("prompt, budget, sinks", [(40, 12, 4), (33, 5, 0)])
def test_window(kvpress, network, tokens, prompt, budget, sinks, kv_heads):
    """StreamingLLMPress without its wrapper leaves keys at their original positions: our `window`.

    Switch: the prompt attends in full. One step only: afterwards the press drops nothing more.
    """
    spec = f"window:budget={budget},sinks={sinks}"
    model = network(spec, dtype=torch.float32, num_kv_heads=kv_heads)
    press = {"name": "StreamingLLMPress", "n_sink": sinks, "compression_ratio": ratio_for(budget, prompt)}
    ids = tokens(2, prompt + 1)
    theirs = kvpress(model, ids, [prompt, 1], press)
    agree(run(model, ids, [prompt, 1], full_prompt=True), theirs, prompt, steps=1)


def stepwise(base: dict, budget: int) -> dict:
    """A press that evicts down to the budget at every decode step."""
    return {"name": "DecodingPress", "base_press": base, "compression_interval": 1, "target_size": budget}


def rerotated(sinks: int) -> dict:
    return {"name": "KeyRerotationPress", "press": {"name": "StreamingLLMPress", "n_sink": sinks}}
