"""Random eviction: once over budget, a uniformly drawn slot goes. A policy must beat this.

The draw is a hash of (case seed, layer, position): it depends neither on the batch nor on how the
prompt was cut, and a case sees the same draws on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cache import TensorSpec
from ..decoder import Decoder
from ..eviction import StepwiseEvictor


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step."""

    budget: int = 256
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"random needs a budget of at least 1, not {self.budget}.")


class RandomCache(StepwiseEvictor):
    """Victim = hash(seed, layer, position) mod (budget + 1)."""

    scores = False

    def __init__(self, heads, request, budget, layer) -> None:
        super().__init__(heads, request, budget)
        self.layer = layer
        self.specs = self.specs | {"seed": TensorSpec((), torch.int64, "metadata")}
        self.tensors["seed"] = torch.tensor(request.seeds, dtype=torch.int64).to(request.device)

    def victims(self, probs_BHS, position_B):
        # Integer mixing that wraps at 64 bits (the finaliser of splitmix64, signed).
        x = self.tensors["seed"] * 0x2545F4914F6CDD1D + self.layer * 0x1B873593 + position_B
        x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47
        x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15
        return (((x ^ (x >> 31)) >> 16) & 0x7FFFFFFF) % self.slots


class Model(Decoder):
    """The Transformer under random eviction; needs no training of its own."""

    prompt_mode = "stepwise"

    def layer_cache(self, heads, layer, request):
        return RandomCache(heads, request, self.options.budget, layer)
