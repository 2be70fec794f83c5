"""TOVA (arXiv 2401.06104): whatever the newest query attends to least is dropped."""

from __future__ import annotations

import math

from .keeping import Keeper, in_mode, keeping, top


class LeastAttendedGoes(Keeper):
    """Keeps the `budget` positions with most attention from the newest row; the first `protect` stay."""

    def __init__(self, budget: int, protect: int = 0) -> None:
        self.budget, self.protect = budget, protect

    def note(self, t, row):
        self.row = row  # earlier rows do not count

    def keep(self, t, held):
        if len(held) <= self.budget:
            return held
        safe = [j for j in held if j < self.protect]
        others = {j: self.row.get(j, 0.0) for j in held if j >= self.protect}
        return safe + top(others, self.budget - len(safe))


class CompressedGaps(LeastAttendedGoes):
    """Keys stand at compressed distances (paper section on extrapolation)."""

    def places(self, seen):
        return compressed(seen)


def compressed(survivors: list[int]) -> dict[int, float]:
    """The first survivor keeps its index; a gap g to the next becomes g up to 10, else ln(ln g)."""
    places: dict[int, float] = {survivors[0]: survivors[0]}
    for before, after in zip(survivors, survivors[1:], strict=False):
        gap = after - before
        places[after] = places[before] + (gap if gap <= 10 else math.log(math.log(gap)))
    return places


def tova(
    layer,
    calls,
    budget: int = 256,
    prompt: str = "stepwise",
    select: str = "layer",
    protect: int = 0,
    positions: str = "original",
):
    assert positions in ("original", "compressed"), positions
    assert positions == "original" or prompt == "stepwise", "compressed gaps are defined step by step"
    keeper = LeastAttendedGoes if positions == "original" else CompressedGaps
    return keeping(layer, in_mode(calls, prompt), lambda: keeper(budget, protect), select)
