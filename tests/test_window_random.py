"""The control, and the two dumb policies below their budget: a band with sinks, random survivors."""

from __future__ import annotations

import pytest
import torch
from reference import reference
from reference.decoder import decode, weights_of
from reference.keeping import Keeper, keeping, steps

N = 36


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


@pytest.mark.parametrize("changes", [{}, {"rope_fraction": 0.25}, {"rope_base": 30.0, "num_kv_heads": 1}])
@pytest.mark.parametrize("shape", ["plain", "conv"])
def test_transformer_is_its_definition(network, tokens, shape, changes):
    """The control itself: forward and cache give the logits of the row-by-row reference."""
    model, ids = network("transformer", shape, **changes), tokens(1, N)
    expected, _ = reference(model, ids[0], [N])
    assert (model.forward(ids)[0] - expected).abs().max() <= 1e-11
    assert (fed(model, ids, [11, 1, 1, 20, 3], model.new_cache(1, N))[0] - expected).abs().max() <= 1e-11


@pytest.mark.parametrize(("budget", "sinks"), [(6, 2), (5, 0), (9, 4), (1, 0), (35, 3), (36, 4)])
@pytest.mark.parametrize("cuts", [[N], [1] * N, [11, 1, 1, 20, 3]])
def test_the_ring_holds_what_a_query_sees(network, tokens, budget, sinks, cuts):
    """The first `sinks` tokens and the newest ones, budget + 1 in all; the one too many counts as evicted."""
    model, ids = network(f"window:budget={budget},sinks={sinks}", num_layers=1), tokens(1, N)
    cache = model.new_cache(1, N)
    fed(model, ids, cuts, cache)
    ring = cache.states["0.attention"].tensors["pos"][0]
    visible = sorted({*range(min(sinks, N)), *range(max(0, N - (budget + 1 - sinks)), N)})
    assert sorted(ring[ring >= 0].tolist()) == visible
    assert cache.evicted() == [max(0, N - budget)]


def test_window_longer_than_a_query_block(network, tokens):
    """Prompts longer than the block of queries that is masked at once (256) change nothing."""
    model, ids = network("window:budget=10,sinks=3", num_layers=1), tokens(1, 300)
    expected, _ = reference(model, ids[0], [300], "window", budget=10, sinks=3)
    assert (fed(model, ids, [300], model.new_cache(1, 300))[0] - expected).abs().max() <= 1e-11
    control = network("transformer", num_layers=1)
    cache = control.new_cache(1, 600)
    both = torch.cat([ids, ids.flip(1)], 1)
    assert (fed(control, both, [5, 295, 300], cache) - control.forward(both)).abs().max() <= 1e-11


def survivors_by_step(model, ids, seed):
    """Decode token by token; positions held *after* each step, per layer, and all logits."""
    cache, kept, outs = model.new_cache(1, N, seeds=[seed]), {}, []
    for t in range(N):
        outs.append(model.decode(ids[:, t], cache)[0])
        for layer in range(model.shape.num_layers):
            pos = cache.states[f"{layer}.attention"].tensors["pos"][0]
            kept[layer, t] = sorted(pos[pos >= 0].tolist())
    return kept, torch.stack(outs)


def attention_over(model, ids_T, kept):
    """The reference's logits (T,V) if exactly `kept[layer, t]` outlives row t."""

    def attend(layer):
        class Given(Keeper):
            def keep(self, t, held):
                return kept[layer.index, t]

        return keeping(layer, steps([layer.length]), Given)

    return decode(model.shape, weights_of(model), ids_T, attend)[0]


@pytest.mark.parametrize("shape", ["plain", "conv"])
def test_random_is_masked_attention_over_its_survivors(network, tokens, shape):
    """Row t attends exactly to the survivors of row t-1 and itself; one goes per step over budget."""
    budget = 6
    model, ids = network(f"random:budget={budget}", shape), tokens(1, N)
    kept, stepwise = survivors_by_step(model, ids, seed=17)
    for (layer, t), now in kept.items():
        before = kept[layer, t - 1] if t else []
        assert len(now) == min(t + 1, budget)
        assert set(now) <= {*before, t} and len(set(now)) == len(now)
    expected = attention_over(model, ids[0], kept)
    assert (stepwise - expected).abs().max() <= 1e-11
    at_once = fed(model, ids, [N], model.new_cache(1, N, seeds=[17]))[0]
    assert (at_once - expected).abs().max() <= 1e-11


def test_random_draws_follow_the_seed(network, tokens):
    """Same seed, same victims: alone, in another batch, in another row; other seed or layer, others."""
    model, ids = network("random:budget=6"), tokens(1, N)
    kept, _ = survivors_by_step(model, ids, seed=3)
    again, _ = survivors_by_step(model, ids, seed=3)
    other, _ = survivors_by_step(model, ids, seed=4)
    assert kept == again and kept != other
    layers = [[kept[layer, t] for t in range(N)] for layer in range(4)]
    assert all(layers[a] != layers[b] for a in range(4) for b in range(a))
    batch = tokens(3, N, seed=1)
    cache = model.new_cache(3, N, seeds=[9, 4, 3])
    model.extend(batch, None, cache)
    for layer in range(4):
        pos = cache.states[f"{layer}.attention"].kept_positions()[:, 0]
        held = [sorted(p for p in row if p >= 0) for row in pos.tolist()]
        assert held[2] == kept[layer, N - 1] and held[1] == other[layer, N - 1]


def test_random_victims_are_uniform(network, tokens):
    """Over 4 layers x 64 seeds x 30 evictions every rank in age goes equally often (5 sigma)."""
    budget, seeds = 6, list(range(1000, 1064))
    model = network(f"random:budget={budget}")
    cache, hits = model.new_cache(64, N, seeds=seeds), torch.zeros(budget + 1)
    ids = tokens(1, N).expand(64, -1)
    before = {}
    for t in range(N):
        model.decode(ids[:, t], cache)
        for layer in range(4):
            held = cache.states[f"{layer}.attention"].kept_positions()[:, 0]
            now = [sorted(p for p in row if p >= 0) for row in held.tolist()]
            for row in range(64 if t >= budget else 0):
                candidates = [*before[layer][row], t]
                (gone,) = set(candidates) - set(now[row])
                hits[candidates.index(gone)] += 1
            before[layer] = now
    expected = hits.sum() / (budget + 1)
    assert hits.sum() == 4 * 64 * (N - budget)
    assert ((hits - expected).abs() < 5 * expected.sqrt()).all(), hits
