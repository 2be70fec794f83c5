"""Every policy runs on every family of checkpoints: exact while its budget holds all, finite when not.

Whatever builds on the Transformer's weights is tried, files that are yet to come included. "Exact" means
the logits of `transformers` on the same checkpoint; Mistral and Qwen2 have sliding windows below the length.
"""

from __future__ import annotations

import pytest
import torch
from transformers_peer import draw, our_logits, their_logits, theirs

import models
from models.conformance.options import with_budget
from models.pretrained import open_checkpoint
from models.spec import canonical

PROMPT, STEPS = 40, 24

FAMILIES = {
    "llama": dict(
        tie_word_embeddings=True,
        attention_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    ),
    "mistral": dict(sliding_window=9),
    "qwen2": dict(use_sliding_window=True, sliding_window=11, max_window_layers=1),
    "qwen3": dict(head_dim=12),
}


def _weights(policy: str) -> tuple[str, ...]:
    module, options = models.parse(policy)
    return module.Model.weight_names(options)


POLICIES = [name for name in models.names() if "transformer" in _weights(name)]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint_and_logits(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    reference = theirs(folder, request.param, **FAMILIES[request.param])
    return open_checkpoint(folder), their_logits(reference, draw(PROMPT + STEPS), PROMPT)


def network(spec: str, pretrained):
    """The policy on the checkpoint; what it has beyond the Transformer (compressors) is as initialised."""
    torch.manual_seed(0)
    model = models.build(spec, pretrained.shape).requires_grad_(False).eval()
    foreign = model.load_state_dict(pretrained.state(torch.float32), strict=False).unexpected_keys
    assert not foreign
    return model


@pytest.mark.parametrize("policy", POLICIES)
def test_an_ample_budget_gives_the_logits_of_transformers(policy, checkpoint_and_logits):
    pretrained, expected = checkpoint_and_logits
    _, options = models.parse(policy)
    spec = canonical(policy, with_budget(options, PROMPT + STEPS)) if hasattr(options, "budget") else policy
    got = our_logits(network(spec, pretrained), draw(PROMPT + STEPS), PROMPT)
    assert (got - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("policy", [p for p in POLICIES if hasattr(models.parse(p)[1], "budget")])
def test_a_tight_budget_evicts_and_stays_finite(policy, checkpoint_and_logits):
    pretrained, expected = checkpoint_and_logits
    _, options = models.parse(policy)
    # A policy that declines a budget of 8 as too small for its protected tokens is offered 12.
    model = network(canonical(policy, with_budget(options, 8, 12)), pretrained)
    tokens_BT = draw(PROMPT + STEPS)
    cache = model.new_cache(2, PROMPT + STEPS, prompts=[PROMPT] * 2)
    outs = [model.extend(tokens_BT[:, :PROMPT], None, cache)]
    outs += [model.decode(tokens_BT[:, t], cache) for t in range(PROMPT, PROMPT + STEPS)]
    logits_BTV = torch.stack(outs, 1)
    assert logits_BTV.isfinite().all() and min(cache.evicted()) > 0
    assert (logits_BTV - expected[:, PROMPT - 1 :]).abs().max() > 1e-3
