"""LoCoCo over long streams: what stays, what a bounded alpha is for, and what is told about the mixtures."""

from __future__ import annotations

import math

import pytest
import torch

from models.architectures.lococo import Options
from models.compressor import Compressor
from models.compressor_training import what_is_mixed

LONG = 1500


def stream(model, ids, cache, segment=50):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(segment, 1)], 1)


def memory(cache, options, layer=0):
    """Norm of the largest mixed key."""
    state = cache.states[f"{layer}.attention"]
    return (
        state.tensors["k"][:, :, options.budget - options.folded : options.budget].norm(dim=-1).max().item()
    )


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_a_bounded_alpha_survives_a_long_stream(network, tokens, spread):
    """Hundreds of folds at any parameter: logits are finite, and no mixed key grows beyond those that it was
    made from. A free alpha as large leaves every bound within the same stream."""
    ids = tokens(1, LONG)
    largest = {}
    for alpha in ("bounded", "free"):
        model = network(f"lococo:budget=6,block=5,slack=0,kernel=3,alpha={alpha}", "conv")
        for compressor in model.compressors:
            compressor.alpha.fill_(spread)
            compressor.conv.weight.mul_(spread)
        cache = model.new_cache(1, LONG)
        logits = stream(model, ids, cache)
        largest[alpha] = memory(cache, model.options)
        if alpha == "bounded":
            assert logits.isfinite().all()
            key = model.blocks[0].mixer.k_scale.abs().max().item()  # keys are unit vectors times this
            assert largest["bounded"] <= key + 1e-9
    assert cache.statistics()["compressions"][0] > LONG / 5 - 5
    if spread > 1:
        assert not largest["free"] <= 1e6


def test_bounded_is_the_sigmoid_of_the_parameter():
    """Nearly all learned at first, where a free one is 1/2; never outside 0 and 1; a gradient reaches it."""
    bounded, free = (Compressor(4, Options(budget=8, kernel=3, alpha=a)) for a in ("bounded", "free"))
    assert bounded.share.item() == pytest.approx(0.953, abs=1e-3) and free.share.item() == 0.5
    k, v, score = torch.randn(1, 1, 20, 4), torch.randn(1, 1, 20, 4), torch.rand(1, 1, 20)
    for value in (-30.0, -2.0, 3.0, 30.0):
        with torch.no_grad():
            bounded.alpha.fill_(value)
        assert bounded.share.item() == pytest.approx(1 / (1 + math.exp(-value)))
        assert (bounded.weights(k, v, score) >= 0).all()
    with torch.no_grad():
        bounded.alpha.fill_(0.3)
    bounded(k, v, score).apply(v).square().sum().backward()
    assert bounded.alpha.grad.abs() > 0


def test_sinks_stay_for_ever(network, tokens):
    """The first slots are held, in place and unchanged, whatever attention they get; without them they go."""
    ids = tokens(1, 300)
    for sinks in (3, 0):
        model = network(f"lococo:budget=12,heavy=0.5,local=3,block=4,sinks={sinks}")
        cache = model.new_cache(1, 300)
        stream(model, ids[:, :4], cache)
        first = {n: s.tensors["k"][:, :, :3].clone() for n, s in cache.states.items()}
        stream(model, ids[:, 4:], cache)
        held = [torch.equal(cache.states[n].tensors["k"][:, :, :3], k) for n, k in first.items()]
        assert all(held) if sinks else not any(held)


def test_mixtures_do_not_count_as_new(network, tokens):
    """`local` newest tokens are held behind every fold, however many mixtures lie between them in memory."""
    local, block = 9, 4
    options = f"budget=16,heavy=0.6,sinks=1,local={local},block={block},slack=0"
    model, ids = network(f"lococo:{options}"), tokens(2, 200)
    full, cache = network("transformer"), model.new_cache(2, 200)
    whole = full.new_cache(2, 200)
    for part in ids.split(block, 1):
        model.extend(part, None, cache)
        full.extend(part, None, whole)
        seen = cache.seen[0]
        if cache.statistics()["compressions"][0]:
            k, every = (c.states["0.attention"].tensors["k"] for c in (cache, whole))
            for position in range(seen - block - local, seen):  # what a fold kept, and the block behind it
                assert (k - every[:, :, position : position + 1]).abs().amax(-1).amin(-1).max() <= 1e-12


def test_entropy_is_told_per_layer(network, tokens):
    """Equal weights mix all alike: log r nats, a share of 1. Sharp ones pick a slot: 0. NaN before a fold."""
    model, ids = network("lococo:budget=6,kernel=1,block=5"), tokens(2, 60)
    assert all(math.isnan(x) for x in model.new_cache(2, 9).statistics()["lococo_entropy"])
    for compressor, scale in zip(model.compressors, (0.0, 0.0, 1.0, 1e6), strict=True):
        compressor.conv.weight.mul_(scale)
    told = what_is_mixed(model, ids)
    assert told["entropy_share_0"] == told["entropy_share_1"] == pytest.approx(1)
    assert 0.01 < told["entropy_share_2"] < 0.99 and told["entropy_share_3"] < 0.3
    cache = model.new_cache(2, 60)
    stream(model, ids, cache)
    state = cache.states["0.attention"]
    mixed = state.rows["held"][0] - 3  # all but the heavy ones
    assert told["entropy_0"] == pytest.approx(math.log(mixed))
    shares = [told[f"entropy_share_{layer}"] for layer in range(4)]
    assert sum(cache.statistics()["lococo_entropy"]) / 2 == pytest.approx(sum(shares) / 4)
    assert [told[f"alpha_{layer}"] for layer in range(4)] == [c.alpha.item() for c in model.compressors]
