"""Joules per token from the device's energy counter, over all windows of a cell and phase.

    counter (J)                        ┌──● 97.1
                          ┌────────────●            it moves every 20 to 100 ms, and only those points are
              ┌───────────● 60.2                    readings; between two of them power is taken as even
    ──────────● 31.5
         │prefill│   decode              │idle

The energy is that of the whole device, other processes and idle power included. A sum of windows is divided
by the tokens of the same executions, and only if it means something:

- together the windows last 1 s or longer, and the counter moved 10 times or more within them: a counter read
  at its own pace is off by up to one step at each end (zeus warns below 100 ms);
- it moved twice or more per window: interleaved neighbours draw another power, and an edge that falls between
  two readings takes half of theirs;
- it never ran backwards (another driver, a reboot), and it did not fall silent.

Otherwise the value is NaN and the message says why.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .windows import Windows

#: Seconds and counter steps of all windows together, and steps of one on average.
LEAST_S, LEAST_STEPS, LEAST_STEPS_EACH = 1.0, 10, 2

#: A counter that was not read for so many sample intervals is silent.
PATIENCE = 5

#: metric -> the phases that it is of, and the metric that counts their tokens
ENERGY = {
    "prefill_j_per_token": {"prefill": "prompt_tokens"},
    "decode_j_per_token": {"decode": "new_tokens", "generate": "continuation_tokens"},
}
CPU_JOB = "A job on the CPU: no GPU, and so no energy counter, was sampled."
NOT_SAMPLED = "No GPU was sampled."
NO_COUNTER = "The device has no energy counter, or does not let us read it."
LOST = "The energy counter fell silent: the device was lost, or its sampling ended."
BACKWARDS = "The energy counter ran backwards."
NO_TOKENS = "The rows do not say how many tokens were processed."


@dataclass(frozen=True)
class Counter:
    """One job's energy counter: where it moved, and of every reading how often it had run backwards, and how
    often it had been silent, until then."""

    t_s: np.ndarray
    energy_j: np.ndarray
    read_s: np.ndarray
    backwards: np.ndarray
    silent: np.ndarray
    patience_s: float


def counters(samples: pd.DataFrame) -> dict[str, Counter]:
    """The counter of every job that has one."""
    found = {}
    known = samples.assign(energy_j=pd.to_numeric(samples["energy_j"])).dropna(subset="energy_j")
    for job, own in known.groupby("job"):
        energy_j, t_s = own["energy_j"].to_numpy(), own["t_s"].to_numpy()
        step = np.diff(energy_j, prepend=np.nan)  # the first reading is a point, too
        moved, pause_s = step != 0, np.diff(t_s, prepend=t_s[0])
        patience_s = PATIENCE * float(np.median(pause_s))
        silent, backwards = np.cumsum(pause_s > patience_s), np.cumsum(step < 0)
        found[str(job)] = Counter(t_s[moved], energy_j[moved], t_s, backwards, silent, patience_s)
    return found


def joules(windows: pd.DataFrame, counter: Counter) -> tuple[float, str | None]:
    """Joules within some windows of one job, or NaN and a sentence."""
    begin_s, end_s = windows["begin_s"].to_numpy(), windows["end_s"].to_numpy()
    read_s = counter.read_s
    low = np.maximum(np.searchsorted(read_s, begin_s, "right") - 1, 0)
    high = np.minimum(np.searchsorted(read_s, end_s), len(read_s) - 1)
    if (counter.backwards[high] > counter.backwards[low]).any():
        return np.nan, BACKWARDS
    outside = begin_s.min() < read_s[0] or end_s.max() > read_s[-1] + counter.patience_s
    if outside or (counter.silent[high] > counter.silent[low]).any():
        return np.nan, LOST
    first, last = np.searchsorted(counter.t_s, begin_s), np.searchsorted(counter.t_s, end_s, "right")
    total_s, steps = float((end_s - begin_s).sum()), int((last - first).sum())
    if total_s < LEAST_S or steps < max(LEAST_STEPS, LEAST_STEPS_EACH * len(windows)):
        times = f"{len(windows):,} {'window' if len(windows) == 1 else 'windows'}"
        return np.nan, (
            f"The windows are too short for the energy counter: {times} of {total_s:.3g} s together, in "
            f"which it moved {steps:,} times (asked for: {LEAST_S:g} s, {LEAST_STEPS} moves, "
            f"{LEAST_STEPS_EACH} in each)."
        )
    spent = np.interp(end_s, counter.t_s, counter.energy_j) - np.interp(
        begin_s, counter.t_s, counter.energy_j
    )
    return float(spent.sum()), None


def energy(found: Windows, tokens: pd.DataFrame, device: pd.Series, num: pd.Series) -> pd.DataFrame:
    """(cell, metric, phase, value, message) for every cell and phase that fed tokens.

    `tokens`: (cell, metric, phase, tokens), summed over the executions of the rows; `device` and `num`
    executions by cell.
    """
    by_job = counters(found.samples)
    sampled = set(found.samples.loc[found.samples["source"] == "nvml", "job"])
    windows = dict(iter(found.windows.groupby(["cell", "phase"], sort=False)))
    lines = []
    for line in tokens.itertuples(index=False):
        own = windows.get((line.cell, line.phase))
        value, message = _energy(own, line.tokens, device[line.cell], num[line.cell], by_job, sampled)
        lines.append((line.cell, line.metric, line.phase, value, message))
    return pd.DataFrame(lines, columns=["cell", "metric", "phase", "value", "message"])


def _energy(
    windows: pd.DataFrame | None,
    tokens: float,
    device: str,
    num: int,
    by_job: dict[str, Counter],
    sampled: set[str],
) -> tuple[float, str | None]:
    """Joules per token of one cell and phase, or NaN and why."""
    if str(device).split(":")[0] == "cpu":
        return np.nan, CPU_JOB
    if windows is None:
        return np.nan, NOT_SAMPLED
    jobs = list(windows["job"].unique())
    if not sampled & set(jobs):
        return np.nan, NOT_SAMPLED
    if not by_job.keys() & set(jobs):
        return np.nan, NO_COUNTER
    if len(windows) != num:
        return np.nan, f"The telemetry has whole marks of {len(windows):,} of {num:,} executions."
    if not tokens > 0:
        return np.nan, NO_TOKENS
    spent_j, message = joules(windows, by_job[jobs[0]])
    return spent_j / tokens, message
