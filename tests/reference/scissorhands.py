"""Scissorhands (arXiv 2305.17118), fixed-budget form: drop what was below average most often lately."""

from __future__ import annotations

from .attention import Row
from .keeping import Keeper, in_mode, keeping, top


class LeastOftenImportant(Keeper):
    """A row of n visible keys finds those below 1/n unimportant; the last `history` rows are counted."""

    def __init__(self, budget: int, history: int, recent: int) -> None:
        self.budget, self.history, self.recent = budget, history, recent
        self.rows: list[Row] = []

    def note(self, t, row):
        self.rows = (self.rows + [row])[-self.history :]

    def unimportant(self, j: int) -> int:
        """In how many of those rows was key j seen, but with less than the mean probability?"""
        return sum(j in row and row[j] < 1 / len(row) for row in self.rows)

    def keep(self, t, held):
        if len(held) <= self.budget:
            return held
        newest = [j for j in held if j > t - self.recent]
        others = {j: -self.unimportant(j) for j in held if j <= t - self.recent}
        return top(others, self.budget - len(newest)) + newest


def scissorhands(
    layer, calls, budget: int = 256, history: int = 100, recent: int = 10, prompt: str = "stepwise"
):
    return keeping(
        layer, in_mode(calls, prompt), lambda: LeastOftenImportant(budget, history, recent), "head"
    )
