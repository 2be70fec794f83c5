"""Intervals that the report and the comparison share; numpy only.

    wilson    a share of hits in trials
    student   a number made from sums over cases, jackknifed: ratios such as bits per byte, and differences

and the two-sided p values that go with them: `normal_p`, `student_p`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

#: Student's t, two-sided 95 %, by degrees of freedom 1..10.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Z95 = 1.959964
#: Below so many pairs nothing is called a difference.
FEW_PAIRS = 3
NO_INTERVAL = (math.nan, math.nan)


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `hits` in `trials`; (nan, nan) without trials."""
    if trials == 0:
        return math.nan, math.nan
    share, z2 = hits / trials, Z95**2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def t95(freedom: int) -> float:
    """Student's two-sided 95 % point; above ten degrees of freedom its expansion in 1/ν, exact to 0.0002."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z, v = Z95, 4 * freedom
    terms = (z, z**3 + z, (5 * z**5 + 16 * z**3 + 3 * z) / 6, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 6)
    return sum(term / v**power for power, term in enumerate(terms))


def student(columns_NK: np.ndarray, number: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % t-interval, N - 1 degrees of freedom, of a number made from sums over N cases.

    The standard error is the jackknife's: each case is left out once (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 11; about the whole number and not about the mean of the N). For a
    difference of ratios with cases of one size this is the paired t-interval. (nan, nan) below three cases.

    How often two policies that are equal would be called different (20,000 simulated runs of N books, normal
    differences; ± 0.2 %), and how often by the percentile bootstrap (4,000 runs, at 68 books 1,000):

        N books                         4       5       8      12      68
        of one size                 4.9 %   5.0 %   4.8 %   5.0 %   4.9 %
        sizes log-normal, σ = 0.5   5.8 %   6.3 %   6.4 %   5.7 %   5.2 %
        sizes log-normal, σ = 1     8.1 %   8.7 %   8.5 %   8.0 %   6.0 %
        bootstrap, of one size     19.1 %  16.3 %  11.4 %   8.7 %   4.8 %
    """
    n = len(columns_NK)
    if n < FEW_PAIRS:
        return NO_INTERVAL
    total_K = columns_NK.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, without_N = number(total_K), number((total_K - columns_NK).T)
    if not (math.isfinite(whole) and np.isfinite(without_N).all()):  # nothing was left to divide by
        return NO_INTERVAL
    half = t95(n - 1) * math.sqrt((n - 1) / n * ((without_N - whole) ** 2).sum())
    return float(whole - half), float(whole + half)


def excludes_zero(ends: tuple[float, float]) -> bool:
    """Whether an interval of a difference says that there is one; no interval says nothing."""
    return ends[0] > 0 or ends[1] < 0


def normal_p(z: float) -> float:
    """Two-sided p of a standard normal deviate."""
    return math.erfc(abs(z) / math.sqrt(2))


def student_p(t: float, freedom: int) -> float:
    """Two-sided p of Student's t, whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 4)."""
    if math.isinf(t):
        return 0.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(1, (freedom - odd) // 2):
        term *= square * (2 * step / (2 * step + 1) if odd else (2 * step - 1) / (2 * step))
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(max(1 - inside, 0.0), 1.0)
