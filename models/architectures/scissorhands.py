"""Scissorhands: evict what recent queries kept finding unimportant (arXiv 2305.17118, algorithm 2).

In a row over n keys a key is unimportant if its probability is below the average 1/n. A key's count is the
number of rows, among the last `history`, that found it so. The highest count goes, the `recent` newest
tokens are protected. Every KV head chooses for itself.

    prompt=stepwise   the rule at every token
    prompt=bulk       a call of several tokens attends in full; its last rows fill the history, then one
                      eviction

Deviations, stated: this is the paper's fixed-budget form, but one token goes per step, where the paper drops
several at once every so often; among equal counts the oldest goes; with grouped queries a KV head's
probability is the mean over its query heads. The authors' evaluation code has a threshold instead of a
budget and is a different rule. Counting the last `history` rows takes that many bits of memory per key and
KV head, eight to a byte: an unbounded history would be a table of queries by keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..budget import room_of
from ..cache import TensorSpec
from ..decoder import Decoder
from ..eviction import Evictor


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept; counts go over the last `history` rows; the `recent` newest are protected."""

    budget: int = 256
    history: int = 100
    recent: int = 10
    prompt: Literal["stepwise", "bulk"] = "stepwise"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1 or self.history < 1 or not 0 <= self.recent <= room_of(self):
            raise ValueError(
                "scissorhands needs budget >= 1, history >= 1 and 0 <= recent <= budget, not "
                f"budget={self.budget}, history={self.history} and recent={self.recent}."
            )


class ScissorhandsCache(Evictor):
    """A key is worth minus the number of recent rows that found it unimportant.

    `low` (B,G,history/8,S) is a ring over rows, a bit each: the row of position t is number t mod history.
    """

    remembers, rowwise = True, True

    def __init__(self, heads, request, options) -> None:
        self.recent, self.recall = options.recent, options.history
        super().__init__(heads, request, options.budget, per_head=True, bulk=options.prompt == "bulk")

    def remembered(self, wide):
        return {"low": TensorSpec((self.choices, -(-self.recall // 8), self.slots), torch.uint8, "metadata")}

    def observe(self, meta, rows_BPTn, pos_BPn, positions_BT):
        visible = self.visible(pos_BPn, positions_BT)
        low = (visible & (rows_BPTn * visible.sum(-1, keepdim=True) < 1)).to(torch.uint8)
        for t in range(positions_BT.shape[1]):
            position = positions_BT[:, t, None, None, None]
            line = position.clamp(min=0) % self.recall  # of padding, too, which leaves it as it is
            byte = (line // 8).expand(-1, low.shape[1], 1, low.shape[3])
            bit = torch.bitwise_left_shift(torch.ones_like(line), line % 8).to(torch.uint8)
            held = meta["low"].gather(2, byte)
            noted = (held & ~bit) | (low[:, :, t, None] * bit)
            meta["low"].scatter_(2, byte, torch.where(position >= 0, noted, held))

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
        count = -_ones(meta["low"]).sum(2, dtype=torch.float32)
        return count.masked_fill(pos_BPn > newest_B[:, None, None] - self.recent, float("inf"))


def _ones(x: torch.Tensor) -> torch.Tensor:
    """How many bits of each byte are set: sums of neighbours, then of pairs, then of fours."""
    x = (x & 0x55) + ((x >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return (x & 0x0F) + (x >> 4)


class Model(Decoder):
    """The Transformer under Scissorhands; needs no training of its own."""

    implementations = ("torch", "fused")

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.prompt_mode = options.prompt

    def layer_cache(self, heads, layer, request):
        return ScissorhandsCache(heads, request, self.options)

    def prefill_flops(self, num_tokens, batch=1) -> int:
        extra = self.bulk_flops(num_tokens) if self.prompt_mode == "bulk" else 0
        return super().prefill_flops(num_tokens, batch) + batch * extra
