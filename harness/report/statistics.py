"""The few statistics of the page, and what it calls a difference.

    latency     median, interquartile range; decode as the mean over the steps of each repeat, so that
                a policy that works in bursts pays for its bursts
    needle      hits / trials with Wilson's 95 % interval (sane at 0 and 100 %, unlike ± 1.96 σ)
    language    Σ nll / Σ count over the texts, never a mean of per-text values; two architectures
                differ where the paired 95 % t-interval over the texts excludes 0
    intervals   percentile bootstrap over books or examples, never over tokens or pieces of a book; a
                difference is resampled over the cases that both have. Seeded: always the same

Repeats (one process) and replicates (processes) are not the same kind of sample: where there are
several replicates, each is first reduced to its median.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Student's t, two-sided 95 %, by degrees of freedom 1..10; above ten, ten's is used (wider, never narrower).
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
Z95 = 1.959964
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


def paired_difference_is_real(first: dict[str, float], second: dict[str, float]) -> bool:
    """Whether the mean difference over the cases both have excludes 0; False below three cases."""
    differences = np.array([first[case] - second[case] for case in sorted(first.keys() & second.keys())])
    n = len(differences)
    if n < 3:
        return False
    half = T95[min(n - 1, len(T95)) - 1] * differences.std(ddof=1) / math.sqrt(n)
    return bool(abs(differences.mean()) > half)


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


def language_totals(cases: pd.DataFrame) -> dict[str, float]:
    """Bits per byte and perplexities from per-case sums (columns nll_nats, num_bytes, …): Σ / Σ."""
    totals = cases.reindex(columns=list(LANGUAGE_COUNTS)).sum(min_count=1)
    nll = totals["nll_nats"]
    return {
        "bits_per_byte": _per(nll / math.log(2), totals["num_bytes"]),
        "token_ppl": _exp(_per(nll, totals["num_tokens"])),
        "word_ppl": _exp(_per(nll, totals["num_words"])),
        **totals.to_dict(),
    }


def _per(total: float, count: float) -> float:
    """NaN where there was nothing to count: a text may be shorter than a word."""
    return total / count if count else math.nan


def _exp(nats: float) -> float:
    """e**nats; infinite where a hopeless model leaves the range of floats."""
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf
