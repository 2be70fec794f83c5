"""Eviction under a token budget: slots, the rule that empties them, one decode step in place.

    slots   [ k0 | k1 | … | k_budget ]      budget + 1 of them
    step    write the new token into the free slot, attend to all budget + 1, let the policy rate them:
            the slot with the lowest rating is the free one of the next step

Softmax attention does not care in which order keys lie, and keys carry their rotation, so a decode step
gathers and sorts nothing. Calls of several tokens are in `eviction_prompt.py`. A policy is

    rate(meta, row, pos, newest)    what each key is worth now; the lowest goes, the oldest of (bit-)equals
    observe(meta, rows, …)          only for policies that remember attention: update their own tensors
    arriving(k, v)                  only for policies that look at keys or values: what to remember of them

Rows of a batch may be at different lengths. With `per_head` every KV head keeps tokens of its own:
P, the number of choices per row, is then G, otherwise 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import Heads, attention, attention_with_probs, never_empty
from .cache import LayerCache, Ragged, Request, TensorSpec, row_lengths
from .kernels import fused

#: A policy's own tensors by name, last dimension = the keys at hand.
Meta = dict[str, Tensor]


class Evictor(LayerCache):
    """Base of policies that keep at most `budget` tokens after each step.

    Metadata: `pos` (B,P,S) int32, -1 in empty slots; `free` (B,P), the slot that the next token takes;
    and what a policy remembers per slot (`remembered`).
    """

    #: Whether `rate` looks at attention at all; if not, probabilities are never materialised.
    scores: bool = True
    #: Whether the policy remembers attention of earlier rows: then `observe` sees every one of them.
    remembers: bool = False
    #: How many of the newest rows it remembers; None: all of them.
    recall: int | None = None
    #: Whether `observe` needs its rows one by one; otherwise it gets their sum as a single row.
    rowwise: bool = False

    def __init__(
        self, heads: Heads, request: Request, budget: int, per_head: bool = False, bulk: bool = False
    ) -> None:
        S = min(budget + 1, request.capacity)
        self.choices = heads.num_kv_heads if per_head else 1
        kv = TensorSpec((heads.num_kv_heads, S, heads.head_dim), request.dtype, "payload")
        specs = {
            "k": kv,
            "v": kv,
            "pos": TensorSpec((self.choices, S), torch.int32, "metadata", -1),
            "free": TensorSpec((self.choices,), torch.int64, "metadata"),
        }
        self.heads, self.budget, self.slots, self.bulk = heads, budget, S, bulk
        memory = self.remembered(torch.promote_types(request.dtype, torch.float32))
        self.meta_names = tuple(memory)
        super().__init__(request.batch, specs | memory, request.device)
        self.slot_elements, self.reach = heads.slot_elements, S
        self.rows["sorted"] = [1] * request.batch  # whether slots lie in temporal order
        # `bulk` is for prompts: of undeclared length, every call of several tokens is taken for one.
        self.rows["prompt"] = request.prompts or [request.capacity] * request.batch

    # --- the policy -------------------------------------------------------------------------------

    def remembered(self, wide: torch.dtype) -> dict[str, TensorSpec]:
        """Tensors (P,…,S) that the policy keeps per slot; a new token's entries start at their fill."""
        return {}

    def arriving(self, k_BTGD: Tensor, v_BTGD: Tensor) -> Meta:
        """What is remembered of new tokens from the start, (B,P,…,T), instead of the fill."""
        return {}

    def observe(self, meta: Meta, rows_BPTn: Tensor, pos_BPn: Tensor, positions_BT: Tensor) -> None:
        """Update `meta` in place by the attention of T query rows, mean over each choice's heads.

        Rows of padding are zero (their position is -1). Columns: the n keys at hand.
        """

    def rate(self, meta: Meta, row_BPn: Tensor | None, pos_BPn: Tensor, newest_B: Tensor) -> Tensor:
        """Worth of every key (B,P,n): the lowest goes. `row_BPn` is the newest query's attention, mean
        over the heads of each choice (None with `scores = False`); `newest_B` its position. Entries of
        empty slots are ignored."""
        raise NotImplementedError

    # --- what every policy shares -----------------------------------------------------------------

    def step_key(self):
        """Steps are alike once every one of them evicts."""
        return () if self.fused and min(self.rows["seen"]) >= self.budget else None

    def count_step(self) -> None:
        super().count_step()
        self.rows["sorted"] = [0] * self.batch

    @property
    def meta(self) -> Meta:
        return {name: self.tensors[name] for name in self.meta_names}

    def kept_positions(self):
        return self.tensors["pos"]

    def evicted(self) -> list[int]:
        return [max(0, seen - self.budget) for seen in self.rows["seen"]]

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        from . import eviction_prompt as prompt

        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        if k_BTGD.shape[1] == 1:
            out = self._step(q_BTHD, k_BTGD[:, 0], v_BTGD[:, 0], positions_BT[:, 0], valid)
            self.count(row_lengths(valid, len(out), 1))
            return out
        call = prompt.Call(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid)
        return prompt.prompts_in_bulk(self, call) if self.bulk else prompt.stepwise(self, call)

    def per_choice(self, probs_BHTn: Tensor) -> Tensor:
        """Mean over the query heads of each choice: (B,P,T,n)."""
        return probs_BHTn.unflatten(1, (self.choices, -1)).mean(2)

    def visible(self, pos_BPn: Tensor, positions_BT: Tensor) -> Tensor:
        """Which keys each query may see: (B,P,T,n)."""
        pos, i = pos_BPn[:, :, None], positions_BT[:, None, :, None]
        seen = (pos >= 0) & (pos <= i)
        return seen if self.heads.window is None else seen & (i - pos < self.heads.window)

    def kv_index(self, index_BPm: Tensor, width: int) -> Tensor:
        """Indices per choice, spread over KV heads and channels: (B,G,m,width)."""
        return index_BPm[..., None].expand(-1, self.heads.num_kv_heads, -1, width)

    def _step(
        self, q_B1HD: Tensor, k_BGD: Tensor, v_BGD: Tensor, position_B: Tensor, valid: Ragged | None
    ) -> Tensor:
        """One token per row: write, attend, evict. Rows without a valid token stand still."""
        K, V, pos, free = (self.tensors[name] for name in ("k", "v", "pos", "free"))
        moves = None if valid is None else valid.mask_BT[:, 0]
        slot = free[:, :, None]
        slot_k = self.kv_index(slot, k_BGD.shape[-1])
        new = {
            "k": k_BGD[:, :, None],
            "v": v_BGD[:, :, None],
            "pos": position_B.to(pos.dtype)[:, None, None].expand_as(slot),
        }
        for name, value in new.items():
            held, index = self.tensors[name], slot if name == "pos" else slot_k
            if moves is not None:
                value = torch.where(_like(moves, value), value, held.gather(2, index))
            held.scatter_(2, index, value)
        arriving = self.arriving(k_BGD[:, None], v_BGD[:, None])
        for name, held in self.meta.items():
            index = slot.view(*slot.shape[:2], *[1] * (held.ndim - 3), 1).expand(*held.shape[:-1], 1)
            start = arriving.get(name, held.new_full(index.shape, self.specs[name].fill)).to(held.dtype)
            if moves is not None:
                start = torch.where(_like(moves, start), start, held.gather(-1, index))
            held.scatter_(-1, index, start)

        full = [seen >= self.budget for seen in self.rows["seen"]]
        settled = all(full) and moves is None
        mask = None
        if not settled or self.heads.window is not None:
            mask = never_empty(self.visible(pos, position_B[:, None]))
        rate = any(full)
        q_B1HD, K = self.turned(q_B1HD, K, pos)
        scored = self.remembers or (self.scores and rate)
        if self.fused:
            step = fused("decode_attention").attend
            own = None if mask is None else mask[:, :, 0]
            out, row = step(q_B1HD[:, 0], K, V, self.heads.scale, None, own, self.choices if scored else None)
            out, row_BP1S = out[:, None], row if row is None else row[:, :, None]
        elif scored:
            out, probs_BH1S = attention_with_probs(q_B1HD, K, V, self.heads.scale, self.head_mask(mask))
            row_BP1S = self.per_choice(probs_BH1S)
        else:
            out, row_BP1S = attention(q_B1HD, K, V, self.heads.scale, self.head_mask(mask)), None
        if self.remembers:
            seen_BP1S = row_BP1S if moves is None else row_BP1S * _like(moves, row_BP1S)
            self.observe(self.meta, seen_BP1S, pos, position_B[:, None])
        following = (free + 1).clamp(max=self.slots - 1)
        if rate:
            self.rows["sorted"] = [0] * self.batch
            row_BPS = None if row_BP1S is None else row_BP1S[:, :, 0]
            victim = oldest_minimum(self.rate(self.meta, row_BPS, pos, position_B), pos, settled)
            if settled:
                pos.scatter_(2, victim[:, :, None], -1)
                free.copy_(victim)
                return out
            evicts = torch.tensor(full, device=free.device)
            evicts = (evicts if moves is None else evicts & moves)[:, None]
            there = pos.gather(2, victim[:, :, None])
            pos.scatter_(2, victim[:, :, None], there.masked_fill(evicts[:, :, None], -1))
            following = torch.where(evicts, victim, following)
        free.copy_(following if moves is None else torch.where(moves[:, None], following, free))
        return out

    def turned(self, q_B1HD: Tensor, k_BGSD: Tensor, pos_BPS: Tensor) -> tuple[Tensor, Tensor]:
        """Query and keys as they are multiplied; both were rotated when they came."""
        return q_B1HD, k_BGSD

    def head_mask(self, mask_BPTn: Tensor | None) -> Tensor | None:
        """As attention wants it: (B,T,S) where heads agree, else (B,G,T,S)."""
        return mask_BPTn[:, 0] if mask_BPTn is not None and self.choices == 1 else mask_BPTn


def _like(flag_B: Tensor, x: Tensor) -> Tensor:
    """A flag per row, shaped to broadcast against x."""
    return flag_B.view(-1, *[1] * (x.ndim - 1))


def oldest_minimum(score_BPn: Tensor, pos_BPn: Tensor, filled: bool = False) -> Tensor:
    """Index of the smallest score in the last dimension, the oldest of equals; empty slots never win.

    `filled` says that no slot is empty, and spares the look.
    """
    last = torch.iinfo(pos_BPn.dtype).max
    if not filled:
        empty_BPn = pos_BPn < 0
        score_BPn, pos_BPn = (
            score_BPn.masked_fill(empty_BPn, float("inf")),
            pos_BPn.masked_fill(empty_BPn, last),
        )
    ties_BPn = score_BPn == score_BPn.amin(-1, keepdim=True)
    return torch.where(ties_BPn, pos_BPn, last).argmin(-1)
