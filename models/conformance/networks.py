"""Networks to hold laws to: tiny shapes in which every option is on somewhere, and weights that matter.

Weights depend on a parameter's name alone, so architectures that share names share values, and no gain
is 1 and no bias 0: an operation that is left out changes the logits.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor, nn

import models

from ..architecture import Architecture, Shape
from ..rope import RopeScaling

_PLAIN = Shape(
    name="plain", vocab=61, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=48,
    ffn_dim_swa=40, ffn_dim_retention=56, window=7,
)  # fmt: skip
_CONV = Shape(
    name="conv", vocab=61, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=48, window=7,
    retention_head_dim=16, rope_fraction=0.5, rope_upper=False, conv=4, qk_norm=True,
)  # fmt: skip

#: "plain": grouped queries, rotary everywhere. "conv": everything the trained family switches on.
#: "heads", "one-kv": as many KV heads as query heads, and a single one. "checkpoint": what Llama- and
#: Qwen-like checkpoints add. "sliding": layers with a window of their own, between full ones.
SHAPES: dict[str, Shape] = {
    "plain": _PLAIN,
    "conv": _CONV,
    "heads": replace(_PLAIN, name="heads", num_kv_heads=4),
    "one-kv": replace(_PLAIN, name="one-kv", num_kv_heads=1),
    "checkpoint": replace(
        _PLAIN, name="checkpoint", attention_head_dim=12, retention_head_dim=8, qkv_bias=True,
        out_bias=True, ffn_bias=True, qk_rms=True, tied=True,
        rope_scaling=RopeScaling("llama3", 4.0, original_positions=16),
    ),
    "sliding": replace(_PLAIN, name="sliding", sliding_window=9, sliding_layers=(1, 2)),
}  # fmt: skip


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Values that depend on a parameter's name alone: equal names, equal weights. No gain is 1."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 0:
            value = noise.mul(0.1) + 0.4
        elif name.endswith("_scale"):
            value = noise.mul(0.3) + 2.5
        elif parameter.ndim == 1:
            value = noise.mul(0.3) + 1
        elif parameter.ndim == 2 and parameter.shape[1] <= 4:
            value = noise.mul(0.5)
        elif parameter.ndim == 2:
            value = noise * (1.0 if "embed" in name else 1.7 / parameter.shape[1] ** 0.5)
        else:
            value = noise * 4 / parameter[0].numel() ** 0.5
        parameter.copy_(value)


def network(spec: str, shape: Shape, dtype: torch.dtype = torch.float64) -> Architecture:
    """A filled model in eval mode, without gradients. Raises SpecError as `models.build` does."""
    model = models.build(spec, shape, dtype)
    fill(model)
    return model.to(dtype).requires_grad_(False).eval()


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids (batch, length) of the shapes' vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, _PLAIN.vocab, (batch, length), generator=generator)
