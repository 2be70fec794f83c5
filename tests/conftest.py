"""What every test shares: one thread, and small networks in which every parameter matters."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
import torch

import models
from models.architecture import Shape

torch.set_num_threads(1)

#: "plain": grouped queries, rotary everywhere. "conv": everything the trained family switches on.
SHAPES = {
    "plain": Shape(
        name="plain", vocab=61, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=48,
        ffn_dim_swa=40, ffn_dim_retention=56, window=7,
    ),
    "conv": Shape(
        name="conv", vocab=61, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=48, window=7,
        retention_head_dim=16, rope_fraction=0.5, rope_upper=False, conv=4, qk_norm=True,
    ),
}  # fmt: skip


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
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


@pytest.fixture
def network():
    """network(spec, shape="plain", dtype=torch.float64, **changes) -> a model in eval mode, no gradients."""

    def build(spec: str, shape: str = "plain", dtype: torch.dtype = torch.float64, **changes):
        model = models.build(spec, replace(SHAPES[shape], **changes))
        _fill(model)
        return model.to(dtype).requires_grad_(False).eval()

    return build


@pytest.fixture
def tokens():
    """tokens(batch, length, seed=0) -> random token ids (batch, length)."""

    def draw(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, SHAPES["plain"].vocab, (batch, length), generator=generator)

    return draw
