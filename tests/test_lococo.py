"""LoCoCo's published rule: a naive block-wise reference, and the method's invariants L1 to L12 by number."""

from __future__ import annotations

import pytest
import torch
from reference import reference, reference_of_spec
from torch.nn.functional import cross_entropy

import models
from models.architectures.lococo import Options
from models.compressor import Compressor, split_top
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
    expected, _ = reference_of_spec(f"lococo:{options}", model, ids[0], calls)
    cache = model.new_cache(1, N)
    assert (fed(model, ids, calls, cache)[0] - expected).abs().max() <= 1e-10
    folds = cache.statistics()["compressions"][0]
    assert folds >= 1 or (calls == [N] and "block=60" in options)
    assert cache.evicted()[0] == 4 * (N - held(cache)[0])
    assert cache.kept_positions() == {}


@pytest.mark.parametrize("calls", [[N], [20, 1, 1, 1, 7, 30], [30] + [1] * 30])
def test_L1_alpha_zero_is_top_m_eviction(network, tokens, calls):
    """alpha = 0: the kept set is the top M by the last call's attention; nothing is mixed."""
    model, ids = network("lococo:budget=6"), tokens(1, N)
    for compressor in model.compressors:
        compressor.alpha.zero_()
    out = fed(model, ids, calls, model.new_cache(1, N))[0]
    # All slots heavy: the reference mixes nothing.
    expected, _ = reference(model, ids[0], calls, "lococo", budget=6, heavy=1.0)
    assert (out - expected).abs().max() <= 1e-11
    for compressor in model.compressors:
        compressor.alpha.fill_(0.5)
    assert (fed(model, ids, calls, model.new_cache(1, N))[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("calls", [[22], [1] * 22, [9, 9, 4]])
def test_L2_nothing_folds_within_the_slack(network, tokens, calls):
    """Up to M + 16 tokens LoCoCo is full attention, cut as you like; one more folds, a call later."""
    model, ids = network("lococo:budget=6"), tokens(1, 24)
    expected = network("transformer").forward(ids)
    cache = model.new_cache(1, 24)
    assert (fed(model, ids[:, :22], calls, cache) - expected[:, :22]).abs().max() <= 1e-11
    assert cache.statistics()["compressions"] == [0] and cache.evicted() == [0]
    # A fold waits for the call after the one that went over: its own keys are exact (7.3.1).
    over = model.decode(ids[:, 22], cache)
    assert cache.statistics()["compressions"] == [0]
    assert (over - expected[:, 22]).abs().max() <= 1e-11
    assert (model.decode(ids[:, 23], cache) - expected[:, 23]).abs().max() > 1e-4
    assert cache.statistics()["compressions"] == [1]


def random_slots(n, alpha, options, dtype=torch.float64):
    torch.manual_seed(n)
    compressor = Compressor(8, options).to(dtype).requires_grad_(False)
    compressor.conv.weight.mul_(5)
    compressor.alpha.fill_(alpha)
    k, v = torch.randn(2, 3, n, 8, dtype=dtype), torch.randn(2, 3, n, 8, dtype=dtype)
    return compressor, k, v, torch.rand(2, 3, n, dtype=dtype)


def memories(compressor, k, v, score):
    fold = compressor(k, v, score)
    return fold.apply(k), fold.apply(v)


def test_L3_alpha_zero_of_m_slots_is_a_permutation():
    """alpha = 0 and n = M: every slot is kept once, whatever its order."""
    compressor, k, v, score = random_slots(10, 0.0, Options(budget=10, kernel=3))
    for memory, source in zip(memories(compressor, k, v, score), (k, v), strict=True):
        distance = (memory[:, :, :, None] - source[:, :, None]).abs().amax(-1)
        assert ((distance == 0).sum(-1) == 1).all() and ((distance == 0).sum(-2) == 1).all()


def test_L4_blockwise_loss_is_the_base_models(network, tokens):
    """While no call compresses, the cross-entropy of blocks is that of the frozen network, block by block."""
    ids = tokens(2, 41)
    base, model = network("transformer"), network("lococo:budget=24")
    whole, cache = base.forward(ids[:, :-1]), model.new_cache(2, 40)
    for start in range(0, 40, 10):
        part = slice(start, start + 10)
        logits, target = model.extend(ids[:, :-1][:, part], None, cache, "all"), ids[:, 1:][:, part]
        expected = cross_entropy(whole[:, part].mT, target)
        assert (cross_entropy(logits.mT, target) - expected).abs() <= 1e-12
    assert cache.statistics()["compressions"] == [0, 0]


def test_L5_slots_in_use(network, tokens):
    """After any call at most M + 16 + its length are filled, M + its length right after a fold."""
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


@pytest.mark.parametrize("alpha", [-0.7, 0.0, 0.3, 0.5, 1.0, 1.9])
def test_L6_mixing_weights_sum_to_one(alpha):
    """Rows of W sum to 1 for any alpha; none is negative for 0 <= alpha <= 1, so memory stays in the hull
    of its inputs."""
    compressor, k, v, score = random_slots(30, alpha, Options(budget=12, heavy=0.5, kernel=5))
    rows = compressor.weights(k, v, score)
    assert rows.shape == (2, 3, 6, 30)
    assert (rows.sum(-1) - 1).abs().max() <= 1e-12
    made = memories(compressor, k, v, score)
    assert made[0].shape == made[1].shape == (2, 3, 12, 8)
    if 0 <= alpha <= 1:
        assert (rows >= 0).all()
        for memory, source in zip(made, (k, v), strict=True):
            assert (memory <= source.amax(2, keepdim=True) + 1e-12).all()
            assert (memory >= source.amin(2, keepdim=True) - 1e-12).all()
    if alpha == 1.0:
        assert (rows.amax(-1) < 0.999).any() and (rows.std(-1) > 1e-3).any()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.7])
def test_L7_equal_tokens_stay_equal(alpha):
    """Where all keys and values are one, memory is that one, for any alpha."""
    compressor, k, v, score = random_slots(25, alpha, Options(budget=8, kernel=3))
    k, v = k[:, :, :1].expand_as(k), v[:, :, :1].expand_as(v)
    for memory, source in zip(memories(compressor, k, v, score), (k, v), strict=True):
        assert (memory - source[:, :, :8]).abs().max() <= 1e-12


@pytest.mark.parametrize("block", [1, 7, 16, 60])
def test_L8_blocks_without_compression_are_one_forward(network, tokens, block):
    """With room for everything, any block size gives the logits of a single parallel pass."""
    model, ids = network(f"lococo:budget=60,block={block}"), tokens(2, N)
    out = model.extend(ids, None, model.new_cache(2, N), "all")
    assert (out - model.forward(ids)).abs().max() <= 1e-11


def test_L9_decode_folds_every_17_steps(network, tokens):
    """From a cache of M + 17 or more, decoding folds at steps 0, 17, 34, ..."""
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


@pytest.mark.parametrize("depth", [1, 2])
def test_L10_heads_share_one_compressor(depth):
    """Permuting heads (or rows) permutes memory: no head has weights of its own."""
    compressor, k, v, score = random_slots(30, 0.6, Options(budget=8, depth=depth))
    whole = memories(compressor, k, v, score)
    for index in ((slice(None), [2, 0, 1]), ([1],)):
        part = memories(compressor, k[index], v[index], score[index])
        for got, memory in zip(part, whole, strict=True):
            assert (got - memory[index]).abs().max() <= 1e-12


def test_L11_gradient_stays_in_its_block(network, tokens):
    """Block by block with detach_(): block n's loss gives block n-1's activations no gradient, and the
    compressor gets one exactly from the blocks that read what it folded."""
    model, ids = network("lococo:budget=8").requires_grad_(True), tokens(2, 64)
    embedded = []
    model.embed.register_forward_hook(lambda module, args, out: embedded.append(out) or out.retain_grad())
    cache = model.new_cache(2, 64)
    for block, part in enumerate(ids.split(8, 1)):
        model.zero_grad()
        logits = model.extend(part, None, cache, "all")
        earlier = [x.grad.clone() for x in embedded[:-1]]
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten())
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


@pytest.mark.parametrize(("budget", "expected"), [(512, 1_376_513), (128, 344_129)])
def test_L12_parameter_formula(budget, expected):
    """(2h * Mc * 21 + Mc + 1) per layer: 1,376,513 for M = 512 and heads of 128; 44.05 M in Llama-2-7B."""
    options, mixed = Options(budget=budget), budget // 2
    assert 2 * 128 * mixed * 21 + mixed + 1 == expected
    assert sum(p.numel() for p in Compressor(128, options).parameters()) == expected
    with torch.device("meta"):
        model = models.build(f"lococo:budget={budget}", SHAPES["7b"])
        assert model.compressor_bytes() == 32 * expected * 4
        assert model.bfloat16().compressor_bytes() == 32 * expected * 2
        assert models.build("transformer", SHAPES["tiny"]).compressor_bytes() == 0


def test_equal_scores_let_the_oldest_go():
    """split_top: the largest, the newest of equals first, both parts in temporal order."""
    top, rest = split_top(torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0, 2.0]]), 4)
    assert top.tolist() == [[1, 3, 4, 5]] and rest.tolist() == [[0, 2]]
    top, rest = split_top(torch.ones(1, 6), 2)
    assert top.tolist() == [[4, 5]] and rest.tolist() == [[0, 1, 2, 3]]
