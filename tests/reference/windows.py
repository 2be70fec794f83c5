"""Policies that look at positions only: the full cache, a window with sinks, StreamingLLM."""

from __future__ import annotations

from .keeping import Keeper, keeping, steps


class Everything(Keeper):
    def keep(self, t, held):
        return held


class SinksAndNewest(Keeper):
    """The first `sinks` tokens of the sequence and the newest, `budget` in all."""

    def __init__(self, budget: int, sinks: int) -> None:
        self.budget, self.sinks = budget, sinks

    def keep(self, t, held):
        return [j for j in held if j < self.sinks or j > t - (self.budget - self.sinks)]


class Renumbered(SinksAndNewest):
    """StreamingLLM: at every step the visible keys stand at 0, 1, 2, ..., the query at the last of them."""

    def places(self, seen):
        return {j: slot for slot, j in enumerate(seen)}


def transformer(layer, calls):
    return keeping(layer, calls, Everything)


def window(layer, calls, budget: int = 256, sinks: int = 4):
    """Original positions; token by token, so cuts into calls make no difference."""
    return keeping(layer, steps(calls), lambda: SinksAndNewest(budget, sinks))


def streaming(layer, calls, budget: int = 256, sinks: int = 4):
    """arXiv 2309.17453 section 3.2: positions within the cache instead of those in the text."""
    return keeping(layer, steps(calls), lambda: Renumbered(budget, sinks))
