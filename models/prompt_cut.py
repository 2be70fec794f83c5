"""Caches that act once: the whole prompt attends in full, then it is cut down, then only growth.

    prompt    held whole until every row has completed it (one call, or chunks of a declared length)
    cut       the last `window` queries rate the prompt's keys; every KV head keeps `budget` of them
    after     new tokens take the next free slots; nothing is evicted any more

Slots are made for the cut prompt and what follows, so storage after the prompt is what the policy really
needs. A prompt in chunks is kept beside them until the cut ("pending"); its peak is the full prompt's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import QUERY_BLOCK, Heads, attention, attention_with_probs, never_empty, sliding_window
from .cache import LayerCache, Ragged, Request, TensorSpec, row_lengths
from .eviction_prompt import best


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
            "prompt": prompts or [0] * request.batch,
        }
        # A decode step right after a prompt, which is what cost predictions ask about.
        self.slot_elements, self.reach = heads.slot_elements, min(budget + 1, capacity)

    def rate(self, probs_BGwn: Tensor, pos_Bn: Tensor, newest_B: Tensor) -> Tensor:
        """Worth of every key of the prompt (B,G,n), by the last `window` queries' attention, mean over the
        heads of each KV head; rows that do not exist are zero."""
        raise NotImplementedError

    def evicted(self) -> list[int]:
        return list(self.rows["dropped"])

    def kept_positions(self):
        return self.tensors["pos"]

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        form = self._after if all(self.rows["cut"]) else self._prompt
        return form(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid)

    # --- the prompt -------------------------------------------------------------------------------

    def _prompt(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid: Ragged | None) -> Tensor:
        B, T = k_BTGD.shape[:2]
        before = max(self.rows["seen"])
        in_step = self.uniform(valid)
        self.count(row_lengths(valid, B, T))
        seen = self.rows["seen"]
        ends = all(n >= prompt for n, prompt in zip(seen, self.rows["prompt"], strict=True))
        if before == 0 and ends:
            k, v, queries, at = k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2), q_BTHD, positions_BT
        else:
            k, v, queries, at = self._pend(q_BTHD, k_BTGD, v_BTGD, positions_BT)
        n = k.shape[2]
        slots = torch.arange(n, device=k.device)
        pos_Bn = torch.where(slots < torch.tensor(seen, device=k.device)[:, None], slots, -1)
        if in_step and before == 0 and self.heads.window is None:
            out = attention(q_BTHD, k[:, :, :T], v[:, :, :T], self.heads.scale, causal=True)
        elif in_step and before == 0:
            out = sliding_window(q_BTHD, k[:, :, :T], v[:, :, :T], self.heads.scale, self.heads.window)
        else:
            out = self._masked(q_BTHD, k, v, pos_Bn[:, None], positions_BT)
        if ends:
            self._cut(queries, at, k, v, pos_Bn)
        return out

    def _pend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put this chunk to the prompt so far; also the newest queries, of which `window` are enough."""
        B, G, D = len(k_BTGD), k_BTGD.shape[2], k_BTGD.shape[3]
        longest = max(*self.rows["prompt"], *self.rows["seen"])
        for name, new in (("k", k_BTGD), ("v", v_BTGD)):
            held = self.tensors.get(f"pending_{name}")
            if held is None or held.shape[2] < longest:
                grown = new.new_zeros(B, G, longest, D)
                if held is not None:
                    grown[:, :, : held.shape[2]] = held
                self.specs = self.specs | {f"pending_{name}": self.kv}
                self.tensors[f"pending_{name}"] = grown
            rows = torch.arange(B, device=new.device)[:, None].expand_as(positions_BT)[positions_BT >= 0]
            slot = positions_BT[positions_BT >= 0]
            self.tensors[f"pending_{name}"][rows, :, slot] = new[positions_BT >= 0]
        q, at = q_BTHD, positions_BT
        if "pending_q" in self.tensors:
            q = torch.cat([self.tensors["pending_q"], q], 1)
            at = torch.cat([self.tensors["pending_at"], at], 1)
        newest = at.argsort(stable=True, dim=1)[:, -self.window :]
        self.tensors["pending_at"] = at.gather(1, newest)
        self.tensors["pending_q"] = q.gather(1, newest[:, :, None, None].expand(-1, -1, *q.shape[2:]))
        k, v, q, at = (self.tensors[f"pending_{name}"] for name in ("k", "v", "q", "at"))
        return k, v, q, at

    def _cut(self, q_BTHD: Tensor, at_BT: Tensor, k_BGnD: Tensor, v_BGnD: Tensor, pos_Bn: Tensor) -> None:
        B, G, n, D = k_BGnD.shape
        seen = self.rows["seen"]
        newest_B = torch.tensor(seen, device=k_BGnD.device) - 1
        index = at_BT.argsort(stable=True, dim=1)[:, -self.window :]
        q = q_BTHD.gather(1, index[:, :, None, None].expand(-1, -1, *q_BTHD.shape[2:]))
        at_Bw = at_BT.gather(1, index)
        stays_BGn = (pos_Bn >= 0)[:, None].expand(B, G, n)
        if max(seen) > self.budget:
            mask = never_empty(self._visible(pos_Bn[:, None], at_Bw))[:, 0]
            _, probs = attention_with_probs(q, k_BGnD, v_BGnD, self.heads.scale, mask)
            last = at_Bw > (newest_B - self.window)[:, None]
            probs = probs.unflatten(1, (G, -1)).mean(2) * ((at_Bw >= 0) & last)[:, None, :, None]
            rated = self.rate(probs, pos_Bn, newest_B)
            stays_BGn = best(rated, pos_Bn[:, None].expand(B, G, n), self.budget)
        m = min(max(seen), max(min(s, self.budget) for s in seen))
        order = (~stays_BGn).to(torch.int8).argsort(stable=True, dim=-1)[..., :m]
        wide = order[..., None].expand(-1, -1, -1, D)
        self.tensors["k"][:, :, :m] = k_BGnD.gather(2, wide)
        self.tensors["v"][:, :, :m] = v_BGnD.gather(2, wide)
        kept = pos_Bn[:, None].masked_fill(~stays_BGn, -1).gather(-1, order)
        self.tensors["pos"][:, :, :m] = kept.to(torch.int32)
        self.tensors = {name: x for name, x in self.tensors.items() if not name.startswith("pending")}
        self.rows["held"] = [min(s, self.budget) for s in seen]
        self.rows["dropped"] = [max(0, s - self.budget) for s in seen]
        self.rows["cut"] = [1] * B

    # --- after it ---------------------------------------------------------------------------------

    def _after(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid: Ragged | None) -> Tensor:
        B, T = k_BTGD.shape[:2]
        held, lengths = self.rows["held"], row_lengths(valid, B, T)
        steps = torch.arange(T, device=k_BTGD.device)
        in_step = valid is None and all(n == held[0] for n in held)
        if in_step:
            self.write_run(k_BTGD, v_BTGD, held[0])
            self.tensors["pos"][:, :, held[0] : held[0] + T] = positions_BT[:, None].to(torch.int32)
        else:
            slot_BT = torch.tensor(held, device=steps.device)[:, None] + steps
            real = positions_BT >= 0
            self.write_slots(k_BTGD, v_BTGD, slot_BT, real)
            rows = torch.arange(B, device=steps.device)[:, None].expand_as(real)[real]
            self.tensors["pos"][rows, :, slot_BT[real]] = positions_BT[real][:, None].to(torch.int32)
        self.rows["held"] = [h + n for h, n in zip(held, lengths, strict=True)]
        self.count(lengths)
        used = max(self.rows["held"])
        k, v = self.tensors["k"][:, :, :used], self.tensors["v"][:, :, :used]
        if in_step and T == 1 and self.heads.window is None:
            return attention(q_BTHD, k, v, self.heads.scale)
        return self._masked(q_BTHD, k, v, self.tensors["pos"][:, :, :used], positions_BT)

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
