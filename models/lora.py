"""LoRA (arXiv 2106.09685): a frozen matrix plus a trained one of low rank.

    y = W x + (16 / rank) * B A x          A (rank x in) random, B (out x rank) 0: no change at first

Our q, k and v lie in one fused matrix; each part has an A and a B of its own, as three matrices would.
Low-rank parts stay apart from W in memory and in every cost: they are not merged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .layers import Linear, linear

#: LoRA's alpha in LoCoCo's extension mode, where the rank is 8.
ALPHA = 16


class LowRank(nn.Module):
    """x -> (ALPHA / rank) * B A x for the `parts` (output rows) of a fused matrix; no dropout."""

    def __init__(self, like: Tensor, parts: tuple[int, ...], rank: int) -> None:
        """`like` is the fused matrix (out, in), of which dtype and device are taken."""
        super().__init__()
        self.parts, self.rank = parts, rank
        self.a = nn.Parameter(like.new_empty(len(parts) * rank, like.shape[1]))
        self.b = nn.Parameter(like.new_empty(like.shape[0], rank))
        self.initialise()

    def initialise(self) -> None:
        """A as the weight of a Linear starts, B zero."""
        nn.init.kaiming_uniform_(self.a, a=5**0.5)
        nn.init.zeros_(self.b)

    def forward(self, x: Tensor) -> Tensor:
        down = linear(x, self.a).split(self.rank, -1)
        up = [linear(d, b) for d, b in zip(down, self.b.split(self.parts), strict=True)]
        return ALPHA / self.rank * torch.cat(up, -1)


class LoraLinear(Linear):
    """Takes over the matrix `base` and adds a low-rank one."""

    def __init__(self, base: nn.Linear, parts: tuple[int, ...], rank: int) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora = LowRank(base.weight, parts, rank)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora(x)


def add_lora(blocks: Iterable[nn.Module], rank: int) -> None:
    """Put LoRA on q, k, v and o of every block, in place."""
    for block in blocks:
        mixer = block.mixer
        mixer.qkv = LoraLinear(mixer.qkv, mixer.sizes, rank)
        mixer.out = LoraLinear(mixer.out, (mixer.out.out_features,), rank)
