"""Random eviction: once over budget, a uniformly drawn token goes. A policy must beat this.

Every key draws a number at every step, a hash of (case seed, layer, step, its position), and the lowest
goes. So the choice depends neither on the batch nor on how the prompt was cut, and a case sees the same
draws on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cache import TensorSpec
from ..decoder import Decoder
from ..eviction import Evictor


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step."""

    budget: int = 256
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"random needs a budget of at least 1, not {self.budget}.")


class RandomCache(Evictor):
    """A key is worth hash(seed, layer, step, position)."""

    scores = False

    def __init__(self, heads, request, budget, layer) -> None:
        super().__init__(heads, request, budget)
        self.layer = layer
        self.specs = self.specs | {"seed": TensorSpec((), torch.int64, "metadata")}
        self.tensors["seed"] = torch.tensor(request.seeds, dtype=torch.int64).to(request.device)

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
        step_B = _mixed(self.tensors["seed"] + self.layer * 0x1B873593 + newest_B * 0x2545F4914F6CDD1D)
        draw_BPn = _mixed(step_B[:, None, None] + pos_BPn.long())
        return (draw_BPn >> 11).double()  # 53 bits: exact, and as good as free of ties


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, signed: integer mixing that wraps at 64 bits."""
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31)


class Model(Decoder):
    """The Transformer under random eviction; needs no training of its own."""

    implementations = ("torch", "fused")
    prompt_mode = "stepwise"

    def layer_cache(self, heads, layer, request):
        return RandomCache(heads, request, self.options.budget, layer)
