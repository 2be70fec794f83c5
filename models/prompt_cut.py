"""Caches that act once: the whole prompt attends in full, then it is cut down, then only growth.

    prompt    held whole until the row has completed it (one call, or chunks of a declared length)
    cut       the last `window` queries rate the prompt's keys; every KV head keeps `budget` of them
    after     new tokens take the next free slots; nothing is evicted any more

Slots are made for the cut prompt and what follows, so storage after the prompt is what the policy really
needs. A prompt in chunks is kept beside them until the cut ("pending"); its peak is the full prompt's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import (
    QUERY_BLOCK,
    Heads,
    attention,
    attention_with_probs,
    causal_tail,
    never_empty,
    sliding_window,
)
from .cache import LayerCache, Ragged, Request, TensorSpec, row_lengths
from .eviction_prompt import best, probs_block


class PromptCutCache(LayerCache):
    """Base: a policy is one method, `rate`. Metadata: `pos` (B,G,S) int32, -1 in empty slots."""

    def __init__(self, heads: Heads, request: Request, budget: int, window: int) -> None:
        self.heads, self.budget, self.window, self.prompts = heads, budget, window, request.prompts
        capacity, prompts = request.capacity, request.prompts
        self.slots = capacity
        if prompts is not None:
            self.slots = max(min(prompt, budget) + max(capacity - prompt, 0) for prompt in prompts)
        G, D = heads.num_kv_heads, heads.head_dim
        self.kv = TensorSpec((G, self.slots, D), request.dtype, "payload")
        pos = TensorSpec((G, self.slots), torch.int32, "metadata", -1)
        super().__init__(request.batch, {"k": self.kv, "v": self.kv, "pos": pos}, request.device)
        self.rows |= {
            "held": [0] * request.batch,
            "cut": [0] * request.batch,
            "dropped": [0] * request.batch,
            "prompt": prompts or [1] * request.batch,  # undeclared: the first call that has tokens
        }
        # A decode step right after a prompt, which is what cost predictions ask about.
        self.slot_elements, self.reach = heads.slot_elements, min(budget + 1, capacity)

    def rate(self, score_BGn: Tensor, pos_Bn: Tensor, newest_B: Tensor) -> Tensor:
        """Worth of every key of the prompt (B,G,n), by the attention of the last `window` queries, summed
        over them and averaged over the heads of each KV head."""
        raise NotImplementedError

    def evicted(self) -> list[int]:
        return list(self.rows["dropped"])

    def kept_positions(self):
        pos_BGS = self.tensors["pos"]
        if all(self.rows["cut"]):
            return pos_BGS
        # Of a prompt that is not complete everything is held.
        steps = torch.arange(max(*self.rows["seen"], self.slots), device=pos_BGS.device)
        whole = torch.where(steps < torch.tensor(self.rows["seen"], device=steps.device)[:, None], steps, -1)
        cut = torch.tensor(self.rows["cut"], device=steps.device)[:, None, None] > 0
        filled = F.pad(pos_BGS.long(), (0, len(steps) - self.slots), value=-1)
        return torch.where(cut, filled, whole[:, None])

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        outs, start, T = [], 0, positions_BT.shape[1]
        while start < T:
            stop = self._next_end(start, T, row_lengths(valid, *positions_BT.shape))
            part = slice(start, stop)
            here = None if valid is None else valid.columns(start, stop)
            outs.append(
                self._piece(q_BTHD[:, part], k_BTGD[:, part], v_BTGD[:, part], positions_BT[:, part], here)
            )
            start = stop
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def _next_end(self, start: int, width: int, lengths: list[int]) -> int:
        """Column up to which no row goes beyond its declared prompt."""
        ends = [width]
        for row, length in enumerate(lengths):
            left = self.rows["prompt"][row] - self.rows["seen"][row]
            if self.prompts is not None and not self.rows["cut"][row] and start + left < length:
                ends.append(start + left)
        return max(min(ends), start + 1)

    def _piece(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid: Ragged | None) -> Tensor:
        """Tokens of one phase per row: still its prompt, or after it."""
        cut, everyone = self.rows["cut"], list(range(self.batch))
        phases = [[row for row in everyone if cut[row] == phase] for phase in (0, 1)]
        forms = (self._prompt, self._after)
        for rows, form in zip(phases, forms, strict=True):
            if rows == everyone:
                return form(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid, rows)
        out = torch.empty_like(q_BTHD)
        for rows, form in zip(phases, forms, strict=True):
            r = torch.tensor(rows, device=out.device)
            lengths = row_lengths(valid, *positions_BT.shape)
            here = Ragged([lengths[row] for row in rows], positions_BT[r] >= 0)
            out[r] = form(q_BTHD[r], k_BTGD[r], v_BTGD[r], positions_BT[r], here, rows)
        return out

    def _count(self, rows: list[int], lengths: list[int]) -> None:
        for row, length in zip(rows, lengths, strict=True):
            self.rows["seen"][row] += length

    # --- the prompt -------------------------------------------------------------------------------

    def _prompt(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid: Ragged | None, rows: list[int]) -> Tensor:
        B, T = positions_BT.shape
        fresh = all(self.rows["seen"][row] == 0 for row in rows)
        self._count(rows, row_lengths(valid, B, T))
        seen = [self.rows["seen"][row] for row in rows]
        ends = [n >= self.rows["prompt"][row] for n, row in zip(seen, rows, strict=True)]
        if fresh and all(end or n == 0 for end, n in zip(ends, seen, strict=True)):
            k, v, queries, at = k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2), q_BTHD, positions_BT
        else:
            k, v, queries, at = self._pend(q_BTHD, k_BTGD, v_BTGD, positions_BT, rows)
        slots = torch.arange(k.shape[2], device=k.device)
        pos_Bn = torch.where(slots < torch.tensor(seen, device=k.device)[:, None], slots, -1)
        if valid is None and fresh and self.heads.window is None:
            out = attention(q_BTHD, k[:, :, :T], v[:, :, :T], self.heads.scale, causal=True)
        elif valid is None and fresh:
            out = sliding_window(q_BTHD, k[:, :, :T], v[:, :, :T], self.heads.scale, self.heads.window)
        else:
            out = self._masked(q_BTHD, k, v, pos_Bn[:, None], positions_BT)
        if all(ends):
            self._cut(queries, at, k, v, pos_Bn, rows)
        elif any(ends):
            e = [i for i, end in enumerate(ends) if end]
            self._cut(queries[e], at[e], k[e], v[e], pos_Bn[e], [rows[i] for i in e])
        return out

    def _pend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, rows: list[int]) -> tuple[Tensor, ...]:
        """Put this chunk to the prompts so far; of their queries the newest `window` are enough."""
        _, T, G, D = k_BTGD.shape
        longest = max(*self.rows["prompt"], *self.rows["seen"])
        shapes = {
            "k": (self.batch, G, longest, D),
            "v": (self.batch, G, longest, D),
            "q": (self.batch, self.window, *q_BTHD.shape[2:]),
            "at": (self.batch, self.window),
        }
        for name, like in (("k", k_BTGD), ("v", v_BTGD), ("q", q_BTHD), ("at", positions_BT)):
            if f"pending_{name}" not in self.tensors:
                self.specs = self.specs | {f"pending_{name}": self.kv}
                self.tensors[f"pending_{name}"] = like.new_full(shapes[name], -1 if name == "at" else 0)
        r = torch.tensor(rows, device=k_BTGD.device)
        real = positions_BT >= 0
        row, slot = r[:, None].expand(-1, T)[real], positions_BT[real]
        self.tensors["pending_k"][row, :, slot] = k_BTGD[real]
        self.tensors["pending_v"][row, :, slot] = v_BTGD[real]
        at = torch.cat([self.tensors["pending_at"][r], positions_BT], 1)
        q = torch.cat([self.tensors["pending_q"][r], q_BTHD], 1)
        q, at = self._newest(q, at)
        self.tensors["pending_q"][r], self.tensors["pending_at"][r] = q, at
        held = max(self.rows["seen"][row] for row in rows)
        k, v = (self.tensors[f"pending_{name}"][:, :, :held] for name in ("k", "v"))
        return (k, v, q, at) if len(rows) == self.batch else (k[r], v[r], q, at)

    def _newest(self, q_BTHD: Tensor, at_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The last `window` queries in time; padding comes before all."""
        index = at_BT.argsort(stable=True, dim=1)[:, -self.window :]
        return q_BTHD.gather(1, index[:, :, None, None].expand(-1, -1, *q_BTHD.shape[2:])), at_BT.gather(
            1, index
        )

    def _cut(self, q_BTHD: Tensor, at_BT: Tensor, k_BGnD, v_BGnD, pos_Bn: Tensor, rows: list[int]) -> None:
        B, G, n, D = k_BGnD.shape
        seen = [self.rows["seen"][row] for row in rows]
        stays_BGn = (pos_Bn >= 0)[:, None].expand(B, G, n)
        if max(seen) > self.budget:
            newest_B = torch.tensor(seen, device=k_BGnD.device) - 1
            q, at_Bw = self._newest(q_BTHD, at_BT)
            size, score_BGn = probs_block(q, n), 0
            for start in range(0, q.shape[1], size):
                part = slice(start, start + size)
                mask = never_empty(self._visible(pos_Bn[:, None], at_Bw[:, part]))[:, 0]
                _, probs = attention_with_probs(q[:, part], k_BGnD, v_BGnD, self.heads.scale, mask)
                real = at_Bw[:, part] >= 0
                score_BGn = score_BGn + (probs * real[:, None, :, None]).sum(2).unflatten(1, (G, -1)).mean(2)
            rated = self.rate(score_BGn, pos_Bn, newest_B)
            stays_BGn = best(rated, pos_Bn[:, None].expand(B, G, n), self.budget)
        m = max(min(s, self.budget) for s in seen)
        order = (~stays_BGn).to(torch.int8).argsort(stable=True, dim=-1)[..., :m]
        wide = order[..., None].expand(-1, -1, -1, D)
        kept = pos_Bn[:, None].masked_fill(~stays_BGn, -1).gather(-1, order)
        r = torch.tensor(rows, device=k_BGnD.device)
        self.tensors["k"][r, :, :m] = k_BGnD.gather(2, wide)
        self.tensors["v"][r, :, :m] = v_BGnD.gather(2, wide)
        self.tensors["pos"][r, :, :m] = kept.to(torch.int32)
        for row, n_seen in zip(rows, seen, strict=True):
            self.rows["held"][row] = min(n_seen, self.budget)
            self.rows["dropped"][row] = max(0, n_seen - self.budget)
            self.rows["cut"][row] = 1
        if all(self.rows["cut"]):
            self.tensors = {name: x for name, x in self.tensors.items() if not name.startswith("pending")}

    # --- after it ---------------------------------------------------------------------------------

    def _after(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid: Ragged | None, rows: list[int]) -> Tensor:
        B, T = positions_BT.shape
        held, lengths = [self.rows["held"][row] for row in rows], row_lengths(valid, B, T)
        in_step = valid is None and all(n == held[0] for n in held)
        if in_step:
            self.write_run(k_BTGD, v_BTGD, held[0])
            self.tensors["pos"][:, :, held[0] : held[0] + T] = positions_BT[:, None].to(torch.int32)
        else:
            real = positions_BT >= 0
            steps = torch.arange(T, device=real.device)
            slot = (torch.tensor(held, device=real.device)[:, None] + steps)[real]
            row = torch.tensor(rows, device=real.device)[:, None].expand_as(real)[real]
            self.tensors["k"][row, :, slot], self.tensors["v"][row, :, slot] = k_BTGD[real], v_BTGD[real]
            self.tensors["pos"][row, :, slot] = positions_BT[real][:, None].to(torch.int32)
        self._count(rows, lengths)
        for row, h, length in zip(rows, held, lengths, strict=True):
            self.rows["held"][row] = h + length
        used = max(self.rows["held"][row] for row in rows)
        k, v, pos = (self.tensors[name][:, :, :used] for name in ("k", "v", "pos"))
        if in_step and self.heads.window is None:
            # All slots are filled: every query sees what was held, and its own predecessors.
            scale = self.heads.scale
            return attention(q_BTHD, k, v, scale) if T == 1 else causal_tail(q_BTHD, k, v, scale)
        if len(rows) < self.batch:
            r = torch.tensor(rows, device=k.device)
            k, v, pos = k[r], v[r], pos[r]
        return self._masked(q_BTHD, k, v, pos, positions_BT)

    def _masked(self, q_BTHD, k_BGnD, v_BGnD, pos_BGn, positions_BT) -> Tensor:
        outs = []
        for start in range(0, q_BTHD.shape[1], QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            mask = never_empty(self._visible(pos_BGn, positions_BT[:, block]))
            mask = mask[:, 0] if mask.shape[1] == 1 else mask
            outs.append(attention(q_BTHD[:, block], k_BGnD, v_BGnD, self.heads.scale, mask))
        return torch.cat(outs, 1)

    def _visible(self, pos_BGn: Tensor, positions_BT: Tensor) -> Tensor:
        pos, i = pos_BGn[:, :, None], positions_BT[:, None, :, None]
        seen = (pos >= 0) & (pos <= i)
        return seen if self.heads.window is None else seen & (i - pos < self.heads.window)
