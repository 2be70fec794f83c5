"""A ring of recent tokens beside the first ones: windows of policies, of YOCO, and of models themselves.

Key j <= i is visible to query i iff j < sinks or i - j < recent; so `recent` counts the query itself. A
model's own sliding window hides what lies outside it, sinks too (but see `streaming`, which counts in the
cache).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import QUERY_BLOCK, Heads, attention, never_empty
from .cache import LayerCache, Ragged, Request, TensorSpec, row_lengths
from .kernels import fused


class WindowCache(LayerCache):
    """A ring: position p lies in slot p while p < sinks, then in sinks + (p - sinks) % recent.

    Keys are held rotated at their original position, which `pos` records (-1: empty slot).
    """

    def __init__(self, heads: Heads, request: Request, sinks: int, recent: int) -> None:
        slots = min(sinks + recent, request.capacity)
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), request.dtype, "payload")
        pos = TensorSpec((slots,), torch.int32, "metadata", -1)
        super().__init__(request.batch, {"k": kv, "v": kv, "pos": pos}, request.device)
        self.heads, self.sinks, self.recent, self.slots = heads, sinks, recent, slots
        self.slot_elements, self.reach = heads.slot_elements, slots

    def kept_positions(self):
        return self.tensors["pos"][:, None]

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.placed(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        B, T = k_BTGD.shape[:2]
        if T == 1 and self.uniform(valid):
            step = self._step_fused if self.fused else self._step
            out = step(q_BTHD, k_BTGD, v_BTGD, positions_BT)
            self.count([1] * B)
            return out
        if self.fused and not (self.sinks and self.heads.window) and self.uniform(valid):
            out = self._run(q_BTHD, k_BTGD, v_BTGD)
            self._write_newest(k_BTGD, v_BTGD)
            self.count([T] * B)
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

    def placed(self, q_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """Queries as `mix` wants them: turned to their true positions."""
        return self.heads.rotate(q_BTHD, positions_BT)

    def distance(self, i: Tensor, j: Tensor) -> Tensor:
        """How far a key at j is from a query at i, as the model's own window counts it."""
        return i - j

    def mix(
        self, q_BTHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask_BTS: Tensor | None, pos_BS: Tensor
    ) -> Tensor:
        """Attention of placed queries over keys at positions `pos_BS`."""
        return attention(q_BTHD, k_BGSD, v_BGSD, self.heads.scale, mask_BTS)

    def step_key(self):
        return () if self.fused else None

    def _step_fused(self, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor, positions_B1: Tensor) -> Tensor:
        """`_step` from positions that only the device knows, over all slots: the same work at each."""
        slot_1 = self._slot(positions_B1[0])
        self.write_at(k_B1GD, v_B1GD, slot_1)
        pos = self.tensors["pos"].index_copy_(1, slot_1, positions_B1.to(torch.int32))
        window, mask = self.heads.window, None
        if window and (self.sinks or self.recent > window):
            mask = (self.distance(positions_B1, pos) < window)[:, None]
        length_B = (positions_B1[:, 0] + 1).clamp(max=self.slots)
        k, v, scale = self.tensors["k"], self.tensors["v"], self.heads.scale
        return fused("decode_attention").attend(q_B1HD[:, 0], k, v, scale, length_B, mask)[0][:, None]

    def _step(self, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor, positions_B1: Tensor) -> Tensor:
        """One token for rows in step: overwrite the slot that leaves, attend to all that are filled."""
        position = self.rows["seen"][0]
        wrapped = self.sinks + (position - self.sinks) % self.recent
        slot = position if position < self.slots else wrapped
        self.write_run(k_B1GD, v_B1GD, slot)
        self.tensors["pos"][:, slot] = position
        filled = min(position + 1, self.slots)
        k, v = self.tensors["k"][:, :, :filled], self.tensors["v"][:, :, :filled]
        mask = None
        window = self.heads.window
        if window and position >= window and (self.sinks or self.recent > window):
            newest = torch.full((), position, device=k.device)
            mask = self.distance(newest, self.tensors["pos"][:, None, :filled]) < window
        return self.mix(q_B1HD, k, v, mask, self.tensors["pos"][:, :filled])

    def _run(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Many tokens of rows in step: [sinks, ring in temporal order, call] in one pass."""
        first = self.rows["seen"][0]
        every = torch.arange(first, device=k_BTGD.device)
        before = self._slot(torch.cat([every[: self.sinks], every[max(self.sinks, first - self.recent) :]]))
        k = torch.cat([self.tensors["k"][:, :, before], k_BTGD.transpose(1, 2)], 2)
        v = torch.cat([self.tensors["v"][:, :, before], v_BTGD.transpose(1, 2)], 2)
        window = min(self.recent, self.heads.window or self.recent)
        return fused("window_attention").attend(q_BTHD, k, v, self.heads.scale, window, self.sinks)[0]

    def _write_newest(self, k_BTGD: Tensor, v_BTGD: Tensor) -> None:
        """Rows in step: of this call's tokens those among the sinks, and the last `recent`."""
        first, count = self.rows["seen"][0], k_BTGD.shape[1]
        sinks = min(max(self.sinks - first, 0), count)
        every = torch.arange(count, device=k_BTGD.device)
        column = torch.cat([every[:sinks], every[max(sinks, count - self.recent) :]])
        p = column + first
        slot = self._slot(p)
        self.tensors["k"][:, :, slot] = k_BTGD[:, column].transpose(1, 2)
        self.tensors["v"][:, :, slot] = v_BTGD[:, column].transpose(1, 2)
        self.tensors["pos"][:, slot] = p.to(torch.int32)

    def _block(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor, valid: Ragged | None
    ) -> Tensor:
        """Many tokens: attend to [ring, block] under the position mask, then write what stays."""
        i = positions_BT[:, :, None]
        j = torch.cat([self.tensors["pos"], positions_BT], 1)[:, None, :]
        mask = (j >= 0) & (j <= i) & ((i - j < self.recent) | (j < self.sinks))
        if self.heads.window:
            mask &= self.distance(i, j) < self.heads.window
        k = torch.cat([self.tensors["k"], k_BTGD.transpose(1, 2)], 2)
        v = torch.cat([self.tensors["v"], v_BTGD.transpose(1, 2)], 2)
        out = self.mix(q_BTHD, k, v, never_empty(mask), j[:, 0])
        if self.uniform(valid):
            self._write_newest(k_BTGD, v_BTGD)
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
