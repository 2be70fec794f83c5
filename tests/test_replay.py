"""Decode steps that are replayed: the same logits as steps that run, and the same work in all of them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from replay_help import Listed, recorder

from models.conformance import networks
from models.replay import Replayed

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

SPECS = (
    "transformer", "window:budget=8", "yoco:window=5", "yoco:mixer=retention", "tova:budget=8",
    "h2o:budget=8", "random:budget=8", "lococo:budget=8,kernel=3,slack=2",
)  # fmt: skip
#: Kinds of steps in the steady state.
KINDS = dict.fromkeys(SPECS, 1) | {"lococo:budget=8,kernel=3,slack=2": 3}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def fused(network, spec: str, device: str = "cpu", num_layers: int = 2):
    model = network(spec, dtype=torch.float32, num_layers=num_layers).to(device)
    model.use("fused", "cuda" if device == "meta" else None)
    return model


def prompted(model, tokens, capacity: int):
    cache = model.new_cache(2, capacity, prompts=[20, 20], device=tokens.device)
    model.extend(tokens[:, :20], None, cache)
    return cache


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="captured for real there")
@pytest.mark.parametrize("spec", SPECS)
def test_replayed_steps_are_steps(network, monkeypatch, spec):
    """Also after a row stood still: rows are out of step then, nothing is replayed, and they meet again."""
    model, tokens = fused(network, spec), networks.tokens(2, 40)
    plain, cache = prompted(model, tokens, 40), prompted(model, tokens, 40)
    replayed = Replayed(model, cache, recorder(monkeypatch))
    for t in range(20, 32 if KINDS[spec] > 1 else 25):
        expected = model.decode(tokens[:, t], plain)
        assert (replayed(tokens[:, t]) - expected).abs().max() < 1e-5, t
    assert sum(graph is not None for graph in replayed.graphs.values()) == KINDS[spec]
    assert (cache.seen, cache.evicted()) == (plain.seen, plain.evicted())
    assert cache.live_bytes() == plain.live_bytes()
    still = torch.tensor([True, False])
    for valid in (still, None, ~still, None):
        expected = model.decode(tokens[:, 32], plain, valid)
        found = replayed(tokens[:, 32], valid)
        moved = slice(None) if valid is None else valid
        assert (found[moved] - expected[moved]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "steps", [pytest.param(100, marks=pytest.mark.full), pytest.param(1000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("spec", sorted(set(SPECS) - {"transformer", "random:budget=8", "yoco:window=5"}))
def test_all_steps_do_the_same_work(network, monkeypatch, spec, steps):
    """Same operations and launches, same sizes and constants, step after step: nothing is compiled anew."""
    model = fused(network, spec, "meta", num_layers=2 if spec.startswith("yoco") else 1)
    tokens = torch.zeros(2, 1, dtype=torch.long, device="meta")
    cache = model.new_cache(2, 1100, device="meta")
    while cache.step_key() is None or max(cache.seen) < 20:
        model.decode(tokens[:, 0], cache)
    replayed = Replayed(model, cache)
    replayed(tokens[:, 0])
    seen: dict = {}
    step = replayed._step
    with Listed(monkeypatch) as listed:
        monkeypatch.setattr(replayed, "_step", lambda: (listed.done.clear(), step())[1])
        for _ in range(steps):
            replayed.graphs.clear()  # nothing is ever captured: every step runs
            listed.done, key = [], cache.step_key()
            replayed(tokens[:, 0])
            assert key is not None and seen.setdefault(key, listed.done) == listed.done
    assert len(seen) == KINDS[spec]


def test_a_state_that_replaces_its_tensor_is_found_out(network, monkeypatch):
    model, tokens = fused(network, "transformer"), networks.tokens(2, 40)
    cache = prompted(model, tokens, 40)
    state = next(iter(cache.states.values()))
    real = state.append

    def replacing(*arguments):
        real(*arguments)
        state.tensors["k"] = state.tensors["k"].clone()

    monkeypatch.setattr(state, "append", replacing)
    replayed = Replayed(model, cache, recorder(monkeypatch))
    replayed(tokens[:, 20])
    with pytest.raises(RuntimeError, match=r"replaces the tensor 0\.attention\.k"):
        replayed(tokens[:, 21])


def test_a_full_cache_is_told(network):
    model, tokens = fused(network, "transformer"), networks.tokens(2, 40)
    replayed = Replayed(model, prompted(model, tokens, 20))
    with pytest.raises(ValueError, match="capacity of 20"):
        replayed(tokens[:, 20])
