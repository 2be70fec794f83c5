"""H2O (arXiv 2306.14048): the newest tokens, and of the others those that received most attention so far."""

from __future__ import annotations

from .keeping import Keeper, in_mode, keeping, top


class HeavyHitters(Keeper):
    """The score of a held key is the sum of its probabilities over every row that saw it."""

    def __init__(self, budget: int, heavy: float) -> None:
        self.budget = budget
        self.heavy = int(budget * heavy)
        self.recent = budget - self.heavy
        self.scores: dict[int, float] = {}

    def note(self, t, row):
        for j, probability in row.items():
            self.scores[j] = self.scores.get(j, 0.0) + probability

    def keep(self, t, held):
        if len(held) > self.budget:
            newest = [j for j in held if j > t - self.recent]
            others = {j: self.scores[j] for j in held if j <= t - self.recent}
            held = top(others, self.heavy) + newest
        self.scores = {j: self.scores[j] for j in held}  # what is evicted loses its score
        return held


def h2o(layer, calls, budget: int = 256, heavy: float = 0.5, prompt: str = "bulk", select: str = "head"):
    return keeping(layer, in_mode(calls, prompt), lambda: HeavyHitters(budget, heavy), select)
