"""Bricks without any knowledge of caches: norm, positions, convolution, feed-forward.

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


class Rope(nn.Module):
    """Rotary positions, half-split pairs (i, i + D/2), angle = position * base^(-i / rotated pairs).

    Only the first `fraction` of the pairs turn. Angles are tabulated in fp64 (fp32 angles are off by
    several 1e-2 rad near position 1e6) and grow with the longest position asked for.
    """

    def __init__(self, head_dim: int, base: float, fraction: float = 1.0) -> None:
        super().__init__()
        self.pairs = head_dim // 2
        turning = round(self.pairs * fraction)
        frequency = torch.zeros(self.pairs, dtype=torch.float64, device="cpu")
        steps = torch.arange(turning, dtype=torch.float64, device="cpu")
        frequency[:turning] = base ** (-steps / max(turning, 1))
        self._frequency = frequency
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None

    def ensure(self, num_positions: int, dtype: torch.dtype, device: torch.device | str) -> None:
        """Make the table cover positions 0..num_positions-1 in this dtype on this device."""
        table = self._cos
        fits = table is not None and table.dtype == dtype and table.device == torch.device(device)
        if fits and len(table) >= num_positions:
            return
        angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * self._frequency
        self._cos, self._sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def forward(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """Rotate x at the given positions (negative ones, i.e. padding, as position 0)."""
        assert self._cos is not None and self._sin is not None, "ensure() comes first"
        index = positions_BT.clamp(min=0)
        cos, sin = self._cos[index][:, :, None], self._sin[index][:, :, None]
        first, second = x_BTHD[..., : self.pairs], x_BTHD[..., self.pairs :]
        return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


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

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def unit_heads(x_BTHD: Tensor, scale_H: Tensor | None) -> Tensor:
    """L2-normalise per head (QK-norm), times a learned scale per head if there is one."""
    unit = F.normalize(x_BTHD, dim=-1, eps=1e-4)
    return unit if scale_H is None else unit * scale_H[:, None].to(unit.dtype)
