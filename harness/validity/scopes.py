"""Which kind of number a row holds: a reason concerns kinds, and touches no other.

time       seconds and rates of a clock
cpu_time   CPU seconds of our own process
made       of times (rates, utilisation, distance to the floor): as good as those of its cell are
energy     joules
nvml       memory as the driver counts it, others' included
peak       the highest memory of a window: allocator, or resident set
cache      bytes of the live cache
score      what a suite marked
other      counted facts: tokens, weights, evictions
none       predictions, failures, and what was only asked for: nothing was measured, nothing is judged
"""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Made of other metrics' times.
MADE_OF = {
    "prefill_tokens_per_s": ("prefill_s",),
    "decode_tokens_per_s": ("decode_step_s",),
    "e2e_tokens_per_s": ("prefill_s", "decode_step_s"),
    "prefill_plus_1024_tokens_per_s": ("prefill_s", "decode_step_s"),
}
#: Made of device time, or of CPU time on a CPU with one thread (harness.roofline).
UTILISATION = {
    "prefill_mfu": ("prefill_s", "prefill_cpu_s"),
    "prefill_over_floor": ("prefill_s", "prefill_cpu_s"),
    "decode_mbu": ("decode_step_s", "decode_step_cpu_s"),
    "decode_over_floor": ("decode_step_s", "decode_step_cpu_s"),
}
#: Stated, not measured.
STATED = {"failure", "new_tokens_asked", "prefill_floor_s", "decode_floor_s"}
LAUNCH = {"prefill_launch_share", "decode_launch_share"}
CACHE = {"cache_bytes_live", "cache_payload_bytes", "cache_metadata_bytes", "cache_state_bytes"}

#: Where a number was taken: its window is that of the phase.
PLACES = ("prefill", "continuation", "elsewhere")
_CONTINUATIONS = {"decode", "score", "generate", "continuation"}


def sources_of(metric: str, device: str | None, threads: float | None) -> tuple[str, ...]:
    """The metrics whose times a number is made of; none for one that is measured."""
    if metric in UTILISATION:
        return (UTILISATION[metric][device == "cpu" and threads == 1],)
    return MADE_OF.get(metric, ())


def scope_of(metric: str, unit: str, phase: str | None, status: str) -> str:
    """The kind of one row; see the module."""
    if status != "ok" or phase == "predicted" or metric in STATED:
        return "none"
    if metric in MADE_OF or metric in UTILISATION:
        return "made"
    if metric in LAUNCH:
        return "time"
    if metric.endswith("_cpu_s"):
        return "cpu_time"
    if metric.startswith("nvml_delta_"):
        return "nvml"
    if metric.startswith("peak_"):
        return "peak"
    if metric in CACHE:
        return "cache"
    if unit in ("s", "tokens/s"):
        return "time"
    if unit == "J/token":
        return "energy"
    return "score" if phase == "score" else "other"


def scopes(rows: pd.DataFrame) -> np.ndarray:
    """The kind of every row, an array of words."""
    return _by_kind(rows, ["metric", "unit", "phase", "status"], scope_of)


def places(rows: pd.DataFrame) -> np.ndarray:
    """Of every row, which of PLACES."""

    def place(phase: str | None) -> str:
        return "prefill" if phase == "prefill" else place_of(phase)

    return _by_kind(rows, ["phase"], place)


def place_of(phase: str | None) -> str:
    """The place of a phase's name."""
    if phase == "prefill":
        return "prefill"
    return "continuation" if phase in _CONTINUATIONS else "elsewhere"


def _by_kind(rows: pd.DataFrame, columns: list[str], name) -> np.ndarray:
    """`name(*columns)` per row, asked once for each different one."""
    kinds = rows.groupby(columns, dropna=False, sort=False)
    found = [name(*(None if pd.isna(word) else word for word in _tuple(key))) for key, _ in kinds]
    return np.array(found, dtype=object)[kinds.ngroup().to_numpy()]


def _tuple(key: object) -> tuple:
    return key if isinstance(key, tuple) else (key,)
