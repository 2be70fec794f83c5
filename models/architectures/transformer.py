"""Full cache: every token's keys and values are kept. The control that everything is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import QUERY_BLOCK, Heads, attention, causal_tail, never_empty
from ..cache import LayerCache, Ragged, Request, TensorSpec, row_lengths
from ..decoder import Decoder
from ..kernels import fused
from ..ring import WindowCache


@dataclass(frozen=True)
class Options:
    """None: a full cache has nothing to choose."""


class FullCache(LayerCache):
    """Slot = position. Keys are held rotated; nothing is ever dropped.

    `append` and `read` are apart so that several layers can read one cache (YOCO).
    """

    def __init__(
        self,
        heads: Heads,
        request: Request,
        readers: int = 1,
        capacity: int | None = None,
    ) -> None:
        slots = capacity or request.capacity
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), request.dtype, "payload")
        super().__init__(request.batch, {"k": kv, "v": kv}, request.device)
        self.heads, self.readers, self.slot_elements = heads, readers, heads.slot_elements

    def append(self, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor, valid: Ragged | None) -> None:
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        if self.fused and k_BTGD.shape[1] == 1 and self.uniform(valid):
            self.write_at(k_BTGD, v_BTGD, positions_BT[0])
        elif self.uniform(valid):
            self.write_run(k_BTGD, v_BTGD, self.rows["seen"][0])
        else:
            self.write_slots(k_BTGD, v_BTGD, positions_BT, positions_BT >= 0)
        self.count(row_lengths(valid, *k_BTGD.shape[:2]))

    def read(self, q_BTHD: Tensor, positions_BT: Tensor, valid: Ragged | None) -> Tensor:
        """Causal attention of queries whose keys are already held (the newest T tokens per row)."""
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        if self.fused and (q_BTHD.shape[1] == 1 or self.uniform(valid)):
            return self._read_fused(q_BTHD, positions_BT)
        T, held = q_BTHD.shape[1], max(self.rows["seen"])
        k, v, scale = self.tensors["k"][:, :, :held], self.tensors["v"][:, :, :held], self.heads.scale
        window = self.heads.window or held
        if self.uniform(valid) and window >= held:
            return attention(q_BTHD, k, v, scale) if T == 1 else causal_tail(q_BTHD, k, v, scale)
        if held == T and window >= held and self.rows["seen"] == row_lengths(valid, *q_BTHD.shape[:2]):
            # Fresh rows of unequal length: padding stands last, so no query of a row ever sees it.
            return attention(q_BTHD, k, v, scale, causal=True)
        slots = torch.arange(held, device=q_BTHD.device)
        outs = []
        for start in range(0, T, QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            back = positions_BT[:, block, None] - slots
            mask = never_empty((back >= 0) & (back < window))
            outs.append(attention(q_BTHD[:, block], k, v, scale, mask))
        return torch.cat(outs, 1)

    def _read_fused(self, q_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        """One query per row, of rows in any step, or the newest tokens of rows in step."""
        k, v, scale, window = self.tensors["k"], self.tensors["v"], self.heads.scale, self.heads.window
        if q_BTHD.shape[1] > 1:
            held = self.rows["seen"][0]
            attend = fused("window_attention").attend
            return attend(q_BTHD, k[:, :, :held], v[:, :, :held], scale, window)[0]
        mask = None
        if window is not None:
            slots = torch.arange(k.shape[2], device=k.device)
            mask = positions_BT[:, :, None] - slots < window
        step = fused("decode_attention").attend
        return step(q_BTHD[:, 0], k, v, scale, positions_BT[:, 0] + 1, mask)[0][:, None]

    def step_key(self):
        return () if self.fused else None

    def kept_positions(self):
        slots = torch.arange(self.tensors["k"].shape[2], device=self.tensors["k"].device)
        held = torch.tensor(self.rows["seen"], device=slots.device)[:, None]
        return torch.where(slots < held, slots, -1)[:, None]

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        self.append(k_BTGD, v_BTGD, positions_BT, valid)
        return self.read(q_BTHD, positions_BT, valid)


class Model(Decoder):
    """Llama-style decoder with one full cache per layer."""

    implementations = ("torch", "fused")

    def layer_cache(self, heads, layer, request):
        # A layer that sees only a window needs no more than it: exact, and what it really costs.
        return WindowCache(heads, request, 0, heads.window) if heads.window else FullCache(heads, request)
