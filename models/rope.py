"""Rotary positions: which angle per channel pair, which channels form a pair, tables in fp64.

    angle(pair i, position p) = p * frequency_i          frequencies depend on the family:
        llama      base^(-2i/D), optionally scaled (RopeScaling)
        endpoint   base^(-i/(D/2-1)): from exactly 1 to exactly 1/base (YOCO's official code)
    pairs          half-split (i, i + D/2) as Llama's checkpoints have them, or interleaved (2i, 2i+1)

Angles are tabulated in fp64: in fp32 they are off by several 1e-2 rad near position 1e6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RopeScaling:
    """How a checkpoint stretches its positions beyond its training length.

    linear: all frequencies / factor. llama3: long wavelengths / factor, short ones kept, a ramp between
    (Llama 3.1). yarn: a ramp by rotations per `original_positions` (arXiv 2309.00071); `amplitude`
    multiplies cos and sin (its attention temperature).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_positions: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn"):
            raise ValueError(f"rope scaling must be linear, llama3 or yarn, not '{self.kind}'.")
        for name in (
            "factor",
            "amplitude",
            "low_frequency_factor",
            "high_frequency_factor",
            "beta_fast",
            "beta_slow",
        ):
            if not 1e-6 <= getattr(self, name) <= 1e6:
                raise ValueError(f"rope scaling needs {name} between 1e-6 and 1e6.")
        if type(self.original_positions) is not int or not 0 <= self.original_positions < 2**31:
            raise ValueError("rope scaling needs original_positions as a whole number below 2**31.")
        if self.kind != "linear" and self.original_positions < 1:
            raise ValueError(f"rope scaling {self.kind} needs original_positions >= 1.")
        if self.kind == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise ValueError("rope scaling llama3 needs 0 < low_frequency_factor < high_frequency_factor.")
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            raise ValueError("rope scaling yarn needs 0 < beta_slow < beta_fast.")


def llama_frequencies(
    head_dim: int, base: float, fraction: float = 1.0, scaling: RopeScaling | None = None
) -> Tensor:
    """(D/2,) fp64; only the first `fraction` of the pairs turn, the others have frequency 0."""
    pairs = head_dim // 2
    turning = round(pairs * fraction)
    steps = torch.arange(turning, dtype=torch.float64, device="cpu")
    frequency = torch.zeros(pairs, dtype=torch.float64, device="cpu")
    frequency[:turning] = base ** (-steps / max(turning, 1))
    return frequency if scaling is None else _scaled(frequency, base, scaling)


def endpoint_frequencies(head_dim: int, base: float) -> Tensor:
    """(D/2,) fp64 from 1 to exactly 1/base (YOCO's official code)."""
    pairs = head_dim // 2
    return base ** -torch.linspace(0, 1, pairs, dtype=torch.float64, device="cpu")


def _scaled(frequency_P: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    stretched = frequency_P / scaling.factor
    if scaling.kind == "linear":
        return stretched
    pairs = len(frequency_P)
    if scaling.kind == "llama3":
        # Rotations that a pair makes within the original context decide: many keep, few stretch.
        rotations = frequency_P * scaling.original_positions / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        keep = ((rotations - low) / (high - low)).clamp(0, 1)
    else:
        low, high = (
            pairs * math.log(scaling.original_positions / (beta * 2 * math.pi)) / math.log(base)
            for beta in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        ramp = torch.arange(pairs, dtype=torch.float64, device="cpu") - low
        keep = 1 - (ramp / max(high - low, 1e-3)).clamp(0, 1)
    return keep * frequency_P + (1 - keep) * stretched


class Rope(nn.Module):
    """Turns heads by position; the table grows with the longest position asked for."""

    def __init__(self, frequency_P: Tensor, amplitude: float = 1.0, interleaved: bool = False) -> None:
        super().__init__()
        self.pairs, self.amplitude, self.interleaved = len(frequency_P), amplitude, interleaved
        self._frequency = frequency_P
        self._cos: Tensor | None = None
        self._sin: Tensor | None = None
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def ensure(self, num_positions: int, dtype: torch.dtype, device: torch.device | str) -> None:
        """Make the table cover positions 0..num_positions-1 in this dtype on this device: begins a call."""
        self._last = None
        table = self._cos
        fits = table is not None and table.dtype == dtype and table.device == torch.device(device)
        if fits and len(table) >= num_positions:
            return
        positions = torch.arange(num_positions, dtype=torch.float64, device="cpu")
        self._cos, self._sin = (table.to(device, dtype) for table in self._angles(positions))

    def forward(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """Rotate x at the given true positions (negative ones, i.e. padding, as position 0)."""
        return self._turn(x_BTHD, *self._looked_up(positions_BT))

    def at(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """Rotate x at fractional positions (compressed gaps); angles are computed, not looked up."""
        cos, sin = (table.to(x_BTHD.dtype) for table in self._angles(positions_BT.double()))
        return self._turn(x_BTHD, *self._factors(cos, sin))

    def _looked_up(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of these positions. All layers of a call ask with the same tensor: the last answer is kept.

        So a tensor of positions must not be changed in place within a call.
        """
        if self._last is None or self._last[0] is not positions_BT:
            assert self._cos is not None and self._sin is not None, "ensure() comes first"
            index = positions_BT.clamp(min=0)
            self._last = (positions_BT, *self._factors(self._cos[index], self._sin[index]))
        return self._last[1:]

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        self._frequency = self._frequency.to(positions.device)
        angles = positions[..., None] * self._frequency
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude

    def _factors(self, cos_BTP: Tensor, sin_BTP: Tensor) -> tuple[Tensor, Tensor]:
        """What each channel and its partner are multiplied by, (B,T,1,D): (cos, -sin) and (cos, sin)."""
        if self.interleaved:
            cos, sin = torch.stack([cos_BTP, cos_BTP], -1), torch.stack([-sin_BTP, sin_BTP], -1)
            return cos.flatten(-2)[:, :, None], sin.flatten(-2)[:, :, None]
        return torch.cat([cos_BTP, cos_BTP], -1)[:, :, None], torch.cat([-sin_BTP, sin_BTP], -1)[:, :, None]

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.interleaved:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = x.roll(self.pairs, -1)
        return torch.addcmul(x * cos, partner, sin)
