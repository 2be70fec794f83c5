"""How often do the 95 % intervals of a comparison hold the truth? Simulated, with its own functions.

    python tests/simulations/interval_coverage.py

    latency    the effect (Hodges-Lehmann, the exact test turned round), processes as in gate_noise.py
    shares     Newcombe's paired interval: pairs of hits with correlation, small and large rates
    means      Student's t over paired differences of skewed scores (ROUGE-like)
    ratios     bits per byte of texts of different sizes, jackknifed

What it printed (4,000 runs each; ± 0.7 %), and a test draws with fewer:

    latency, 5 processes a side       96.7 to 97.1 %    the exact interval of so few can only be too wide
    latency, 8 or 16 processes        94.5 to 95.6 %    at 0.5, 2 and 4 % noise, slow repeats or processes
    shares, 10 / 40 / 150 cases       98.0 to 100 / 95.5 to 100 / 95.5 to 98.3 %    rates 0.5 to 0.99
    means, 5 / 10 / 40 cases          98.2 / 96.8 / 95.8 %
    ratios, texts of one size         94.7 to 95.2 %    4, 8 and 68 texts
    ratios, log-normal sizes, sd 1    91.6 / 92.5 / 94.4 %    4 / 8 / 68 texts
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from gate_noise import measured, times

from harness.comparison.pairs import newcombe
from harness.comparison.quality import difference

RUNS, SEED = 4000, 11


def latency(noise: float, outliers: str, processes: int, runs: int = RUNS) -> float:
    """Coverage of the effect of a 7 % slower head."""
    numbers = np.random.default_rng([SEED, round(noise * 1e4), processes])
    need = -(-processes // 8)
    sides = [
        np.concatenate([times(numbers, (runs,), noise, outliers) for _ in range(need)], axis=-1)[
            :, :processes
        ]
        for _ in range(2)
    ]
    _, low, high, _ = measured(sides[0], 1.07 * sides[1])
    return float(((low <= 0.07) & (high >= 0.07)).mean())


def shares(cases: int, base: float, head: float, runs: int = RUNS) -> float:
    """Coverage of the difference of two rates of the same cases, of which half share their luck."""
    numbers = np.random.default_rng([SEED, cases, round(100 * base), round(100 * head)])
    luck, own = numbers.random((runs, cases)), numbers.random((runs, cases))
    before = luck < base
    after = np.where(numbers.random((runs, cases)) < 0.5, luck, own) < head
    inside = 0
    for one, other in zip(before, after, strict=True):
        low, high = newcombe(
            int((one & other).sum()), int((one & ~other).sum()), int((~one & other).sum()), cases
        )
        inside += low <= head - base <= high
    return inside / runs


def means(cases: int, runs: int = RUNS) -> float:
    """Coverage of the mean difference of scores that are mostly small (beta 1, 6), head 0.02 lower."""
    numbers = np.random.default_rng([SEED, cases])
    inside = 0
    for _ in range(runs):
        base = numbers.beta(1, 6, cases)
        head = base - 0.02 + numbers.normal(0, 0.05, cases) * base / base.mean()
        found = difference(pd.DataFrame({"value": base}), pd.DataFrame({"value": head}))
        inside += found.low <= -0.02 <= found.high
    return inside / runs


def ratios(texts: int, spread: float, runs: int = RUNS) -> float:
    """Coverage of a difference of 0.01 bits per byte between texts of log-normal sizes."""
    numbers = np.random.default_rng([SEED, texts, round(10 * spread)])
    inside = 0
    for _ in range(runs):
        sizes = np.exp(numbers.normal(8, spread, texts))
        bits = numbers.normal(2.3, 0.3, texts)
        worse = bits + 0.01 + numbers.normal(0, 0.01, texts)
        one, other = (pd.DataFrame({"value": b * sizes * np.log(2), "count": sizes}) for b in (bits, worse))
        found = difference(one, other)
        inside += found.low <= 0.01 <= found.high
    return inside / runs


def lines(runs: int = RUNS) -> dict[str, float]:
    """Every simulated case and its coverage."""
    found = {}
    for noise in (0.005, 0.02, 0.04):
        for outliers in ("repeats", "processes"):
            for processes in (5, 8, 16):
                name = f"latency, noise {100 * noise:g} %, slow {outliers}, {processes} processes"
                found[name] = latency(noise, outliers, processes, runs)
    for cases in (10, 40, 150):
        for base, head in ((0.5, 0.5), (0.9, 0.8), (0.99, 0.97)):
            found[f"shares, {cases} cases, {base} and {head}"] = shares(cases, base, head, runs)
    found |= {f"means, {cases} cases": means(cases, runs) for cases in (5, 10, 40)}
    for texts in (4, 8, 68):
        for spread in (0.0, 1.0):
            found[f"ratios, {texts} texts, sd of log size {spread}"] = ratios(texts, spread, runs)
    return found


if __name__ == "__main__":
    for name, share in lines().items():
        print(f"{100 * share:5.1f} %  {name}")
