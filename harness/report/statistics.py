"""The few statistics of the page, and what it calls a difference.

    latency     median, interquartile range; decode as the mean over the steps of each repeat, so that
                a policy that works in bursts pays for its bursts
    needle      hits / trials with Wilson's 95 % interval (sane at 0 and 100 %, unlike ± 1.96 σ)
    language    Σ nll / Σ count over the texts, never a mean of per-text values
    intervals   of one number the percentile bootstrap over books or examples, never over tokens or pieces
                of a book. Seeded: always the same
    differences of bits per byte: Student's t over the books that both have, in pairs (`student`). Two
                architectures differ where that interval excludes 0. Those of SCROLLS's gold answers are
                bootstrapped, and none of them is called a difference

Repeats (one process) and replicates (processes) are not the same kind of sample: where there are
several replicates, each is first reduced to its median.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Student's t, two-sided 95 %, by degrees of freedom 1..10.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Z95 = 1.959964
#: Below so many pairs nothing is called a difference.
FEW_PAIRS = 3
#: Resamples of a bootstrap interval.
RESAMPLES = 2000
#: With fewer cases than this a bootstrap interval means little: it cannot leave what it has seen.
FEW_CASES = 5
NO_INTERVAL = (math.nan, math.nan)


#: What is counted of a text that is scored.
LANGUAGE_COUNTS = ("nll_nats", "num_bytes", "num_tokens", "num_words")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `n` samples."""

    median: float
    q1: float
    q3: float
    n: int


def spread(rows: pd.DataFrame) -> Spread:
    """Median and quartiles of rows with the columns value, repeat, replicate (see the module's text)."""
    by_repeat = rows.groupby(["replicate", "repeat"], dropna=False)["value"].mean()
    by_replicate = by_repeat.groupby("replicate", dropna=False).median()
    samples = by_replicate if len(by_replicate) > 1 else by_repeat
    q1, median, q3 = np.quantile(samples.to_numpy(dtype=float), [0.25, 0.5, 0.75])
    return Spread(float(median), float(q1), float(q3), len(samples))


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


def bootstrap(columns_NK: np.ndarray, number: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % percentile interval of a number made from sums over N cases; (nan, nan) below two cases.

    `columns_NK` has a row per case; `number` turns sums of its columns (K, R) into R numbers. Cases are
    drawn with replacement, R times. Seeded by nothing but N, so that equal cases give equal intervals.
    """
    n = len(columns_NK)
    if n < 2:
        return NO_INTERVAL
    drawn_RN = np.random.default_rng(n).integers(n, size=(RESAMPLES, n))
    sums_KR = np.stack([column_N[drawn_RN].sum(1) for column_N in columns_NK.T])
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers_R = number(sums_KR)
    if not np.isfinite(numbers_R).all():  # a draw in which there was nothing to divide by
        return NO_INTERVAL
    low, high = np.quantile(numbers_R, [0.025, 0.975])
    return float(low), float(high)


def complete(frame: pd.DataFrame, place: list[str]) -> pd.Series:
    """Which lines have as many cases (`n`) as any at that place; fewer are another mix of depths or books."""
    return frame["n"] == frame.groupby(place)["n"].transform("max")


def language_totals(cases: pd.DataFrame) -> dict[str, float]:
    """Bits per byte and perplexities from per-case sums (columns nll_nats, num_bytes, …): Σ / Σ."""
    totals = cases.reindex(columns=list(LANGUAGE_COUNTS)).sum(min_count=1)
    nll = totals["nll_nats"]
    return {
        "bits_per_byte": _per(nll / math.log(2), totals["num_bytes"]),
        "token_ppl": perplexity(_per(nll, totals["num_tokens"])),
        "word_ppl": perplexity(_per(nll, totals["num_words"])),
        **totals.to_dict(),
    }


def _per(total: float, count: float) -> float:
    """NaN where there was nothing to count: a text may be shorter than a word."""
    return total / count if count else math.nan


def perplexity(nats: float) -> float:
    """e**nats, of nats per token or word; infinite where a hopeless model leaves the range of floats."""
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf
