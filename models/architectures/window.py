"""Window: the first `sinks` tokens and the most recent ones, `budget` in all. The dumb control.

Window+i of the TOVA paper (section 4): FIFO with the first i tokens protected, original positions.
The convention of all policies here holds: attend to budget + 1 keys (the newest included), then
evict down to `budget`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import QUERY_BLOCK, Heads, attention, never_empty
from ..cache import LayerCache, TensorSpec, row_lengths
from ..decoder import Decoder


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step, of which the first `sinks` for ever."""

    budget: int = 256
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.budget < 1 or self.sinks < 0 or self.sinks >= self.budget:
            raise ValueError(
                f"window needs budget >= 1 and 0 <= sinks < budget, not budget={self.budget} and "
                f"sinks={self.sinks}."
            )


class WindowCache(LayerCache):
    """A ring: position p lies in slot p while p < sinks, then in sinks + (p - sinks) % recent.

    Key j is visible to query i iff j < sinks or i - j < recent; so `recent` counts the query itself.
    Keys are held rotated at their original position, which `pos` records (-1: empty slot).
    """

    def __init__(
        self,
        heads: Heads,
        batch: int,
        capacity: int,
        sinks: int,
        recent: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        slots = min(sinks + recent, capacity)
        kv = TensorSpec((slots, heads.num_kv_heads, heads.head_dim), dtype, "payload")
        pos = TensorSpec((slots,), torch.int32, "metadata", -1)
        super().__init__(batch, {"k": kv, "v": kv, "pos": pos}, device)
        self.heads, self.sinks, self.recent, self.slots = heads, sinks, recent, slots
        self.slot_elements, self.reach = heads.slot_elements, slots

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        B, T = k_BTGD.shape[:2]
        if T == 1 and self.uniform(valid):
            out = self._step(q_BTHD, k_BTGD, v_BTGD)
            self.count([1] * B)
            return out
        outs = []
        for start in range(0, T, QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            outs.append(
                self._block(q_BTHD[:, block], k_BTGD[:, block], v_BTGD[:, block], positions_BT[:, block])
            )
        self.count(row_lengths(valid, B, T))
        return torch.cat(outs, 1)

    def _step(self, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor) -> Tensor:
        """One token for rows in step: overwrite the slot that leaves, attend to all that are filled."""
        position = self.rows["seen"][0]
        wrapped = self.sinks + (position - self.sinks) % self.recent
        slot = position if position < self.slots else wrapped
        for name, new in (("k", k_B1GD), ("v", v_B1GD)):
            self.tensors[name][:, slot : slot + 1] = new
        self.tensors["pos"][:, slot] = position
        filled = min(position + 1, self.slots)
        k, v = self.tensors["k"][:, :filled], self.tensors["v"][:, :filled]
        return attention(q_B1HD, k, v, self.heads.scale)

    def _block(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor) -> Tensor:
        """Many tokens: attend to [ring, block] under the position mask, then write what stays."""
        i = positions_BT[:, :, None]
        j = torch.cat([self.tensors["pos"], positions_BT], 1)[:, None, :]
        mask = (j >= 0) & (j <= i) & ((i - j < self.recent) | (j < self.sinks))
        k = torch.cat([self.tensors["k"], k_BTGD], 1)
        v = torch.cat([self.tensors["v"], v_BTGD], 1)
        out = attention(q_BTHD, k, v, self.heads.scale, never_empty(mask))

        newest_B1 = positions_BT.amax(1, keepdim=True)
        stays = (positions_BT > newest_B1 - self.recent) | (positions_BT < self.sinks)
        stays &= positions_BT >= 0
        p = positions_BT[stays]
        slot = torch.where(p < self.slots, p, self.sinks + (p - self.sinks) % self.recent)
        B, T = positions_BT.shape
        rows = torch.arange(B, device=p.device)[:, None].expand(B, T)[stays]
        self.tensors["k"][rows, slot] = k_BTGD[stays]
        self.tensors["v"][rows, slot] = v_BTGD[stays]
        self.tensors["pos"][rows, slot] = p.to(torch.int32)
        return out


class BudgetedWindow(WindowCache):
    """The policy: what left the window counts as evicted (the newest sees budget + 1 keys)."""

    def evicted(self) -> list[int]:
        budget = self.sinks + self.recent - 1
        return [max(0, seen - budget) for seen in self.rows["seen"]]


class Model(Decoder):
    """The Transformer under a sinks-plus-recent budget; needs no training of its own."""

    prompt_mode = "stepwise"

    def layer_cache(self, heads, layer, batch, capacity, seeds, dtype, device):
        o = self.options
        recent = o.budget - o.sinks + 1
        return BudgetedWindow(heads, batch, capacity, o.sinks, recent, dtype, device)
