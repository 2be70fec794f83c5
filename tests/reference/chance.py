"""The random control: a hash of seed, layer, step and position decides, here in Python's integers."""

from __future__ import annotations

from .keeping import Keeper, keeping, steps, top


def signed(x: int) -> int:
    """The lowest 64 bits as a two's complement number."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def mixed(x: int) -> int:
    """The finaliser of splitmix64 on signed numbers, whose right shift repeats the sign."""
    x = signed((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9)
    x = signed((x ^ (x >> 27)) * 0x94D049BB133111EB)
    return signed(x ^ (x >> 31))


class Chance(Keeper):
    """Keeps the `budget` positions with the largest draws of this step."""

    def __init__(self, budget: int, seed: int, layer: int) -> None:
        self.budget, self.seed, self.layer = budget, seed, layer

    def keep(self, t, held):
        step = mixed(signed(self.seed + self.layer * 0x1B873593 + t * 0x2545F4914F6CDD1D))
        draws = {j: mixed(signed(step + j)) >> 11 for j in held}
        return top(draws, self.budget) if len(held) > self.budget else held


def chance(layer, calls, budget: int = 256, seed: int = 0):
    return keeping(layer, steps(calls), lambda: Chance(budget, seed, layer.index))
