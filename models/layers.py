"""Bricks without any knowledge of caches: norm, convolution, feed-forward (positions: `rope.py`).

Letters as in `models/architecture.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight, statistics in at least fp32, cast back before the weight (Llama's order)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_normalise(x, self.eps) * self.weight


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) over the last dimension, computed in at least fp32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class ShortConv(nn.Module):
    """Causal depthwise convolution: y_t = sum_j weight[:, j] * x_{t-j}."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        weight = torch.zeros(channels, taps)
        weight[:, 0] = 1
        self.weight = nn.Parameter(weight)

    @property
    def taps(self) -> int:
        return self.weight.shape[1]

    def forward(self, joined: Tensor) -> Tensor:
        """`joined` (B, taps-1+T, C) begins with the taps-1 inputs before the first output."""
        length = joined.shape[1] - self.taps + 1
        out = None
        for j in range(self.taps):
            start = self.taps - 1 - j
            term = joined[:, start : start + length] * self.weight[:, j]
            out = term if out is None else out + term
        return out

    def parallel(self, x_BTC: Tensor) -> Tensor:
        """The whole sequence at once, nothing before it."""
        return self(F.pad(x_BTC, (0, 0, self.taps - 1, 0)))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one matrix."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=bias)
        self.down = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def unit_heads(x_BTHD: Tensor, scale_H: Tensor | None) -> Tensor:
    """L2-normalise per head (QK-norm), times a learned scale per head if there is one."""
    unit = F.normalize(x_BTHD, dim=-1, eps=1e-4)
    return unit if scale_H is None else unit * scale_H[:, None].to(unit.dtype)
