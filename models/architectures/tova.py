"""TOVA: evict the token that the newest query attends to least (arXiv 2401.06104, section 3).

Per layer: softmax of the newest query over all budget + 1 keys, the newest included, averaged over
all query heads in fp32; the smallest goes, the same for every KV head. No token is protected. Among
equal scores the oldest position goes (the paper leaves it open).

`prompt=stepwise` (default) is the paper's protocol for language modelling: the rule runs token by
token through the prompt. `prompt=bulk` is the authors' published code: a call of several tokens
attends in full and keeps the top `budget` by its last row. They are different algorithms: rows
record which ran. In bulk the keys of a call are seen beside the slots, so how a text is cut into
calls (prompt chunks, scored segments) changes the numbers; rows record that too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..attention import QUERY_BLOCK, attention, attention_with_probs, never_empty
from ..cache import row_lengths
from ..decoder import Decoder
from ..eviction import StepwiseEvictor, oldest_minimum


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept after each step; `prompt` chooses how a prompt is treated."""

    budget: int = 256
    prompt: Literal["stepwise", "bulk"] = "stepwise"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"tova needs a budget of at least 1, not {self.budget}.")


class TovaCache(StepwiseEvictor):
    """Victim = least mean attention of the newest query."""

    def victims(self, probs_BHS, position_B):
        return oldest_minimum(probs_BHS.mean(1), self.tensors["pos"])


class BulkTovaCache(TovaCache):
    """Calls of several tokens evict once, after full attention, by their last row."""

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        B, T = k_BTGD.shape[:2]
        if T == 1:
            return super().attend(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid)
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        k = torch.cat([self.tensors["k"], k_BTGD.transpose(1, 2)], 2)
        v = torch.cat([self.tensors["v"], v_BTGD.transpose(1, 2)], 2)
        pos_BS = torch.cat([self.tensors["pos"].long(), positions_BT], 1)
        outs = []
        for start in range(0, T, QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            mask = never_empty(_visible(pos_BS, positions_BT[:, block]))
            outs.append(attention(q_BTHD[:, block], k, v, self.heads.scale, mask))

        lengths = row_lengths(valid, B, T)
        rows = torch.arange(B, device=k.device)
        last = torch.tensor(lengths, device=k.device).sub(1).clamp(min=0)
        mask = never_empty(_visible(pos_BS, positions_BT[rows, last][:, None]))
        _, probs = attention_with_probs(q_BTHD[rows, last][:, None], k, v, self.heads.scale, mask)
        self._keep_top(k, v, pos_BS, probs[:, :, 0].mean(1), lengths)
        self.count(lengths)
        return torch.cat(outs, 1)

    def _keep_top(self, k, v, pos_BS, score_BS, lengths) -> None:
        """Refill the slots with the `budget` best of old and new; rows without new tokens keep theirs."""
        moved = torch.tensor([n > 0 for n in lengths], device=k.device)
        score_BS = torch.where(moved[:, None], score_BS, torch.ones_like(score_BS))
        score_BS = score_BS.masked_fill(pos_BS < 0, -1.0)
        # Newest first, then a stable sort: among equal scores the oldest comes last and goes first.
        newest_first = pos_BS.argsort(1, descending=True)
        by_score = score_BS.gather(1, newest_first).argsort(stable=True, dim=1, descending=True)
        keep = newest_first.gather(1, by_score)[:, : min(self.budget, self.slots)]
        index = keep[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        kept_pos = pos_BS.gather(1, keep)
        self.tensors["k"][:, :, : keep.shape[1]] = k.gather(2, index)
        self.tensors["v"][:, :, : keep.shape[1]] = v.gather(2, index)
        self.tensors["pos"].fill_(-1)
        self.tensors["pos"][:, : keep.shape[1]] = kept_pos.to(torch.int32)
        self.tensors["free"] = (kept_pos >= 0).sum(1).clamp(max=self.slots - 1)


def _visible(pos_BS: Tensor, positions_BT: Tensor) -> Tensor:
    """Which filled slots each query may see (B,T,S)."""
    return (pos_BS >= 0)[:, None, :] & (pos_BS[:, None, :] <= positions_BT[:, :, None])


class Model(Decoder):
    """The Transformer under TOVA; needs no training of its own."""

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.prompt_mode = options.prompt

    def layer_cache(self, heads, layer, request):
        kind = BulkTovaCache if self.options.prompt == "bulk" else TovaCache
        return kind(heads, request, self.options.budget)

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """A bulk prompt attends in full, and its last row a second time for the scores."""
        if self.options.prompt == "stepwise":
            return super().prefill_flops(num_tokens, batch)
        pairs = num_tokens * (num_tokens + 1) // 2 + num_tokens
        extra = self._pair_flops() * pairs - self._attention_flops(0, num_tokens)
        return super().prefill_flops(num_tokens, batch) + batch * extra
