"""One row of attention over listed positions, and the angles of rotary positions.

A query at position t reads, per KV head, the keys at the positions it is shown; query head h reads KV
head h // (H/G). A layer with a window of its own hides what lies too far back: key j is visible to
query t only if t - j < window. What is hidden has no probability at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: {position: probability} of what one query head saw.
Row = dict[int, float]


def softmax(logits_N: Tensor) -> Tensor:
    """exp(x) / sum exp(x); the largest is subtracted first, which changes nothing but overflow."""
    exps = torch.exp(logits_N - logits_N.max())
    return exps / exps.sum()


def angles_per_position(shape, factor: float = 1.0) -> list[float]:
    """How far each channel pair turns from one position to the next.

    Pair i of P: base^(-i/P), pairs beyond `rope_fraction` stand still. A checkpoint's scaling changes
    them (linear; llama3: Llama 3.1's ramp over wavelengths; yarn: arXiv 2309.00071 section 3.2).
    `factor` stretches all positions linearly (LoCoCo's RoPE change), which divides every angle.
    """
    pairs = shape.head_dim // 2
    turning = round(pairs * shape.rope_fraction)
    plain = [shape.rope_base ** (-i / turning) if i < turning else 0.0 for i in range(pairs)]
    scaling = getattr(shape, "rope_scaling", None)
    if scaling is not None:
        plain = [_scaled(angle, i, pairs, shape.rope_base, scaling) for i, angle in enumerate(plain)]
    return [angle / factor for angle in plain]


def _scaled(angle: float, i: int, pairs: int, base: float, scaling) -> float:
    if scaling.kind == "linear" or angle == 0:
        return angle / scaling.factor
    length = scaling.original_positions
    if scaling.kind == "llama3":
        wavelength = 2 * math.pi / angle
        if wavelength < length / scaling.high_frequency_factor:
            return angle
        if wavelength > length / scaling.low_frequency_factor:
            return angle / scaling.factor
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        smooth = (length / wavelength - scaling.low_frequency_factor) / span
        return (1 - smooth) * angle / scaling.factor + smooth * angle
    assert scaling.kind == "yarn", scaling.kind

    def pair_that_turns(times: float) -> float:
        """The (fractional) pair whose wavelength fits `times` times into the original length."""
        return 2 * pairs * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    if first == last:
        last += 0.001
    stretched = min(max((i - first) / (last - first), 0), 1)
    return stretched * angle / scaling.factor + (1 - stretched) * angle


def apart(places: dict[int, float], t: int, j: int) -> float:
    """Tokens between key j and query t for a model's own window: counted where the policy puts them, but
    in the text where places are fractions (those only turn keys)."""
    whole = isinstance(places[t], int) and isinstance(places[j], int)
    return places[t] - places[j] if whole else t - j


@dataclass
class Layer:
    """What the attention of one layer is given: one sequence's q (T,H,D), k and v (T,G,D), not rotated."""

    index: int
    q_THD: Tensor
    k_TGD: Tensor
    v_TGD: Tensor
    scale: float
    window: int | None = None
    #: Turn per position of each channel pair (i, i + D/2); None: this layer knows no positions.
    angles: list[float] | None = None
    amplitude: float = 1.0

    @property
    def length(self) -> int:
        return len(self.q_THD)

    @property
    def heads(self) -> int:
        return self.q_THD.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.k_TGD.shape[1]

    def turned(self, x_ND: Tensor, places: list[float]) -> Tensor:
        """Each pair of channels as a complex number, multiplied by e^(i * place * angle)."""
        if self.angles is None:
            return x_ND
        half = x_ND.shape[1] // 2
        numbers = torch.complex(x_ND[:, :half].contiguous(), x_ND[:, half:].contiguous())
        turns = torch.outer(
            torch.tensor(places, dtype=x_ND.dtype), torch.tensor(self.angles, dtype=x_ND.dtype)
        )
        numbers = numbers * torch.polar(torch.full_like(turns, self.amplitude), turns)
        return torch.cat([numbers.real, numbers.imag], 1)

    def attend(
        self, t: int, seen: list[list[int]], places: list[dict[int, float]]
    ) -> tuple[Tensor, list[Row]]:
        """Row t over positions `seen[g]` of KV head g, rotated to `places[g][position]`.

        Returns the outputs (H,D) and, per query head, the probability of every visible position.
        """
        group = self.heads // self.kv_heads
        outs, rows = [], []
        for g in range(self.kv_heads):
            visible = [j for j in seen[g] if self.window is None or apart(places[g], t, j) < self.window]
            v_ND = self.v_TGD[visible, g]
            k_ND = self.turned(self.k_TGD[visible, g], [places[g][j] for j in visible])
            q_RD = self.turned(self.q_THD[t, g * group : (g + 1) * group], [places[g][t]] * group)
            for q_D in q_RD:
                p_N = softmax((k_ND @ q_D) * self.scale)
                outs.append(p_N @ v_ND)
                rows.append(dict(zip(visible, p_N.tolist(), strict=True)))
        return torch.stack(outs), rows
