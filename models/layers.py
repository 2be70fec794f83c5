"""Bricks without any knowledge of caches: matrix, norm, convolution, feed-forward (positions: `rope.py`).

Letters as in `models/architecture.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _mkl_is_slow() -> bool:
    """Whether fp32 products had better leave MKL, which keeps its AVX-512 kernels for Intel's processors."""
    processor = torch.cpu.get_capabilities()
    other = processor["architecture"] == "x86_64" and "Intel" not in processor["cpu_name"]
    return other and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


#: Products that are measured (fp32, in inference mode) run on oneDNN instead of MKL: on an AMD EPYC (Zen 5)
#: 2.2 times as fast in a prompt, 1.5 times in a decode step. A property of the machine, never of a policy.
ONEDNN = _mkl_is_slow()
#: Multiplications from which oneDNN's 9 µs per call are worth it.
ONEDNN_FROM = 2**18


def mkl_is_slow_for(x: Tensor) -> bool:
    """Whether products of this tensor are worth a detour here. Training keeps torch's own operations."""
    return ONEDNN and torch.is_inference_mode_enabled() and x.is_cpu and x.dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias: the product of every matrix in `models/`, the same up to rounding on either library."""
    if mkl_is_slow_for(x) and x.numel() * weight.shape[0] >= ONEDNN_FROM:
        # What torch.compile makes of a linear layer on a CPU; eager mode asks MKL for all fp32.
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A matrix of weights; see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
        length, newest = joined.shape[1] - self.taps + 1, self.taps - 1
        # Weights of a tap in one piece, added up in place: a quarter of the time of products and sums.
        weight_KC = self.weight.t().contiguous()
        out = joined[:, newest : newest + length] * weight_KC[0]
        for j in range(1, self.taps):
            out.addcmul_(joined[:, newest - j : newest - j + length], weight_KC[j])
        return out

    def parallel(self, x_BTC: Tensor) -> Tensor:
        """The whole sequence at once, nothing before it."""
        return self(F.pad(x_BTC, (0, 0, self.taps - 1, 0)))


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), gate and up in one matrix."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * ffn_dim, bias=bias)
        self.down = Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


def unit_heads(x_BTHD: Tensor, scale_H: Tensor | None) -> Tensor:
    """L2-normalise per head (QK-norm), times a learned scale per head if there is one."""
    unit = F.normalize(x_BTHD, dim=-1, eps=1e-4)
    return unit if scale_H is None else unit * scale_H[:, None].to(unit.dtype)
