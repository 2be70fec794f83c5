"""Our caches under kvpress' conventions: every switch is one small function, used in the open by a test.

A policy of ours says what a key is worth in `rate`; kvpress says it in `score`. A switch changes what
`rate` returned, and nothing else: scores, choice, storage and attention stay ours.

    ratio_for       kvpress takes a share of the prompt to drop, we take the tokens to keep
    newest_stays    TOVAPress never drops the token that asks
    per_query       ObservedAttentionPress divides by the number of queries that could see the key
    budget=…        a press acts once: our budget holds for the first call, later ones only append
    full_prompt     a press acts after full attention; StreamingLLM as published sees its window alone
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention import attention

#: (what our `rate` said, positions of the keys, position of the newest query) -> what counts.
Change = Callable[[Tensor, Tensor, Tensor], Tensor]


def ratio_for(budget: int, prompt: int) -> float:
    """A compression ratio at which kvpress keeps `budget` of `prompt` tokens, clear of rounding."""
    return 1 - (budget + 0.5) / prompt


def newest_stays(rated: Tensor, pos: Tensor, newest_B: Tensor) -> Tensor:
    return rated.masked_fill(pos == _beside(newest_B, pos), float("inf"))


def per_query(rated: Tensor, pos: Tensor, newest_B: Tensor) -> Tensor:
    return rated / (_beside(newest_B, pos) - pos + 1)


def _beside(newest_B: Tensor, pos: Tensor) -> Tensor:
    return newest_B.view(-1, *[1] * (pos.ndim - 1))


@dataclass
class Run:
    """`logits` (B,N,V); `kept[c][layer][row][KV head]` positions after call c; `rated[c][layer]` what
    `rate` said (B,choices,keys) when it was last asked in call c, before any switch."""

    logits: Tensor
    kept: list
    rated: list[dict[int, Tensor]]


def run(
    model,
    ids_BN: Tensor,
    calls: list[int],
    change: Change | None = None,
    budget: int | None = None,
    valid_BN: Tensor | None = None,
    prompts: list[int] | None = None,
    full_prompt: bool = False,
) -> Run:
    """Feed tokens in calls through a cache of ours, with kvpress' conventions where they are asked for."""
    B, N = ids_BN.shape
    cache = model.new_cache(B, N, prompts=prompts)
    states = [cache.states[f"{layer}.attention"] for layer in range(model.shape.num_layers)]
    ratings: dict[int, Tensor] = {}
    for layer, state in enumerate(states):
        if hasattr(state, "rate"):
            state.rate = _switched(state.rate, change, ratings, layer)
        if full_prompt:
            state.attend = _full_prompt(state)
    logits, kept, rated, start = [], [], [], 0
    for c, size in enumerate(calls):
        if budget is not None:
            for state in states:
                state.budget = cache.capacity if c else budget
        part = slice(start, start + size)
        logits.append(
            model.extend(ids_BN[:, part], None if valid_BN is None else valid_BN[:, part], cache, "all")
        )
        kept.append([_sets(state.kept_positions(), model.shape.num_kv_heads) for state in states])
        rated.append(dict(ratings))
        ratings.clear()
        start += size
    return Run(torch.cat(logits, 1), kept, rated)


def _switched(rate, change: Change | None, ratings: dict[int, Tensor], layer: int):
    def changed(*args):
        ratings[layer] = rated = rate(*args)
        return rated if change is None else change(rated, *args[-2:])

    return changed


def _full_prompt(state):
    """The first call attends in full; our cache takes in the same tokens by its own rule."""
    attend = state.attend

    def changed(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        out = attend(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid)
        if positions_BT[0, 0] > 0:
            return out
        heads = state.heads
        q, k = heads.rotate(q_BTHD, positions_BT), heads.rotate(k_BTGD, positions_BT)
        return attention(q, k.transpose(1, 2), v_BTGD.transpose(1, 2), heads.scale, causal=True)

    return changed


def _sets(pos_BPS: Tensor, kv_heads: int) -> list:
    """[row][KV head] -> sorted positions; one choice for all heads is every head's choice."""
    rows = [[sorted(p for p in head if p >= 0) for head in row] for row in pos_BPS.tolist()]
    return [row * kv_heads if len(row) == 1 else row for row in rows]
