"""TOVA and eviction under a budget: the published rule, row by row, and its invariants T1-T12."""

from __future__ import annotations

import pytest
import torch
from reference import reference
from reference.decoder import decode, weights_of
from reference.keeping import keeping, steps
from reference.tova import LeastAttendedGoes

from models.attention import attention_with_probs
from models.eviction import oldest_minimum
from models.eviction_prompt import best

N = 36


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


def held(cache, layer, row=0, choice=0) -> list[int]:
    pos = cache.states[f"{layer}.attention"].kept_positions()[row, choice]
    return sorted(pos[pos >= 0].tolist())


def survivors_by_step(model, ids_T, budget):
    """The reference's logits (T,V), and what each layer holds after every row: kept[layer][t]."""
    kept = [[] for _ in range(model.shape.num_layers)]

    def attend(layer):
        class Noting(LeastAttendedGoes):
            def keep(self, t, held):
                kept[layer.index].append(super().keep(t, held))
                return kept[layer.index][t]

        return keeping(layer, steps([layer.length]), lambda: Noting(budget))

    return decode(model.shape, weights_of(model), ids_T, attend)[0], kept


def window_of(model, ids_T, budget):
    """The reference's logits of the newest `budget` tokens, no sinks."""
    return reference(model, ids_T, [N], "window", budget=budget, sinks=0)[0]


@pytest.mark.parametrize("shape", ["plain", "conv"])
@pytest.mark.parametrize("budget", [1, 2, 6, 20, 35])
def test_T2_T3_T5_stepwise_is_the_masked_pass(network, tokens, shape, budget):
    """Token by token = in one call = masked reference in fp64: same logits and same survivors at every
    step; survivors are nested, min(t + 1, k) in number, and layers differ."""
    model, ids = network(f"tova:budget={budget}", shape), tokens(1, N)
    expected, kept = survivors_by_step(model, ids[0], budget)
    cache = model.new_cache(1, N)
    for t in range(N):
        out = model.decode(ids[:, t], cache)[0]
        assert (out - expected[t]).abs().max() <= 1e-11
        for layer in range(4):
            now = held(cache, layer)
            assert now == kept[layer][t] and len(now) == min(t + 1, budget)
            assert t == 0 or set(now) <= {*kept[layer][t - 1], t}
    for cuts in ([N], [budget, N - budget], [9, 1, 2, 24]):
        cache = model.new_cache(1, N)
        assert (fed(model, ids, cuts, cache)[0] - expected).abs().max() <= 1e-11
        assert [held(cache, layer) for layer in range(4)] == [kept[layer][-1] for layer in range(4)]
        assert cache.evicted() == [4 * (N - budget)]
    if budget == 6:
        assert len({tuple(kept[layer][-1]) for layer in range(4)}) > 1


def test_bulk_and_stepwise_are_different_algorithms(network, tokens):
    """One prompt call: bulk attends to everything first, so the two keep and say different things."""
    ids = tokens(1, N)
    caches = []
    for spec in ("tova:budget=6", "tova:budget=6,prompt=bulk"):
        model = network(spec)
        caches.append(model.new_cache(1, N))
        model.extend(ids, None, caches[-1])
        assert model.prompt_mode == ("bulk" if "bulk" in spec else "stepwise")
    assert any(held(caches[0], layer) != held(caches[1], layer) for layer in range(4))


def test_T6_slots_hold_whole_tokens(network, tokens):
    """All KV heads of a slot hold the key and value of the one position the slot names (T6)."""
    ids = tokens(1, N)
    model, full = network("tova:budget=6"), network("transformer")
    cache, everything = model.new_cache(1, N), full.new_cache(1, N)
    model.extend(ids, None, cache)
    full.extend(ids, None, everything)
    mine, all_of_it = (c.states["0.attention"].tensors for c in (cache, everything))
    for slot, position in enumerate(mine["pos"][0, 0].tolist()):
        if position >= 0:
            for name in ("k", "v"):
                assert torch.allclose(mine[name][0, :, slot], all_of_it[name][0, :, position], atol=1e-12)


@pytest.mark.parametrize("spec", ["tova:budget=6", "tova:budget=6,prompt=bulk"])
def test_T9_grouped_heads_are_repeated_heads(network, tokens, spec):
    """Repeating K and V for every query head and running multi-head attention: same survivors (T9)."""
    grouped, ids = network(spec), tokens(2, N)
    repeated = network(spec, num_kv_heads=4)
    state = dict(grouped.state_dict())
    for i in range(4):
        name = f"blocks.{i}.mixer.qkv.weight"
        q, k, v = state[name].split([32, 16, 16])
        k, v = (x.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for x in (k, v))
        state[name] = torch.cat([q, k, v])
    repeated.load_state_dict(state)
    a, b = grouped.new_cache(2, N), repeated.new_cache(2, N)
    for part in ids.split([17, 1, 18], 1):
        gap = grouped.extend(part, None, a, "all") - repeated.extend(part, None, b, "all")
        assert gap.abs().max() <= 1e-11
        assert [held(a, layer, 1) for layer in range(4)] == [held(b, layer, 1) for layer in range(4)]


@pytest.mark.parametrize("cuts", [[N], [1] * N, [9, 1, 26]])
def test_T12_equal_scores_evict_the_oldest(network, tokens, cuts):
    """Zero queries give every key the same score: TOVA is then a plain window (T12)."""
    model, ids = network("tova:budget=6"), tokens(1, N)
    for block in model.blocks:
        block.mixer.qkv.weight[:32] = 0
    cache = model.new_cache(1, N)
    out = fed(model, ids, cuts, cache)[0]
    assert all(held(cache, layer) == list(range(N - 6, N)) for layer in range(4))
    assert (out - window_of(model, ids[0], 6)).abs().max() <= 1e-11


def test_T12_bulk_equal_scores_evict_the_oldest(network, tokens):
    """The same tie rule where a whole call is cut down at once."""
    model, ids = network("tova:budget=6,prompt=bulk"), tokens(2, N)
    for block in model.blocks:
        block.mixer.qkv.weight[:32] = 0
    cache = model.new_cache(2, N)
    for part in ids.split([20, 1, 3, 12], 1):
        model.extend(part, None, cache)
        assert held(cache, 0, 1) == list(range(cache.seen[0] - 6, cache.seen[0]))


def test_oldest_minimum():
    """Least score; among equals the oldest position, wherever it lies; empty slots never win."""
    score = torch.tensor(
        [[0.3, 0.1, 0.1, 0.5], [0.0, 0.2, 0.2, 0.2], [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 3.0, 4.0]]
    )
    pos = torch.tensor([[0, 9, 4, 2], [-1, 8, 7, 9], [5, 6, 3, 4], [0, 1, 2, 3]], dtype=torch.int32)
    assert oldest_minimum(score, pos).tolist() == [2, 2, 2, 1]


def test_T10_mean_over_heads_not_per_head(network):
    """Two heads, four keys: the mean evicts key 2, which neither head ranks last; per head 0 and 1 go."""
    heads = torch.tensor([[[0.02, 0.50, 0.10, 0.38], [0.50, 0.02, 0.10, 0.38]]]).double()[:, :, None]

    def victims(spec, probs_BHTS, **changes):
        state = network(spec, **changes).new_cache(1, 9).states["0.attention"]
        pos = torch.arange(4).expand(1, state.choices, 4)
        row = state.per_choice(probs_BHTS)[:, :, 0]
        return oldest_minimum(state.rate(state.meta, row, pos, torch.tensor([3])), pos).tolist()

    assert victims("tova:budget=3", heads, num_heads=2, num_kv_heads=2) == [[2]]
    assert victims("tova:budget=3,select=head", heads, num_heads=2, num_kv_heads=2) == [[0, 1]]
    # All query heads count alike, also where two of them share a KV head.
    three = torch.tensor([[0.4, 0.1, 0.2, 0.3]] * 3 + [[0.0, 0.75, 0.05, 0.2]]).double()[None, :, None]
    assert victims("tova:budget=3", three, num_heads=4, num_kv_heads=2) == [[2]]
    assert victims("tova:budget=3,select=head", three, num_heads=4, num_kv_heads=2) == [[1, 2]]
    assert victims("tova:budget=4,protect=3", three, num_heads=4, num_kv_heads=2) == [[3]]


def test_T4_rows_do_not_meet(network, tokens):
    """Permuted rows give permuted results, and a row padded beside longer ones is as if alone."""
    model, ids = network("tova:budget=6"), tokens(3, N)
    lengths, order = [N, 11, 23], [2, 0, 1]
    valid = torch.arange(N) < torch.tensor(lengths)[:, None]
    first, second = model.new_cache(3, N + 1), model.new_cache(3, N + 1)
    a = model.extend(ids, valid, first)
    b = model.extend(ids[order], valid[order], second)
    assert (a[order] - b).abs().max() <= 1e-12
    for row, length in enumerate(lengths):
        alone = model.new_cache(1, N + 1)
        assert (model.extend(ids[row : row + 1, :length], None, alone) - a[row]).abs().max() <= 1e-12
        assert held(alone, 0) == held(first, 0, row) == held(second, 0, order.index(row))


@pytest.mark.parametrize("spec", ["tova:budget={k}", "tova:budget={k},select=head", "h2o:budget={k}"])
def test_T1_nothing_to_evict_is_full_attention(network, tokens, spec):
    """k >= N: logits of full attention, and nothing counted as evicted."""
    ids = tokens(2, N)
    for k in (N, N + 5):
        model = network(spec.format(k=k))
        cache = model.new_cache(2, N)
        assert (fed(model, ids, [20, 1, 15], cache) - model.forward(ids)).abs().max() <= 1e-11
        assert cache.evicted() == [0, 0] and held(cache, 3, 1) == list(range(N))


def test_T7_sinks_make_a_window_streaming(network, tokens):
    """Window+0 is FIFO; Window+i with original positions keeps what StreamingLLM keeps."""
    ids = tokens(1, N)
    caches = {}
    for spec in ("window:budget=8,sinks=0", "window:budget=8,sinks=3", "streaming:budget=8,sinks=3"):
        model = network(spec)
        caches[spec] = model.new_cache(1, N)
        fed(model, ids, [5, 1, 30], caches[spec])
    kept = [held(cache, 1) for cache in caches.values()]
    assert kept[0] == list(range(N - 8, N))
    assert kept[1] == kept[2] == [0, 1, 2, *range(N - 5, N)]


@pytest.mark.parametrize("cuts", [[N], [1] * N, [9, 1, 26]])
def test_T8_nothing_heavy_is_a_window(network, tokens, cuts):
    """H2O without heavy hitters keeps the newest; with room for the prompt H2O and SnapKV do nothing."""
    ids = tokens(1, N)
    for prompt in ("bulk", "stepwise"):
        model = network(f"h2o:budget=6,heavy=0,prompt={prompt}")
        cache = model.new_cache(1, N)
        out = fed(model, ids, cuts, cache)
        assert all(held(cache, layer, 0, g) == list(range(N - 6, N)) for layer in range(4) for g in range(2))
        if prompt == "stepwise":
            assert (out[0] - window_of(model, ids[0], 6)).abs().max() <= 1e-11
    for spec in (f"h2o:budget={N}", f"snapkv:budget={N},window=4"):
        model = network(spec)
        out = fed(model, ids, cuts, model.new_cache(1, N))
        assert (out - model.forward(ids)).abs().max() <= 1e-11


def test_best_keeps_the_newest_of_equals():
    """The highest rated stay; among equals the oldest go; empty slots never stay."""
    rated = torch.tensor([[[1.0, 3.0, 1.0, 9.0, 1.0]]])
    pos = torch.tensor([[[0, 1, 2, -1, 4]]])
    assert best(rated, pos, 2).tolist() == [[[False, True, False, False, True]]]
    assert best(rated, pos, 3).tolist() == [[[False, True, True, False, True]]]
    assert best(rated, pos, 5).tolist() == [[[True, True, True, False, True]]]


def test_deaths_that_outweigh_the_living(network, tokens):
    """Keys that die within a block can hold nearly all attention of later rows: still the exact rule."""
    model, ids = network("tova:budget=6"), tokens(1, N)
    for block in model.blocks:
        block.mixer.qkv.weight[:48] *= 9  # logits in the hundreds
    expected = reference(model, ids[0], [N], "tova", budget=6)[0]
    assert (fed(model, ids, [N], model.new_cache(1, N))[0] - expected).abs().max() <= 1e-9


def test_T11_scores_are_probabilities(network, tokens):
    """Scores sum to 1 over survivors and the newest (T11), masked keys get exactly 0, fp32 at least."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.rand(2, 3, 7) > 0.4
    mask[..., 0] = True
    for dtype in (torch.float32, torch.bfloat16):
        _, probs = attention_with_probs(q.to(dtype), k.to(dtype), v.to(dtype), 0.7, mask)
        assert probs.dtype == torch.float32
        assert torch.allclose(probs.sum(-1), torch.ones(2, 4, 3), atol=1e-6)
        assert (probs.masked_select(~mask[:, None].expand_as(probs)) == 0).all()


def test_budget_of_everything_but_one(network, tokens):
    """At budget N - 1 exactly one token goes, and only after the last row has seen all N keys."""
    model, ids = network(f"tova:budget={N - 1}"), tokens(1, N)
    cache = model.new_cache(1, N)
    assert (fed(model, ids, [N], cache) - model.forward(ids)).abs().max() <= 1e-11
    assert [len(held(cache, layer)) for layer in range(4)] == [N - 1] * 4
