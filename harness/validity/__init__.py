"""A verdict on every measured number: valid, suspect or invalid, and why.

`judge(rows, telemetry)` fills `validity` and `validity_reasons`. Numbers of one cell and one window share
what happened in that window; a reason touches only the kinds of numbers (scopes.py) that it concerns:

    reason                 severity  holds where                                            concerns
    throttled              invalid   any sample with a slowdown for heat or power brake     time, energy
    power_capped           suspect   any sample at the power limit                          time, energy
    clock_drift            suspect   p5-p95 of the SM or memory clock > 5 % of its median,  time, energy
                                     samples of an idle GPU left out
    foreign_gpu_process    suspect   any sample with another process on the GPU             time, energy, nvml
    foreign_cpu_load       suspect   median share of foreign CPU > 10 %; CPU times: 30 %    time, cpu_time
    foreign_cpu_overload   invalid   median share of foreign CPU > 60 %                     time
    few_repeats            suspect   repeated, fewer than 3 times                           time, cpu_time
    not_warmed_up          suspect   medians of first and last third > 10 % apart, from 3   time, cpu_time
    spread                 suspect   IQR / median over repeats > 10 %, from 4               time, cpu_time
    host_bound             suspect   the device waited for launches > 90 % of a step        time, continuation
    token_counts           invalid   tokens processed are not those asked for               times, energy
    live_above_predicted   invalid   live cache > predicted cache                           cache
    not_finite             invalid   the row says so                                        score
    peak_unknown           suspect   a peak that the system did not tell (NaN)              peak

(times: time and cpu_time.)

What is made of times has all the reasons of the times in its cell that it is made of.

Sources: "Measurement conventions an expert expects" by their numbers: C.1 token counts; C.2 warm-up (first
against last third), IQR / median (the rule of torch.utils.benchmark), the host's share; C.3 clocks and
clock event reasons; C.4 memory, others' processes. The limits on foreign CPU load are ours: with 2 cores
and one thread a neighbour that takes the other core is 50 %. CPU time does not count waiting, but shares
caches and memory with the neighbour.

Not judged (None): predictions, failures, what was only asked for, and NaN: where there is no number, its
message says why. Only a peak is asked of the system each time, so its refusal is a reason. What is unknown
(no sampling, a window too short for a share of foreign load) is no reason: "valid" says that nothing that
was looked at speaks against the number. Bytes, counts and scores do not depend on how busy a machine is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import numpy as np
import pandas as pd

from . import repeats
from .device import device_reasons
from .reasons import REASONS, VERDICTS, Reason
from .scopes import places, scopes, sources_of
from .windows import Windows, executions, windows

#: What a row's message holds where logits were not finite (harness.rows).
NOT_FINITE = "logits were not finite"
_TIMES = ("time", "cpu_time")


def judge(rows: pd.DataFrame, found: Windows) -> pd.DataFrame:
    """`rows` (columns of store.Row) with `validity` and `validity_reasons` filled."""
    scope, place = scopes(rows), places(rows)
    cells = rows["cell"].to_numpy()
    metric = rows["metric"].to_numpy(dtype=object)
    times = np.isin(scope, _TIMES)

    def at(where: repeats.Places, *kinds: str) -> np.ndarray:
        return _member(cells, place, where) & np.isin(scope, kinds)

    device = device_reasons(found)
    unsteady = repeats.unsteady(rows[times])
    over = set(repeats.above_predicted(rows)["cell"])
    finite = np.isfinite(rows["value"].to_numpy())
    holds = {
        name: at(device[name], "time", "energy") for name in ("throttled", "power_capped", "clock_drift")
    } | {
        "foreign_gpu_process": at(device["foreign_gpu_process"], "time", "energy", "nvml"),
        "foreign_cpu_load": at(repeats.loaded(rows, repeats.LOAD), "time")
        & ~at(repeats.loaded(rows, repeats.OVERLOAD), "time")
        | at(repeats.loaded(rows, repeats.CPU_LOAD), "cpu_time"),
        "foreign_cpu_overload": at(repeats.loaded(rows, repeats.OVERLOAD), "time"),
        "host_bound": at(repeats.host_bound(rows), "time"),
        "token_counts": at(repeats.token_counts(rows), *_TIMES, "energy"),
        "live_above_predicted": rows["cell"].isin(over).to_numpy() & (scope == "cache"),
        "not_finite": _says(rows["message"], NOT_FINITE) & (scope == "score"),
        "peak_unknown": ~finite & (scope == "peak"),
    }
    holds |= {name: times & _member(cells, metric, where) for name, where in unsteady.items()}
    code = sum(holds[name].astype(np.int64) << bit for bit, name in enumerate(REASONS))
    code = _inherited(rows, scope == "made", code)
    return _told(rows, np.where((scope != "none") & (finite | (scope == "peak")), code, -1))


def _inherited(rows: pd.DataFrame, made: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Of numbers that are made of others, all reasons of those in their cell."""
    own: dict[tuple[str, str], int] = {}
    coded = rows.assign(code=code).loc[~made & (code > 0), ["cell", "metric", "code"]].drop_duplicates()
    for cell, metric, bits in coded.itertuples(index=False):
        own[cell, metric] = own.get((cell, metric), 0) | bits
    code = code.copy()
    columns = ["cell", "metric", "device", "threads"]
    code[made] = [
        functools.reduce(operator.or_, (own.get((cell, name), 0) for name in sources_of(*kind)), 0)
        for cell, *kind in rows.loc[made, columns].itertuples(index=False, name=None)
    ]
    return code


def _told(rows: pd.DataFrame, code: np.ndarray) -> pd.DataFrame:
    """Verdict and reasons, in the order of REASONS, of every row; a code below zero is not judged."""
    names = list(REASONS)
    kinds, number = np.unique(code, return_inverse=True)
    verdicts, reasons = [], []
    for kind in kinds:
        own = [name for bit, name in enumerate(names) if kind >= 0 and kind >> bit & 1]
        worst = max((VERDICTS.index(REASONS[name].severity) for name in own), default=0)
        verdicts.append(None if kind < 0 else VERDICTS[worst])
        reasons.append("; ".join(own) or None)
    return rows.assign(
        validity=pd.Series(np.array(verdicts, dtype=object)[number], rows.index, dtype="str"),
        validity_reasons=pd.Series(np.array(reasons, dtype=object)[number], rows.index, dtype="str"),
    )


def _member(first: np.ndarray, second: np.ndarray, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
    """Of every row, whether (first, second) is among some pairs."""
    wanted = pd.MultiIndex.from_tuples(sorted(pairs), names=["first", "second"]) if pairs else None
    if wanted is None:
        return np.zeros(len(first), dtype=bool)
    return pd.MultiIndex.from_arrays([first, second]).isin(wanted)


def _says(messages: pd.Series, words: str) -> np.ndarray:
    """Of every row, whether its message holds some words."""
    told = [message for message in messages.dropna().unique() if words in message]
    return messages.isin(told).to_numpy()


__all__ = ["REASONS", "Reason", "Windows", "executions", "judge", "windows"]
