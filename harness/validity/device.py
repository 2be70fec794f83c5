"""Reasons that the telemetry gives: what the GPU did, and who else was on it, in the windows of a cell."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .windows import Windows

#: Beyond this share of its middle a clock has drifted.
DRIFT = 0.05
#: Slowed down by itself, for safety; hw_slowdown is the sum of its hardware reasons.
HARD = {"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"}

Found = dict[str, set[tuple[str, str]]]  # reason -> (cell, place)


def device_reasons(found: Windows) -> Found:
    """Which (cell, place) each reason holds for. Where nothing was sampled, nothing is known and nothing
    said."""
    samples = found.samples[found.samples["window"] >= 0]
    where = found.windows[["cell", "place"]].take(samples["window"]).reset_index(drop=True)
    samples = samples.reset_index(drop=True).assign(cell=where["cell"], place=where["place"])
    words = {text: set(text.split(",")) for text in samples["throttle_reasons"].dropna().unique()}

    def told(names: set[str]) -> np.ndarray:
        return (
            samples["throttle_reasons"].isin([text for text, own in words.items() if own & names]).to_numpy()
        )

    foreign = pd.to_numeric(samples["foreign_gpu_processes"]) > 0
    working = samples[~told({"gpu_idle"})]  # an idle GPU lowers its clock, and nothing is lost
    return {
        "throttled": _places(samples[told(HARD)]),
        "power_capped": _places(samples[told({"sw_power_cap"})]),
        "foreign_gpu_process": _places(samples[foreign]),
        "clock_drift": _drifted(working, "sm_clock_hz") | _drifted(working, "memory_clock_hz"),
    }


def _drifted(samples: pd.DataFrame, column: str) -> set[tuple[str, str]]:
    """Where nine tenths of the readings spread over more than DRIFT of their median: a single odd reading, at
    the edge of a window, is no drift."""
    known = samples.assign(clock=pd.to_numeric(samples[column])).dropna(subset="clock")
    if known.empty:
        return set()
    ends = known.groupby(["cell", "place"])["clock"].quantile([0.05, 0.5, 0.95]).unstack()
    return set(ends.index[(ends[0.95] - ends[0.05]) > DRIFT * ends[0.5]])


def _places(samples: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(samples["cell"], samples["place"], strict=True))
