"""Eviction token by token, in place: what TOVA, random and their kin share.

    slots   [ k0 | k1 | … | k_budget ]      budget + 1 of them
    step    write the new token into the free slot, attend to all budget + 1, name a victim:
            its slot is the free one of the next step

Softmax attention does not care in which order keys lie, and keys carry their rotation, so nothing
is ever gathered or sorted. A policy is one method, `victims`.

Rows of a batch may be at different lengths: each has its own free slot and its own fill.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Heads, attention, attention_with_probs, never_empty
from .cache import LayerCache, Ragged, Request, TensorSpec, row_lengths


class StepwiseEvictor(LayerCache):
    """Base of policies that evict one token per token once `budget` is exceeded.

    Metadata: `pos` (int32, -1: empty) and `free`, the slot that the next token takes.
    """

    #: Whether `victims` looks at attention; if not, probabilities are never materialised.
    scores: bool = True

    def __init__(
        self,
        heads: Heads,
        request: Request,
        budget: int,
    ) -> None:
        slots = min(budget + 1, request.capacity)
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), request.dtype, "payload")
        pos = TensorSpec((slots,), torch.int32, "metadata", -1)
        free = TensorSpec((), torch.int64, "metadata")
        super().__init__(request.batch, {"k": kv, "v": kv, "pos": pos, "free": free}, request.device)
        self.heads, self.budget, self.slots = heads, budget, slots
        self.slot_elements, self.reach = heads.slot_elements, slots

    def victims(self, probs_BHS: Tensor | None, position_B: Tensor) -> Tensor:
        """Slot to free in each row, given the newest query's attention over all budget + 1 slots.

        `probs_BHS` is None for policies with `scores = False`.
        """
        raise NotImplementedError

    def kept_positions(self):
        return self.tensors["pos"][:, None]

    def evicted(self) -> list[int]:
        return [max(0, seen - self.budget) for seen in self.rows["seen"]]

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        B, T = k_BTGD.shape[:2]
        # While every row stays within its budget nothing is evicted: one parallel block.
        calm = min(max(self.budget - max(self.rows["seen"]), 0), T)
        outs = []
        if calm > 1:
            head = None if valid is None else valid.columns(0, calm)
            q, k, v = q_BTHD[:, :calm], k_BTGD[:, :calm], v_BTGD[:, :calm]
            outs.append(self._fill(q, k, v, positions_BT[:, :calm], head))
            self.count(row_lengths(head, B, calm))
        else:
            calm = 0
        for t in range(calm, T):
            here = None if valid is None else valid.columns(t, t + 1)
            column = slice(t, t + 1)
            outs.append(self._step(q_BTHD[:, column], k_BTGD[:, t], v_BTGD[:, t], positions_BT[:, t], here))
            self.count(row_lengths(here, B, 1))
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def _fill(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor, valid: Ragged | None
    ) -> Tensor:
        """Rows that never evicted: slot = position. Causal attention over what is held."""
        T, last = positions_BT.shape[1], self.slots - 1
        held = min(max(self.rows["seen"]) + T, self.slots)
        if self.uniform(valid):
            start = self.rows["seen"][0]
            self.write_run(k_BTGD, v_BTGD, start)
            self.tensors["pos"][:, start : start + T] = positions_BT
            self.tensors["free"].fill_(min(start + T, last))
        else:
            chosen = positions_BT >= 0
            self.write_slots(k_BTGD, v_BTGD, positions_BT, chosen)
            rows = torch.arange(len(chosen), device=chosen.device)[:, None].expand_as(chosen)[chosen]
            self.tensors["pos"][rows, positions_BT[chosen]] = positions_BT[chosen].to(torch.int32)
            filled = torch.maximum(self.tensors["free"], positions_BT.amax(1) + 1)
            self.tensors["free"] = filled.clamp(max=last)
        k, v = self.tensors["k"][:, :, :held], self.tensors["v"][:, :, :held]
        if held == T:
            return attention(q_BTHD, k, v, self.heads.scale, causal=True)
        slots = torch.arange(held, device=k.device)
        return attention(q_BTHD, k, v, self.heads.scale, never_empty(slots <= positions_BT[:, :, None]))

    def _step(
        self, q_B1HD: Tensor, k_BGD: Tensor, v_BGD: Tensor, position_B: Tensor, valid: Ragged | None
    ) -> Tensor:
        """One token per row: write, attend, evict. Rows without a valid token stand still."""
        K, V, pos, free = (self.tensors[name] for name in ("k", "v", "pos", "free"))
        rows = torch.arange(len(free), device=free.device)
        moves = None if valid is None else valid.mask_BT[:, 0]
        new_pos = position_B.to(pos.dtype)
        if moves is not None:
            k_BGD = torch.where(moves[:, None, None], k_BGD, K[rows, :, free])
            v_BGD = torch.where(moves[:, None, None], v_BGD, V[rows, :, free])
            new_pos = torch.where(moves, new_pos, pos[rows, free])
        K[rows, :, free], V[rows, :, free], pos[rows, free] = k_BGD, v_BGD, new_pos

        full = [seen >= self.budget for seen in self.rows["seen"]]
        all_full = all(full) and moves is None
        mask = None if all_full else never_empty((pos >= 0)[:, None, :])
        if self.scores and any(full):
            out, probs_BH1S = attention_with_probs(q_B1HD, K, V, self.heads.scale, mask)
        else:
            out, probs_BH1S = attention(q_B1HD, K, V, self.heads.scale, mask), None
        if not any(full):
            following = (free + 1).clamp(max=self.slots - 1)
            self.tensors["free"] = following if moves is None else torch.where(moves, following, free)
            return out
        victim = self.victims(None if probs_BH1S is None else probs_BH1S[:, :, 0], position_B)
        if all_full:
            pos[rows, victim] = -1
            self.tensors["free"] = victim
            return out
        evicts = torch.tensor(full, device=free.device)
        evicts = evicts if moves is None else evicts & moves
        pos[rows, victim] = torch.where(evicts, torch.full_like(new_pos, -1), pos[rows, victim])
        following = torch.where(evicts, victim, (free + 1).clamp(max=self.slots - 1))
        self.tensors["free"] = following if moves is None else torch.where(moves, following, free)
        return out


def oldest_minimum(score_BS: Tensor, pos_BS: Tensor) -> Tensor:
    """Index of the smallest score per row; among equals the oldest position. Empty slots never win."""
    score_BS = score_BS.masked_fill(pos_BS < 0, float("inf"))
    ties = score_BS == score_BS.amin(-1, keepdim=True)
    return pos_BS.masked_fill(~ties, torch.iinfo(pos_BS.dtype).max).argmin(-1)
