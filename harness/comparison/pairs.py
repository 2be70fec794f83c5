"""Two answers to the same question: tests and intervals for paired cases."""

from __future__ import annotations

import math

from ..statistics import FEW_PAIRS, student_p, t95, wilson


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided exact p of McNemar's test: were cases that changed as likely to be lost as won? (1947)"""
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**changed)


def newcombe(both: int, lost: int, won: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference head - base of two shares of the same n cases; (nan, nan) without any.

    `both` cases are right on both sides, `lost` in base only, `won` in head only. Method 10 of Newcombe,
    Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17, 1998: Wilson's intervals of both shares, joined with their correlation.
    """
    if not n:
        return math.nan, math.nan
    neither = n - both - lost - won
    base, head = (both + lost) / n, (both + won) / n
    (base_low, base_high), (head_low, head_high) = wilson(both + lost, n), wilson(both + won, n)
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    cross = both * neither - lost * won
    if cross > 0:  # his correction for continuity
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def half(own: float, its: float) -> float:
        return math.sqrt(max(own**2 - 2 * phi * own * its + its**2, 0.0))

    change = head - base
    low = change - half(head - head_low, base_high - base)
    high = change + half(head_high - head, base - base_low)
    return low, high


def paired_p(change: float, interval: tuple[float, float], n: int) -> float:
    """Two-sided p of Student's t that goes with a 95 % `student` interval over n cases; 1 without one."""
    if n < FEW_PAIRS or math.isnan(interval[0]):
        return 1.0
    error = (interval[1] - interval[0]) / 2 / t95(n - 1)
    if error == 0:  # all differences are alike, and Student's t knows no spread: the sign test does
        return 2.0 ** (1 - n) if change else 1.0
    return student_p(change / error, n - 1)
