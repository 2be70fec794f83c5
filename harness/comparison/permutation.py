"""The exact test behind FAST and SLOW: are two handfuls of processes of one kind?

If base and head were the same code, every split of the n + m process medians into n and m would have been
as likely as the one we saw. The statistic is the rank sum (Wilcoxon, Mann and Whitney): one slow process,
however slow, costs a few ranks. Its distribution over all C(n + m, n) splits is counted, not approximated,
ties included.

    smallest two-sided p    n = m = 5: 0.0079    6: 0.0022    7: 0.00058    8: 0.00016    9: 0.00004

Interleaved runs (ABBA) are tested in this way, too, and not in pairs: swapping sides within eight pairs
makes 256 arrangements, and a p of 2 / 256 can never survive Holm over a page of cells. Drift that both sides
of a pair share widens both sides alike here: that costs power, not false alarms.

The effect is Hodges and Lehmann's: the median of all n·m ratios head / base. Its interval is the same test
turned round: every ratio by which head can be divided without the test noticing.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

TEST = "exact rank-sum test over process medians"


def smallest_p(num_base: int, num_head: int) -> float:
    """The smallest two-sided p that so many processes can reach, 1 without any on a side."""
    return min(1.0, 2 / math.comb(num_base + num_head, num_base))


def replicates_for(num_tests: int, alpha: float) -> int:
    """Processes per side with which one of `num_tests` latencies can be significant under Holm."""
    return next(n for n in range(1, 200) if smallest_p(n, n) * max(num_tests, 1) <= alpha)


def doubled_ranks(values: np.ndarray) -> np.ndarray:
    """Midranks of values (..., N) along the last axis, times two: whole numbers, ties included."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    alike = (values[..., None, :] == values[..., :, None]).sum(-1)
    return 2 * below + alike + 1


@lru_cache(maxsize=256)
def rank_sum_p(ranks: tuple[int, ...], num_base: int) -> np.ndarray:
    """Two-sided p for every possible sum of `num_base` of these doubled ranks, indexed by the sum.

    Counted by adding one rank after the other: `counts[k, s]` is how many ways k of them sum to s.
    """
    total = sum(ranks)
    counts = np.zeros((num_base + 1, total + 1))
    counts[0, 0] = 1
    for rank in ranks:
        counts[1:, rank:] += counts[:-1, : total + 1 - rank].copy()
    ways = counts[num_base]
    # A sum is as far out as another at the same distance on the other side; twice it all stays whole.
    distance = np.abs(2 * np.arange(total + 1) - 2 * total * num_base // len(ranks))
    farthest_first = np.zeros(distance.max() + 1)
    np.add.at(farthest_first, distance, ways)
    tail = farthest_first[::-1].cumsum()[::-1]
    return np.minimum(tail[distance] / ways.sum(), 1.0)


def exact_p(base: np.ndarray, head: np.ndarray) -> float:
    """Two-sided p that base (n) and head (m) are of one kind; 1 where a side is empty."""
    if not len(base) or not len(head):
        return 1.0
    ranks = doubled_ranks(np.concatenate([base, head]))
    table = rank_sum_p(tuple(sorted(ranks.tolist())), len(base))
    return float(table[ranks[: len(base)].sum()])


@lru_cache(maxsize=256)
def interval_rank(num_base: int, num_head: int, alpha: float = 0.05) -> int:
    """Which of the n·m sorted ratios, counted from 1, ends the (1 - alpha) interval; 0: none can."""
    if not num_base or not num_head:
        return 0
    ranks = tuple(range(2, 2 * (num_base + num_head) + 1, 2))
    table = rank_sum_p(ranks, num_base)
    least = num_base * (num_base + 1)  # the doubled rank sum of a base that is all below head
    inside = (u for u in range(num_base * num_head + 1) if table[least + 2 * u] > alpha)
    return next(inside)


def effect(base: np.ndarray, head: np.ndarray) -> tuple[float, float, float]:
    """Hodges-Lehmann ratio head / base - 1 and its exact 95 % interval; NaN ends where too few processes."""
    ratios = np.sort(np.subtract.outer(np.log(head), np.log(base)).ravel())
    rank = interval_rank(len(base), len(head))
    low, high = (ratios[rank - 1], ratios[-rank]) if rank else (math.nan, math.nan)
    middle = float(np.median(ratios))
    return math.expm1(middle), math.expm1(low), math.expm1(high)


def holm(ps: list[float]) -> list[float]:
    """Holm's step-down correction (1979): family-wise, whatever depends on whatever."""
    adjusted, worst = [1.0] * len(ps), 0.0
    for turn, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - turn) * ps[index]))
        adjusted[index] = worst
    return adjusted
