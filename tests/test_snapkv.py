"""SnapKV: where the prompt ends, and what storage costs before and after."""

from __future__ import annotations

import torch


def test_a_call_may_cross_the_end_of_a_declared_prompt(network, tokens):
    """SnapKV cuts after the declared tokens, also in the middle of a call; before, everything is held."""
    spec, calls, ids = "snapkv:budget=4,window=2,kernel=3", [4, 3, 5, 1, 1, 3], tokens(2, 17)
    model = network(spec)
    cache, whole = model.new_cache(2, 17, prompts=[10, 10]), model.new_cache(2, 17, prompts=[10, 10])
    parts = []
    for part in ids.split(calls, 1):
        parts.append(model.extend(part, None, cache, "all"))
        if cache.seen[0] < 10:
            held = cache.states["0.attention"].kept_positions()[0, 0]
            assert held[held >= 0].tolist() == list(range(cache.seen[0]))
    expected = torch.cat([model.extend(part, None, whole, "all") for part in ids.split([10, 7], 1)], 1)
    assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-11
    assert torch.equal(
        cache.states["1.attention"].kept_positions(), whole.states["1.attention"].kept_positions()
    )


def test_storage_is_made_for_the_cut_prompt(network, tokens):
    """Declared prompts: slots for the budget and what follows; in chunks the whole prompt lies beside them
    until its end; undeclared, there is room for everything."""
    model, ids = network("snapkv:budget=6,window=2"), tokens(1, 30)
    slot_bytes = 4 * (2 * 2 * 8 * 8 + 2 * 4)  # layers x (keys and values of 2 heads of 8 in fp64, positions)
    cache = model.new_cache(1, 30, prompts=[25])
    after = cache.live_bytes()
    assert after == model.cache_bytes(30, 1, prompt=25) and after.total == (6 + 5) * slot_bytes
    model.extend(ids[:, :20], None, cache)
    assert cache.live_bytes().payload >= after.payload + 4 * 2 * 2 * 8 * 8 * 25
    model.extend(ids[:, 20:27], None, cache)
    assert cache.live_bytes() == after and cache.evicted() == [4 * 19]
    whole = model.new_cache(1, 30)
    model.extend(ids[:, :25], None, whole)
    assert whole.live_bytes() == model.cache_bytes(30) and whole.live_bytes().total == 30 * slot_bytes
    assert torch.equal(
        whole.kept_positions()["2.attention"][..., :6], cache.kept_positions()["2.attention"][..., :6]
    )
