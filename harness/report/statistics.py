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

from ..statistics import FEW_PAIRS as FEW_PAIRS
from ..statistics import NO_INTERVAL as NO_INTERVAL
from ..statistics import excludes_zero as excludes_zero
from ..statistics import student as student
from ..statistics import t95 as t95
from ..statistics import wilson as wilson

#: Resamples of a bootstrap interval.
RESAMPLES = 2000
#: With fewer cases than this a bootstrap interval means little: it cannot leave what it has seen.
FEW_CASES = 5


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
    (found,) = spreads(rows.assign(all=0), ["all"]).values()
    return found


def spreads(rows: pd.DataFrame, keys: list[str]) -> dict[tuple, Spread]:
    """The same of each part of the rows that has its own values of `keys`, in their order."""
    by_repeat = rows.groupby([*keys, "replicate", "repeat"], dropna=False)["value"].mean().reset_index()
    by_replicate = by_repeat.groupby([*keys, "replicate"], dropna=False)["value"].median().reset_index()
    found = {}
    replicates = dict(list(by_replicate.groupby(keys)["value"]))
    for key, repeats in by_repeat.groupby(keys)["value"]:
        own = replicates[key]
        samples = own if len(own) > 1 else repeats
        q1, median, q3 = np.quantile(samples.to_numpy(dtype=float), [0.25, 0.5, 0.75])
        found[key] = Spread(float(median), float(q1), float(q3), len(samples))
    return found


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
