"""TOVA: evict the token that the newest query attends to least (arXiv 2401.06104, section 3).

Per layer: softmax of the newest query over all budget + 1 keys, the newest included, averaged over
all query heads in fp32; the smallest goes, the same for every KV head. Among equal scores the oldest
position goes (the paper leaves it open).

    prompt=stepwise   the paper's protocol for language modelling: the rule runs at every token
    prompt=bulk       the authors' published code: a call of several tokens attends in full and keeps the
                      top `budget` by its last row. In bulk the keys of a call are seen beside the slots,
                      so how a text is cut into calls changes the numbers: rows record mode and chunk.
    select=head       the paper's TOVA-head: every KV head chooses for itself, by the mean over its query
                      heads (the paper has no grouped heads)
    protect=i         the first i tokens are never evicted (the paper's TOVA+i)
    positions=compressed   the paper's extrapolation beyond the training length: gaps between survivors
                      shrink (`models/gaps.py`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..budget import room_of
from ..decoder import Decoder
from ..eviction import Evictor
from ..gaps import CompressedPositions


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step; `prompt` chooses how a prompt is treated."""

    budget: int = 256
    prompt: Literal["stepwise", "bulk"] = "stepwise"
    select: Literal["layer", "head"] = "layer"
    protect: int = 0
    positions: Literal["original", "compressed"] = "original"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"tova needs a budget of at least 1, not {self.budget}.")
        if self.positions == "compressed" and self.prompt == "bulk":
            raise ValueError("tova compresses positions step by step; use prompt=stepwise with it.")
        if not 0 <= self.protect < room_of(self):
            raise ValueError(f"tova needs 0 <= protect < budget, not {self.protect} and {self.budget}.")


class TovaCache(Evictor):
    """A key is worth the newest query's attention to it."""

    protect = 0

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
        if self.protect == 0:
            return row_BPn
        return row_BPn.masked_fill(pos_BPn < self.protect, float("inf"))


class CompressedTovaCache(CompressedPositions, TovaCache):
    """Keys are held un-rotated and turned at compressed positions."""


class Model(Decoder):
    """The Transformer under TOVA; needs no training of its own."""

    implementations = ("torch", "fused")

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.prompt_mode = options.prompt
        if options.positions == "compressed":  # keys are turned anew at every step: no kernel does that
            self.implementations = ("torch",)

    def layer_cache(self, heads, layer, request):
        o = self.options
        kind = TovaCache if o.positions == "original" else CompressedTovaCache
        cache = kind(heads, request, o.budget, o.select == "head", o.prompt == "bulk")
        cache.protect = o.protect
        return cache

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """A bulk prompt attends in full, and its last row a second time for the scores."""
        if self.options.prompt == "stepwise":
            return super().prefill_flops(num_tokens, batch)
        extra = self.bulk_flops(num_tokens)
        if num_tokens > self.options.budget:
            extra += self._pair_flops() * self.shape.num_layers * num_tokens
        return super().prefill_flops(num_tokens, batch) + batch * extra
