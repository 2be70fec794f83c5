"""Prompts longer than the blocks of queries in which they are worked off change nothing.

Blocks have 32, 64 or 256 queries, depending on what is materialised; the sweep over all options
(`test_against_reference.py`) is shorter than any of them.
"""

from __future__ import annotations

import pytest
import torch
from reference import reference_of_spec

#: A chunk, the rest of the prompt, a step, a segment.
CALLS, PROMPT = [5, 290, 1, 4], 295


@pytest.mark.parametrize(
    "spec",
    [
        "transformer",
        "window:budget=10,sinks=3",
        "streaming:budget=10,sinks=3",
        "tova:budget=10",
        "tova:budget=10,prompt=bulk,select=head",
        "h2o:budget=10",
        "h2o:budget=10,prompt=stepwise",
        "scissorhands:budget=10,history=40,recent=3,prompt=bulk",
        "snapkv:budget=10,window=4,kernel=3",
        "snapkv:budget=80,window=70",
        "short:budget=270",
    ],
)
def test_prompts_longer_than_a_block(network, tokens, spec):
    model, ids = network(spec, num_layers=1), tokens(1, sum(CALLS))
    cache = model.new_cache(1, sum(CALLS), prompts=[PROMPT])
    out = torch.cat([model.extend(part, None, cache, "all") for part in ids.split(CALLS, 1)], 1)[0]
    declared = {"prompt_length": PROMPT} if spec.startswith("snapkv") else {}
    # What follows a declared prompt is taken token by token, whatever the calls.
    calls = [*CALLS[:2], *[1] * sum(CALLS[2:])] if "bulk" in model.prompt_mode else CALLS
    expected, kept = reference_of_spec(spec, model, ids[0], calls, **declared)
    assert (out - expected).abs().max() <= 1e-9
    held = cache.states["0.attention"].kept_positions()[0].tolist()
    assert [sorted(j for j in head if j >= 0) for head in held] == kept[0]
