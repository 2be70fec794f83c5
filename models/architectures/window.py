"""Window: the first `sinks` tokens and the most recent ones, `budget` in all. The dumb control.

Window+i of the TOVA paper (section 4): FIFO with the first i tokens protected, original positions.
The convention of all policies here holds: attend to budget + 1 keys (the newest included), then
evict down to `budget`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..budget import room_of
from ..decoder import Decoder
from ..ring import WindowCache


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step, of which the first `sinks` for ever."""

    budget: int = 256
    sinks: int = 4
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1 or self.sinks < 0 or self.sinks >= room_of(self):
            raise ValueError(
                f"this needs budget >= 1 and 0 <= sinks < budget, not budget={self.budget} and "
                f"sinks={self.sinks}."
            )


class BudgetedWindow(WindowCache):
    """The policy: what left the window counts as evicted (the newest sees budget + 1 keys)."""

    def kept_positions(self):
        # The ring has one slot more than the budget: its oldest entry is gone, though not overwritten yet.
        pos_BS = self.tensors["pos"]
        newest = torch.tensor(self.rows["seen"], device=pos_BS.device)[:, None] - 1
        stays = (pos_BS < self.sinks) | (newest - pos_BS < self.recent - 1)
        return pos_BS.masked_fill(~stays, -1)[:, None]

    def evicted(self) -> list[int]:
        budget = self.sinks + self.recent - 1
        return [max(0, seen - budget) for seen in self.rows["seen"]]


class Model(Decoder):
    """The Transformer under a sinks-plus-recent budget; needs no training of its own."""

    implementations = ("torch", "fused")
    prompt_mode = "stepwise"

    def layer_cache(self, heads, layer, request):
        o = self.options
        return BudgetedWindow(heads, request, o.sinks, o.budget - o.sinks + 1)
