"""Attend, then evict: the loop shared by all policies that keep or drop whole tokens.

A call of several tokens lets every row attend to [what is held ; the call's own tokens up to the row].
When the call is over, a `Keeper` says what stays. So a bulk prompt is one call, and the token-by-token
rule is the same loop with calls of one token: `steps(calls)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .attention import Row


def steps(calls: list[int]) -> list[int]:
    """The same tokens, one call each."""
    return [1] * sum(calls)


def in_mode(calls: list[int], prompt: str) -> list[int]:
    assert prompt in ("stepwise", "bulk"), prompt
    return steps(calls) if prompt == "stepwise" else calls


class Keeper:
    """One policy's decisions for one KV head, or for a whole layer."""

    def places(self, seen: list[int]) -> dict[int, float]:
        """Where the keys at these positions (in temporal order, the query last) are rotated to."""
        return {j: j for j in seen}

    def note(self, t: int, row: Row) -> None:
        """Row t gave these probabilities (mean over the query heads) to what it could see."""

    def keep(self, t: int, held: list[int]) -> list[int]:
        """What stays, sorted, of the positions held after row t, the last one of a call."""
        raise NotImplementedError


def top(scores: dict[int, float], count: int) -> list[int]:
    """The `count` positions with the largest scores, sorted; of equals the oldest is left out."""
    ranked = sorted(scores, key=lambda j: (-scores[j], -j))
    return sorted(ranked[: max(count, 0)])


def mean(rows: list[Row]) -> Row:
    """Mean over query heads that saw the same positions."""
    return {j: sum(row[j] for row in rows) / len(rows) for j in rows[0]}


def keeping(
    layer, calls: list[int], new_keeper: Callable[[], Keeper], select: str = "layer"
) -> tuple[Tensor, list[list[int]]]:
    """Run one layer: outputs (T,H,D) and what is held at the end.

    `select="head"`: every KV head has a keeper of its own and averages over its query heads;
    `select="layer"`: one keeper decides for all KV heads by the mean over all query heads.
    """
    assert select in ("head", "layer"), select
    units = layer.kv_heads if select == "head" else 1
    keepers = [new_keeper() for _ in range(units)]
    held: list[list[int]] = [[] for _ in range(units)]
    outs, t = [], 0
    for size in calls:
        for _ in range(size):
            held = [positions + [t] for positions in held]
            places = [keeper.places(seen) for keeper, seen in zip(keepers, held, strict=True)]
            repeats = layer.kv_heads // units
            out_HD, rows = layer.attend(t, held * repeats, places * repeats)
            outs.append(out_HD)
            per_unit = len(rows) // units
            for unit, keeper in enumerate(keepers):
                keeper.note(t, mean(rows[unit * per_unit : (unit + 1) * per_unit]))
            t += 1
        held = [keeper.keep(t - 1, positions) for keeper, positions in zip(keepers, held, strict=True)]
    return torch.stack(outs), held
