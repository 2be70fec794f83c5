"""LoCoCo: the block-wise reference, and what the method promises about its mixtures (L1-L12 of the notes)."""

from __future__ import annotations

import pytest
import torch
from references import lococo, reference_logits, top_by_last_call

import models
from models.architectures.lococo import Compressor, Options, split_top
from models.shapes import SHAPES

N = 60


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


def held(cache, layer=0):
    return cache.states[f"{layer}.attention"].rows["held"]


@pytest.mark.parametrize("shape", ["plain", "conv"])
@pytest.mark.parametrize(
    "options", ["budget=6", "budget=8,heavy=0.25,kernel=3,block=5", "budget=5,heavy=0,block=60"]
)
@pytest.mark.parametrize("calls", [[N], [20, 1, 1, 1, 7, 30], [7] * 8 + [4], [30] + [1] * 30])
def test_blockwise_reference(network, tokens, shape, options, calls):
    """Heavy hitters verbatim, the rest folded, lazily, before the block that would not fit: same logits."""
    model, ids = network(f"lococo:{options}", shape), tokens(1, N)
    expected = reference_logits(model, ids[0], lococo(model, calls))
    cache = model.new_cache(1, N)
    assert (fed(model, ids, calls, cache)[0] - expected).abs().max() <= 1e-10
    folds = cache.statistics()["compressions"][0]
    assert folds >= 1 or (calls == [N] and "block=60" in options)
    assert cache.evicted()[0] == 4 * (N - held(cache)[0])


@pytest.mark.parametrize("calls", [[N], [20, 1, 1, 1, 7, 30], [30] + [1] * 30])
def test_alpha_zero_is_top_m_eviction(network, tokens, calls):
    """alpha = 0: the kept set is the top M by the last call's attention; nothing is mixed (L1)."""
    model, ids = network("lococo:budget=6"), tokens(1, N)
    for compressor in model.compressors:
        compressor.alpha.zero_()
    out = fed(model, ids, calls, model.new_cache(1, N))[0]
    expected = reference_logits(model, ids[0], top_by_last_call(6, 6, calls))
    assert (out - expected).abs().max() <= 1e-11
    for compressor in model.compressors:
        compressor.alpha.fill_(0.5)
    assert (fed(model, ids, calls, model.new_cache(1, N))[0] - expected).abs().max() > 1e-3


def test_nothing_folds_within_the_slack(network, tokens):
    """Up to M + 16 tokens LoCoCo is full attention, cut as you like (L2, L4, L8); one more folds."""
    model, ids = network("lococo:budget=6"), tokens(1, 24)
    expected = network("transformer").forward(ids)
    for calls in ([22], [1] * 22, [9, 9, 4]):
        cache = model.new_cache(1, 24)
        assert (fed(model, ids[:, :22], calls, cache) - expected[:, :22]).abs().max() <= 1e-11
        assert cache.statistics()["compressions"] == [0] and cache.evicted() == [0]
        # A fold waits for the call after the one that went over: its own keys are exact (7.3.1).
        over = model.decode(ids[:, 22], cache)
        assert cache.statistics()["compressions"] == [0]
        assert (over - expected[:, 22]).abs().max() <= 1e-11
        assert (model.decode(ids[:, 23], cache) - expected[:, 23]).abs().max() > 1e-4
        assert cache.statistics()["compressions"] == [1]


def test_slots_in_use(network, tokens):
    """After any call at most M + 16 + its length are filled, M + its length right after a fold (L5)."""
    model, ids = network("lococo:budget=6,block=5"), tokens(2, N)
    cache, folds, before = model.new_cache(2, N), 0, 0
    for part in ids.split([5, 3, 5, 5, 5, 1, 1, 5, 2, 5, 5, 5, 1, 5, 4, 3], 1):
        model.extend(part, None, cache)
        now = cache.statistics()["compressions"][0]
        length = part.shape[1]
        assert held(cache)[0] <= 6 + 16 + length
        assert held(cache)[0] == (6 if now > folds else before) + length
        assert all(held(cache, layer) == held(cache) for layer in range(4))
        folds, before = now, held(cache)[0]
    assert folds >= 2


def test_decode_folds_every_17_steps(network, tokens):
    """From a cache of M + 17 or more, decoding folds at steps 0, 17, 34, ... (L9)."""
    model, ids = network("lococo:budget=6,block=9"), tokens(1, 23 + 52)
    cache = model.new_cache(1, 80)
    for part in ids[:, :23].split([9, 9, 5], 1):
        model.extend(part, None, cache)
    assert held(cache) == [23]
    steps, folds = [], 0.0
    for step in range(52):
        model.decode(ids[:, 23 + step], cache)
        now = cache.statistics()["compressions"][0]
        steps += [step] * int(now - folds)
        folds = now
    assert steps == [0, 17, 34, 51]


def random_slots(n, alpha, options, dtype=torch.float64):
    torch.manual_seed(n)
    compressor = Compressor(8, options).to(dtype).requires_grad_(False)
    compressor.conv.weight.mul_(5)
    compressor.alpha.fill_(alpha)
    k, v = torch.randn(2, 3, n, 8, dtype=dtype), torch.randn(2, 3, n, 8, dtype=dtype)
    return compressor, k, v, torch.rand(2, 3, n, dtype=dtype)


@pytest.mark.parametrize("alpha", [-0.7, 0.0, 0.3, 0.5, 1.0, 1.9])
def test_mixing_weights_sum_to_one(alpha):
    """Rows of W sum to 1 for any alpha; none is negative for 0 <= alpha <= 1, so memory stays in the hull
    of its inputs (L6)."""
    options = Options(budget=12, heavy=0.5, kernel=5)
    compressor, k, v, score = random_slots(30, alpha, options)
    rows = compressor.weights(k, v, score)
    assert rows.shape == (2, 3, 6, 30)
    assert (rows.sum(-1) - 1).abs().max() <= 1e-12
    memory_k, memory_v = compressor(k, v, score)
    assert memory_k.shape == memory_v.shape == (2, 3, 12, 8)
    if 0 <= alpha <= 1:
        assert (rows >= 0).all()
        for memory, source in ((memory_k, k), (memory_v, v)):
            assert (memory <= source.amax(2, keepdim=True) + 1e-12).all()
            assert (memory >= source.amin(2, keepdim=True) - 1e-12).all()
    if alpha == 1.0:
        assert (rows.amax(-1) < 0.999).any() and (rows.std(-1) > 1e-3).any()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.7])
def test_equal_tokens_stay_equal(alpha):
    """Where all keys and values are one, memory is that one, for any alpha (L7)."""
    compressor, k, v, score = random_slots(25, alpha, Options(budget=8, kernel=3))
    k, v = k[:, :, :1].expand_as(k), v[:, :, :1].expand_as(v)
    memory_k, memory_v = compressor(k, v, score)
    assert (memory_k - k[:, :, :8]).abs().max() <= 1e-12
    assert (memory_v - v[:, :, :8]).abs().max() <= 1e-12


def test_alpha_zero_of_m_slots_is_a_permutation():
    """alpha = 0 and n = M: every slot is kept once, whatever its order (L3)."""
    compressor, k, v, score = random_slots(10, 0.0, Options(budget=10, kernel=3))
    memory_k, memory_v = compressor(k, v, score)
    for memory, source in ((memory_k, k), (memory_v, v)):
        distance = (memory[:, :, :, None] - source[:, :, None]).abs().amax(-1)
        assert ((distance == 0).sum(-1) == 1).all() and ((distance == 0).sum(-2) == 1).all()


def test_heads_share_one_compressor():
    """Permuting heads (or rows) permutes memory: no head has weights of its own (L10)."""
    compressor, k, v, score = random_slots(30, 0.6, Options(budget=8))
    memory = compressor(k, v, score)
    for part, whole in zip(
        compressor(k[:, [2, 0, 1]], v[:, [2, 0, 1]], score[:, [2, 0, 1]]), memory, strict=True
    ):
        assert (part - whole[:, [2, 0, 1]]).abs().max() <= 1e-12
    for part, whole in zip(compressor(k[[1]], v[[1]], score[[1]]), memory, strict=True):
        assert (part - whole[[1]]).abs().max() <= 1e-12


def test_equal_scores_prefer_the_newest():
    """split_top: the largest, the newest of equals first, both parts in temporal order."""
    top, rest = split_top(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 2.0]]), 4)
    assert top.tolist() == [[1, 3, 4, 5]] and rest.tolist() == [[0, 2]]
    top, rest = split_top(torch.ones(1, 6), 2)
    assert top.tolist() == [[4, 5]] and rest.tolist() == [[0, 1, 2, 3]]


def test_gradient_stays_in_its_block(network, tokens):
    """Block by block with detach_(): block n's loss gives block n-1's activations no gradient (L11), and
    the compressor gets one exactly from the blocks that read what it folded."""
    model, ids = network("lococo:budget=8").requires_grad_(True), tokens(2, 64)
    embedded = []
    model.embed.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    cache = model.new_cache(2, 64)
    for block, part in enumerate(ids.split(8, 1)):
        model.zero_grad()
        logits = model.extend(part, None, cache, "all")
        earlier = [x.grad.clone() for x in embedded[:-1]]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
        loss.backward(retain_graph=True)
        cache.detach_()
        assert embedded[-1].grad.abs().max() > 0
        assert all(torch.equal(x.grad, old) for x, old in zip(embedded[:-1], earlier, strict=True))
        folded = block in (4, 7)  # slots before each block: 0 8 16 24 32, folded: 8 16 24 32, folded
        for compressor in model.compressors:
            got = [
                p.grad is not None and p.grad.abs().max() > 0
                for p in (compressor.conv.weight, compressor.alpha)
            ]
            assert got == [folded, folded], (block, got)


def test_parameter_formula():
    """(2h * Mc * 21 + Mc + 1) per layer: 1,376,513 for M = 512 and heads of 128 (L12)."""
    assert sum(p.numel() for p in Compressor(128, Options(budget=512)).parameters()) == 1_376_513
    with torch.device("meta"):
        model = models.build("lococo:budget=512", SHAPES["7b"])
        assert model.compressor_bytes() == 32 * 1_376_513 * 4
        assert model.bfloat16().compressor_bytes() == 32 * 1_376_513 * 2
        assert models.build("transformer", SHAPES["tiny"]).compressor_bytes() == 0
