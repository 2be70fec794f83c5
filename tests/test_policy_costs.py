"""What the further policies cost, by formulas written out here; the first ones are in `test_cost.py`."""

from __future__ import annotations

import pytest
import torch
from test_cost import D, G, H, L, N, counted, dtypes, grown, kinds, triangle

#: Slots of a budget of 9.
B = 10


@dtypes
def test_cache_bytes_by_formula(network, dtype, b):
    """Scores have at least fp32 and cost bytes; positions are int32, free slots int64, history is boolean."""
    wide = max(b, 4)
    slots, free = B * 4, 8
    expected = {  # per layer: tokens with keys and values, bytes of metadata
        "streaming:budget=9,sinks=2": (B, slots),
        "tova:budget=9,select=head": (B, G * (slots + free)),
        "tova:budget=9,positions=compressed": (B, slots + free),
        "h2o:budget=9": (B, G * (slots + free + B * wide)),
        "h2o:budget=9,select=layer": (B, slots + free + B * wide),
        "scissorhands:budget=9,history=7,recent=2": (B, G * (slots + free + B)),
        "snapkv:budget=9,window=4": (N, G * N * 4),
        "short:budget=9": (9, 0),
        "short:budget=9,mode=truncate": (18, 0),
    }
    for spec, (tokens_held, metadata) in expected.items():
        predicted = network(spec, dtype=dtype).cache_bytes(N)
        assert kinds(predicted) == (2 * L * tokens_held * G * D * b, L * metadata, 0), spec


#: spec -> (query, key) pairs of a prompt of N tokens over all layers, by each rule's definition.
PAIRS = {
    "streaming:budget=9,sinks=2": L * grown(N, B),
    "h2o:budget=9": L * triangle(N),
    "h2o:budget=9,prompt=stepwise": L * grown(N, B),
    "scissorhands:budget=9,history=7,recent=2": L * grown(N, B),
    "scissorhands:budget=9,history=7,recent=2,prompt=bulk": L * triangle(N),
    "snapkv:budget=9,window=4": L * (triangle(N) + 4 * N),  # the window's rows once more, for the scores
    "short:budget=9": L * (4 * triangle(9) + triangle(4)),
    "short:budget=9,mode=truncate": L * triangle(9),
}


@pytest.mark.parametrize("spec", PAIRS)
def test_prefill_flops(network, tokens, spec):
    """Predicted = what the counter sees in linear layers + 4 H D per (query, key) pair of the rule."""
    model, ids = network(spec, dtype=torch.float32), tokens(1, N)
    linear, _ = counted(lambda: model.extend(ids, None, model.new_cache(1, N)))
    assert model.prefill_flops(N) == linear + 4 * H * D * PAIRS[spec]
    assert model.prefill_flops(N, 3) == 3 * model.prefill_flops(N)


@pytest.mark.parametrize("spec", [spec for spec in PAIRS if not spec.startswith("streaming")])
def test_decode_flops(network, tokens, spec):
    """Predicted = every matrix product that the counter sees in one step (StreamingLLM: the rule alone)."""
    model, ids = network(spec, dtype=torch.float32), tokens(1, N)
    cache = model.new_cache(1, N + 9)
    model.extend(ids, None, cache)
    _, everything = counted(lambda: model.decode(ids[:, 0], cache))
    assert model.decode_flops(N) == everything


@pytest.mark.parametrize("spec", ["h2o:budget=9", "snapkv:budget=9,window=4"])
def test_the_models_own_window_bounds_a_bulk_prompt(network, spec):
    """A layer that sees 7 tokens is that much cheaper than one that sees the whole prompt."""
    full, narrow = (network(spec, sliding_window=7, sliding_layers=layers) for layers in ((), (0, 2)))
    saved = full.prefill_flops(N) - narrow.prefill_flops(N)
    assert saved == 4 * H * D * 2 * (triangle(N) - grown(N, 7))
