"""The same logits as `transformers`, for every family and every option that we load.

Networks with random weights, written by transformers itself (in shards) and read by us: prefill in one call,
then 64 decode steps, in fp32. What the options do must be visible: sequences are longer than windows and
than the length that a rope scaling starts from.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers_peer import draw, our_logits, ours, their_logits, theirs, transformers

import models
from models import checkpoint
from models.architecture import Shape
from models.pretrained import open_checkpoint

TOLERANCE = 1e-4
PROMPT, STEPS = 100, 64

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
#: Six pairs per head, so that a ramp has pairs on both of its sides.
WIDE = dict(head_dim=12)


def rope(**values) -> dict:
    return {"rope_parameters": {"rope_theta": 500.0, **values}} | WIDE


CASES = {
    "llama": {},
    "llama-all-heads": dict(num_key_value_heads=4, rms_norm_eps=1e-6),
    "llama-one-kv-head-biases": dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama-tied": rope(rope_type="default") | dict(tie_word_embeddings=True),
    "llama-head-dim": dict(head_dim=12),
    "llama-linear": rope(rope_type="linear", factor=4.0),
    "llama-llama3": rope(**LLAMA3, original_max_position_embeddings=64),
    "llama-yarn": rope(**YARN),
    "llama-yarn-attention-factor": rope(**YARN, attention_factor=1.3, beta_fast=8.0, beta_slow=2.0),
    "llama-yarn-mscale": rope(**YARN, mscale=1.4, mscale_all_dim=0.7),
    "llama-yarn-untruncated": rope(**YARN, truncate=False),
    "mistral-full": dict(sliding_window=None),
    "mistral-sliding": dict(sliding_window=9),
    "mistral-head-dim": dict(sliding_window=16, head_dim=16),
    "qwen2": {},
    "qwen2-tied": dict(tie_word_embeddings=True),
    "qwen2-upper-layers-sliding": dict(use_sliding_window=True, sliding_window=11, max_window_layers=1),
    "qwen2-unused-window": dict(use_sliding_window=False, sliding_window=11, max_window_layers=0),
    "qwen2-layer-types": dict(
        use_sliding_window=True,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "qwen2-yarn-sliding": rope(**YARN)
    | dict(use_sliding_window=True, sliding_window=40, max_window_layers=2),
    "qwen3": dict(head_dim=16),
    "qwen3-biases-tied": dict(head_dim=8, attention_bias=True, tie_word_embeddings=True),
    "qwen3-sliding": dict(head_dim=8, use_sliding_window=True, sliding_window=13, max_window_layers=1),
    "qwen3-yarn": rope(**YARN),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, tmp_path):
    """Prefill and 64 decode steps agree within 1e-4 in fp32, and our parallel forward does, too."""
    reference = theirs(tmp_path, case.partition("-")[0], **CASES[case])
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    tokens_BT = draw(PROMPT + STEPS)
    expected = their_logits(reference, tokens_BT, PROMPT)
    assert 0.3 < expected.std() < 30
    model = ours(tmp_path)
    delta = (our_logits(model, tokens_BT, PROMPT) - expected).abs().amax((0, 2))
    prefill, decode = float(delta[:PROMPT].max()), float(delta[PROMPT:].max())
    print(f"PARITY {case}: prefill {prefill:.1e}, decode {decode:.1e}")  # pytest -rP shows it
    assert prefill <= TOLERANCE and decode <= TOLERANCE, (prefill, decode)
    assert (model(tokens_BT) - expected).abs().max() <= TOLERANCE


def without(shape: Shape, case: str) -> Shape:
    """The shape that a loader would give that overlooked what the case switches on."""
    scaling = shape.rope_scaling
    if case.endswith("untruncated"):
        return replace(shape, rope_scaling=replace(scaling, truncate=True))
    if case.endswith(("attention-factor", "mscale")):
        return replace(shape, rope_scaling=replace(scaling, amplitude=0.1 * math.log(4) + 1))
    return replace(shape, sliding_layers=()) if shape.sliding_layers else replace(shape, rope_scaling=None)


@pytest.mark.parametrize(
    "case", [c for c in CASES if "sliding" in c or c.startswith("llama-yarn") or "-l" in c]
)
def test_an_option_that_is_overlooked_would_be_seen(case, tmp_path):
    """Without the window, scaling or temperature of a case, logits differ by far more than the tolerance."""
    theirs(tmp_path, case.partition("-")[0], **CASES[case])
    pretrained, tokens_BT = open_checkpoint(tmp_path), draw(PROMPT + STEPS)
    other = models.build("transformer", without(pretrained.shape, case)).requires_grad_(False)
    checkpoint.assign(other, pretrained.state(torch.float32), pretrained.name)
    delta = (other(tokens_BT) - ours(tmp_path)(tokens_BT)).abs().max()
    assert delta > 100 * TOLERANCE


def spelled_as_before(config: dict, key: str) -> dict:
    """config.json as transformers 4 wrote it: rope_theta and rope_scaling, no layer_types."""
    rope = dict(config["rope_parameters"])
    rope_theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {key: kind} | rope
    dropped = ("rope_parameters", "layer_types")
    kept = {name: value for name, value in config.items() if name not in dropped}
    return kept | {"rope_theta": rope_theta, "rope_scaling": scaling}


@pytest.mark.parametrize("case", [case for case in CASES if case != "qwen2-layer-types"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_spelling_of_transformers_4(case, key, tmp_path):
    """Old config files mean what new ones mean, to us as to transformers."""
    theirs(tmp_path, case.partition("-")[0], **CASES[case])
    new = open_checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(spelled_as_before(json.loads(path.read_text()), key)))
    assert open_checkpoint(tmp_path).shape == new.shape
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens_BT = draw(PROMPT)
    with torch.no_grad():
        expected = loaded(tokens_BT).logits
    assert (ours(tmp_path)(tokens_BT) - expected).abs().max() <= TOLERANCE
