"""Short context: the Transformer on at most `budget` tokens. What a budget buys without any policy.

The "Baseline" of the TOVA paper (section 4). Language modelling and tasks treat long texts differently:

    mode=split      texts are cut every `budget` tokens, each piece begins from nothing
    mode=truncate   a prompt longer than `budget` is cut to its last `budget` tokens; there is room for as
                    many again (the answer); when all 2 * budget are taken the context begins from nothing

Positions, keys, values and convolutions are those of a fresh context. For `truncate` a prompt is a call that
asks for its last logits only; a scored continuation is never truncated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..cache import ConvState, Ragged, row_lengths
from ..decoder import Decoder
from .transformer import FullCache


@dataclass(frozen=True)
class Options:
    """`budget` tokens of context; `mode` says what happens to longer texts."""

    budget: int = 256
    mode: Literal["split", "truncate"] = "split"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"short needs a budget of at least 1, not {self.budget}.")


class ContextCache(FullCache):
    """A full cache of the present context. `seen` counts its tokens, `start` is where it begins."""

    def __init__(self, heads, request, slots: int) -> None:
        super().__init__(heads, request, capacity=min(slots, request.capacity))
        self.reach = self.tensors["k"].shape[2]
        self.rows |= {"start": [0] * request.batch, "dropped": [0] * request.batch}

    def kept_positions(self):
        slot_BPS = super().kept_positions()
        start = torch.tensor(self.rows["start"], device=slot_BPS.device)[:, None, None]
        return torch.where(slot_BPS < 0, slot_BPS, slot_BPS + start)

    def evicted(self) -> list[int]:
        return list(self.rows["dropped"])

    def begin(self, row: int, unseen: int = 0) -> None:
        """Forget the context of a row; the next one begins after `unseen` tokens that nobody saw."""
        gone = self.rows["seen"][row] + unseen
        self.rows["start"][row] += gone
        self.rows["dropped"][row] += gone
        self.rows["seen"][row] = 0


class Model(Decoder):
    """The Transformer on short contexts; needs no training of its own."""

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.truncates = options.mode == "truncate"
        self.prompt_mode = options.mode
        self.slots = options.budget * (2 if self.truncates else 1)

    def layer_cache(self, heads, layer, request):
        return ContextCache(heads, request, self.slots)

    def run_blocks(self, x_BTE, positions_BT, valid, cache, logits):
        B, T = x_BTE.shape[:2]
        lengths = row_lengths(valid, B, T)
        cut = self.truncates and logits == "last" and max(lengths) > self.options.budget
        if cut:
            x_BTE, valid = self._truncated(x_BTE, lengths, cache)
            T, lengths = x_BTE.shape[1], valid.lengths
        outs, column = [], 0
        while column < T:
            held = cache.states["0.attention"].rows["seen"]
            for row in range(B):
                if lengths[row] > column and held[row] == self.slots:
                    self._begin(cache, row)
            running = [row for row in range(B) if lengths[row] > column]
            held = cache.states["0.attention"].rows["seen"]
            width = min([T - column, *(self.slots - held[row] for row in running)])
            here = None if valid is None else valid.columns(column, column + width)
            place_BT = torch.tensor(held, device=x_BTE.device)[:, None] + torch.arange(
                width, device=x_BTE.device
            )
            if here is not None:
                place_BT = place_BT.masked_fill(~here.mask_BT, -1)
            outs.append(super().run_blocks(x_BTE[:, column : column + width], place_BT, here, cache, "all"))
            column += width
        out = torch.cat(outs, 1)
        if not cut:
            return out
        last = torch.tensor(lengths, device=out.device).sub(1).clamp(min=0)
        return out.gather(1, last[:, None, None].expand(-1, 1, out.shape[2]))

    def _truncated(self, x_BTE: Tensor, lengths: list[int], cache) -> tuple[Tensor, Ragged]:
        """The last `budget` tokens of each row, from an empty context where something was left out."""
        budget = self.options.budget
        for row, length in enumerate(lengths):
            if length > budget:
                self._begin(cache, row, length - budget)
        kept = [min(length, budget) for length in lengths]
        first = torch.tensor([n - k for n, k in zip(lengths, kept, strict=True)], device=x_BTE.device)
        steps = torch.arange(budget, device=x_BTE.device)
        index = (first[:, None] + steps).clamp(max=x_BTE.shape[1] - 1)
        mask_BT = steps < torch.tensor(kept, device=x_BTE.device)[:, None]
        return x_BTE.gather(1, index[:, :, None].expand(-1, -1, x_BTE.shape[2])), Ragged(kept, mask_BT)

    def _begin(self, cache, row: int, unseen: int = 0) -> None:
        for state in cache.states.values():
            if isinstance(state, ConvState):
                state.tensors["tail"][row] = 0
            else:
                state.begin(row, unseen)

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """Only what is seen is computed; a piece attends within itself."""
        budget = self.options.budget
        if self.truncates:
            return super().prefill_flops(min(num_tokens, budget), batch)
        whole, rest = divmod(num_tokens, budget)
        pairs = whole * budget * (budget + 1) // 2 + rest * (rest + 1) // 2
        extra = self._pair_flops() * self.shape.num_layers * pairs - self._attention_flops(0, num_tokens)
        return super().prefill_flops(num_tokens, batch) + batch * extra

    def decode_flops(self, num_tokens, batch=1) -> int:
        return super().decode_flops(self._held(num_tokens), batch)

    def read_bytes(self, num_tokens, batch=1, dtype=None) -> int:
        return super().read_bytes(self._held(num_tokens), batch, dtype)

    def _held(self, num_tokens: int) -> int:
        """Tokens of the present context after a prompt of so many."""
        budget = self.options.budget
        return min(num_tokens, budget) if self.truncates else num_tokens % budget
