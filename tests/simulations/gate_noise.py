"""How often does the gate cry wolf, and how often does it see the wolf? Simulated, with its own rules.

    python tests/simulations/gate_noise.py --out results/reference/gate-noise.csv      (some minutes)
    python tests/simulations/gate_noise.py --table results/reference/gate-noise.csv    (README's table)

A run is 40 cells with two latencies each, 8 processes per side, 5 repeats per process. A repeat is

    its cell's time x (1 + change) x process (log-normal, sd `noise`) x repeat (log-normal, sd 1 %)

and one in twenty is slow, by 20 to 50 %: single repeats, or, which is harsher, whole processes. Latencies are
independent here; in a real run cells share processes, which makes alarms come together and runs with one
rarer. What is undecided is measured once more, with its cell's other latency, and all processes count.

The verdicts are those of harness.comparison: `verdicts` is `judge`, `holm` and `verdict` for many runs at
once, and a test holds it to them.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np

from harness.comparison.permutation import interval_rank, rank_sum_p
from harness.comparison.rules import Rules

RULES = Rules(looks=2)
CELLS, LATENCIES_PER_CELL, PROCESSES, REPEATS = 40, 2, 8, 5
WITHIN_SD, SLOW_SHARE, SLOW_BY = 0.01, 0.05, (0.2, 0.5)
NOISES, OUTLIERS, CHANGES = (0.005, 0.02, 0.04), ("repeats", "processes"), (0.0, 0.05, 0.10, 0.15)
RUNS, AT_ONCE, SEED = 5000, 250, 6
SAME, AMBIGUOUS, FAST, SLOW = range(4)


def times(numbers: np.random.Generator, shape: tuple[int, ...], noise: float, outliers: str) -> np.ndarray:
    """Process medians (*shape, PROCESSES) of identical code that takes one second."""
    process = numbers.normal(0, noise, (*shape, PROCESSES, 1))
    repeats = process + numbers.normal(0, WITHIN_SD, (*shape, PROCESSES, REPEATS))
    which = repeats.shape if outliers == "repeats" else process.shape
    slow = numbers.random(which) < SLOW_SHARE
    repeats += slow * np.log1p(numbers.uniform(*SLOW_BY, which))
    return np.exp(np.median(repeats, axis=-1))


def measured(base: np.ndarray, head: np.ndarray) -> tuple[np.ndarray, ...]:
    """Effect, its interval and p of each latency: base (..., N), head (..., M), no ties."""
    n, m = base.shape[-1], head.shape[-1]
    logs = np.log(np.concatenate([base, head], axis=-1))
    ranks = logs.argsort(axis=-1).argsort(axis=-1)[..., :n] + 1
    p = rank_sum_p(tuple(range(2, 2 * (n + m) + 1, 2)), n)[2 * ranks.sum(-1)]
    ratios = logs[..., None, n:] - logs[..., :n, None]
    ratios = np.sort(ratios.reshape(*base.shape[:-1], n * m), axis=-1)
    rank = interval_rank(n, m)
    middle = np.median(ratios, axis=-1)
    return np.expm1(middle), np.expm1(ratios[..., rank - 1]), np.expm1(ratios[..., -rank]), p


def verdicts(effect: np.ndarray, low: np.ndarray, high: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Verdicts of (runs, latencies), Holm over each run."""
    order = p.argsort(axis=-1)
    left = np.arange(p.shape[-1], 0, -1)
    stepped = np.maximum.accumulate(np.minimum(np.take_along_axis(p, order, -1) * left, 1), axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, stepped, -1)
    sure, up = adjusted <= RULES.alpha_per_look, 1 + RULES.threshold
    slow, fast = sure & (1 + effect > up), sure & ((1 + effect) * up < 1)
    same = (1 + high <= up) & ((1 + low) * up >= 1)
    return np.select([slow, fast, same], [SLOW, FAST, SAME], AMBIGUOUS)


def looked(numbers: np.random.Generator, runs: int, noise: float, outliers: str, change: float) -> np.ndarray:
    """Verdicts (2 looks, runs, latencies); in each run the first latency alone has changed."""
    latencies = CELLS * LATENCIES_PER_CELL
    factor = np.ones((latencies, 1))
    factor[0] += change

    def both() -> tuple[np.ndarray, np.ndarray]:
        base = times(numbers, (runs, latencies), noise, outliers)
        return base, factor * times(numbers, (runs, latencies), noise, outliers)

    base, head = both()
    found = measured(base, head)
    first = verdicts(*found)
    cells = (first == AMBIGUOUS).reshape(runs, CELLS, LATENCIES_PER_CELL).any(-1)
    again = np.repeat(cells, LATENCIES_PER_CELL, axis=-1)
    more = both()
    pooled = [np.concatenate([old, new], axis=-1)[again] for old, new in zip((base, head), more, strict=True)]
    for values, better in zip(found, measured(*pooled), strict=True):
        values[again] = better
    return np.stack([first, verdicts(*found)])


def simulate(noise: float, outliers: str, change: float, runs: int = RUNS) -> dict[str, float | str | int]:
    """One line of the table: shares of runs with a false alarm, of changes found, of what stays undecided."""
    seed = [SEED, round(1e4 * noise), OUTLIERS.index(outliers), round(1e4 * change)]
    numbers = np.random.default_rng(seed)
    found = np.concatenate(
        [looked(numbers, min(AT_ONCE, runs - at), noise, outliers, change) for at in range(0, runs, AT_ONCE)],
        axis=1,
    )
    same, changed = (found if not change else found[..., 1:]), found[..., 0]
    line: dict[str, float | str | int] = {"noise_sd": noise, "outliers": outliers, "change": change}
    line |= {"cells": CELLS, "latencies": CELLS * LATENCIES_PER_CELL, "processes": PROCESSES, "runs": runs}
    for look, name in enumerate(("first", "second")):
        line[f"false_alarm_runs_{name}"] = float((same[look] == SLOW).any(-1).mean())
        line[f"ambiguous_{name}"] = float((same[look] == AMBIGUOUS).mean())
        line[f"found_{name}"] = float((changed[look] == SLOW).mean()) if change else math.nan
    return line


def table(path: Path) -> str:
    """The Markdown table of README from the committed numbers."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))

    def share(value: str) -> str:
        return f"{100 * float(value):.1f} %"

    out = [
        "| noise between processes | slow by 20–50 % | runs with a false alarm | +10 % found, first set "
        "| +10 % found | +15 % found | undecided, first set | undecided |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for noise in NOISES:
        for outliers in OUTLIERS:
            by = {
                float(line["change"]): line
                for line in lines
                if float(line["noise_sd"]) == noise and line["outliers"] == outliers
            }
            same, ten, fifteen = by[0.0], by[0.10], by[0.15]
            cells = [
                *(f"{100 * noise:g} %", f"5 % of {outliers}", share(same["false_alarm_runs_second"])),
                *(share(ten["found_first"]), share(ten["found_second"]), share(fifteen["found_second"])),
                *(share(same["ambiguous_first"]), share(same["ambiguous_second"])),
            ]
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the gate on noise.")
    parser.add_argument("--out", type=Path, help="write the numbers there")
    parser.add_argument("--table", type=Path, help="print the Markdown table of these numbers")
    parser.add_argument("--runs", type=int, default=RUNS)
    asked = parser.parse_args()
    if asked.table:
        print(table(asked.table), end="")
        return
    lines = [
        simulate(noise, outliers, change, asked.runs)
        for noise in NOISES
        for outliers in OUTLIERS
        for change in CHANGES
    ]
    if asked.out:
        with asked.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    for line in lines:
        print(line)


if __name__ == "__main__":
    main()
