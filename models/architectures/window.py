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
from ..cache import LayerCache, Ragged, TensorSpec, row_lengths
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
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), dtype, "payload")
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
            stop = min(start + QUERY_BLOCK, T)
            block = slice(start, stop)
            here = None if valid is None else valid.columns(start, stop)
            q, k, v = q_BTHD[:, block], k_BTGD[:, block], v_BTGD[:, block]
            outs.append(self._block(q, k, v, positions_BT[:, block], here))
            self.count(row_lengths(here, B, stop - start))
        return torch.cat(outs, 1)

    def _step(self, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor) -> Tensor:
        """One token for rows in step: overwrite the slot that leaves, attend to all that are filled."""
        position = self.rows["seen"][0]
        wrapped = self.sinks + (position - self.sinks) % self.recent
        slot = position if position < self.slots else wrapped
        self.write_run(k_B1GD, v_B1GD, slot)
        self.tensors["pos"][:, slot] = position
        filled = min(position + 1, self.slots)
        k, v = self.tensors["k"][:, :, :filled], self.tensors["v"][:, :, :filled]
        return attention(q_B1HD, k, v, self.heads.scale)

    def _block(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor, valid: Ragged | None
    ) -> Tensor:
        """Many tokens: attend to [ring, block] under the position mask, then write what stays."""
        i = positions_BT[:, :, None]
        j = torch.cat([self.tensors["pos"], positions_BT], 1)[:, None, :]
        mask = (j >= 0) & (j <= i) & ((i - j < self.recent) | (j < self.sinks))
        k = torch.cat([self.tensors["k"], k_BTGD.transpose(1, 2)], 2)
        v = torch.cat([self.tensors["v"], v_BTGD.transpose(1, 2)], 2)
        out = attention(q_BTHD, k, v, self.heads.scale, never_empty(mask))
        if self.uniform(valid):
            first, count = self.rows["seen"][0], positions_BT.shape[1]
            # Tokens of this block that stay: those among the sinks, and the last `recent`.
            sinks = min(max(self.sinks - first, 0), count)
            every = torch.arange(count, device=positions_BT.device)
            column = torch.cat([every[:sinks], every[max(sinks, count - self.recent) :]])
            p = column + first
            slot = self._slot(p)
            self.tensors["k"][:, :, slot] = k_BTGD[:, column].transpose(1, 2)
            self.tensors["v"][:, :, slot] = v_BTGD[:, column].transpose(1, 2)
            self.tensors["pos"][:, slot] = p.to(torch.int32)
            return out
        newest_B1 = positions_BT.amax(1, keepdim=True)
        stays = (positions_BT > newest_B1 - self.recent) | (positions_BT < self.sinks)
        stays &= positions_BT >= 0
        self.write_slots(k_BTGD, v_BTGD, self._slot(positions_BT), stays)
        rows = torch.arange(len(stays), device=stays.device)[:, None].expand_as(stays)[stays]
        p = positions_BT[stays]
        self.tensors["pos"][rows, self._slot(p)] = p.to(torch.int32)
        return out

    def _slot(self, position: Tensor) -> Tensor:
        """Slot of each position."""
        return torch.where(
            position < self.slots, position, self.sinks + (position - self.sinks) % self.recent
        )


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
