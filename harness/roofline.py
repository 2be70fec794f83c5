"""How far a measured time is from what the machine could do: MFU, MBU and the floor of the roofline model.

    prefill_mfu        predicted FLOPs of the prompt / (its time x FLOP/s of a matrix product)
    decode_mbu         bytes that a step of this policy reads / (its time x read bandwidth)
    ..._floor_s        the time below which it cannot be: the longer one of all FLOPs and all reads
    ..._over_floor     time / floor

    time                              bytes of a step: weights once, the cache once per request and reader
      │\\_          measured          (`read_bytes_per_step`, which holds the weights already); a prompt
      │  \\____ ▲                     reads each matrix at least once (`weights_read_bytes`)
      │        │ over_floor
      │________▼___ floor            bandwidth: at the working set of the very step, between the sizes that
      └──────────── work             were measured (`bandwidth_at`)

Work is the architecture's own prediction, ceilings are measured (`harness.ceilings`), and so is the time:
device time, or on a CPU with one thread CPU time, as for the ceilings. A step is the mean over the steps of a
repeat, while its work is that of the last, largest one: in a growing cache MBU is too high by less than half
of new tokens / context.

A ratio below 1 (MFU or MBU above 100 %) says that the ceiling is too low here: it was measured on a busy or
throttled machine, or the working set lies where bandwidth changes fast (a cache's size), or less was done
than the architecture predicts. Nothing is cut off at 1. Only executions that were warmed up and repeated have
rows here; where a part is unknown the value is NaN and the message says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .metrics import metric

#: All that this module derives.
DERIVED = (
    *("prefill_mfu", "prefill_floor_s", "prefill_over_floor"),
    *("decode_mbu", "decode_floor_s", "decode_over_floor"),
)
_PREDICTED = ("prefill_flops", "decode_flops", "read_bytes_per_step", "weights_read_bytes")
_TIMES = ("prefill_s", "prefill_cpu_s", "decode_step_s", "decode_step_cpu_s")


def derived_rows(rows: pd.DataFrame, manifest: Mapping[str, Any]) -> pd.DataFrame:
    """Rows to append (columns of `rows`): per cell one floor of each phase, per repeat the rest.

    `rows` are those of a run, `manifest` is its run.json. Rows that were derived before are not looked at.
    """
    chosen = rows["metric"].isin((*_PREDICTED, *_TIMES)) & rows["repeat"].notna() & (rows["status"] == "ok")
    known = rows[chosen]
    work = known[known["metric"].isin(_PREDICTED)].drop_duplicates(["cell", "metric"])
    work = work.pivot(index="cell", columns="metric", values="value").reindex(columns=list(_PREDICTED))
    parts = [_derived(_timed(known, phase), work, manifest, phase) for phase in ("prefill", "decode")]
    return pd.concat(parts, ignore_index=True)[list(rows.columns)]


def bandwidth_at(ceilings: Mapping[str, Any], working_set_bytes: np.ndarray) -> np.ndarray:
    """Bytes per second at each working set, linear in its logarithm between the sizes that were measured.

    Beyond them it is that of the nearest. Less is never slower than more: where a small set seems to be, the
    call's own cost is what was measured.
    """
    measured = sorted((float(size), float(speed)) for size, speed in ceilings["read_bytes_per_s"].items())
    sizes, speeds = np.array(measured).T
    speeds = np.maximum.accumulate(speeds[::-1])[::-1]
    sets = np.asarray(working_set_bytes, dtype=float)
    return np.interp(np.log(np.maximum(sets, 1.0)), np.log(sizes), speeds)


def _timed(known: pd.DataFrame, phase: str) -> pd.DataFrame:
    """One row per cell and repeat, its value the time that is held against the ceilings, in seconds."""
    name = {"prefill": "prefill", "decode": "decode_step"}[phase]
    by_cpu_time = (known["device"] == "cpu") & (known["threads"] == 1)
    wanted = np.where(by_cpu_time, f"{name}_cpu_s", f"{name}_s")
    times = known[known["metric"] == wanted]
    keys = ["cell", "repeat"]
    mean = times.groupby(keys)["value"].transform("mean")
    return times.assign(value=mean).drop_duplicates(keys)


def _derived(
    times: pd.DataFrame, work: pd.DataFrame, manifest: Mapping[str, Any], phase: str
) -> pd.DataFrame:
    """The three metrics of a phase for the executions in `times`."""
    work = work.reindex(times["cell"])
    flops = work[f"{phase}_flops"].to_numpy(float)
    read = work["weights_read_bytes" if phase == "prefill" else "read_bytes_per_step"].to_numpy(float)
    seconds = times["value"].to_numpy(float)
    flops_per_s, bandwidth, no_roof = _roofs(times, read, manifest)
    compute_s, read_s = flops / flops_per_s, read / bandwidth
    # What a prompt reads matters for the shortest only; without its FLOPs it has no floor.
    main, other = (compute_s, read_s) if phase == "prefill" else (read_s, compute_s)
    floor_s = np.where(np.isnan(main), np.nan, np.fmax(main, other))
    no_work = "The architecture does not say " + (
        "what a prompt computes." if phase == "prefill" else "what a step reads."
    )
    reasons = np.select(
        [no_roof != "", np.isnan(main), np.isnan(seconds)],
        [no_roof, no_work, "The time was not measured."],
        "",
    )
    share, over = ("prefill_mfu" if phase == "prefill" else "decode_mbu"), f"{phase}_over_floor"
    first = ~times["cell"].duplicated().to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [
            _rows(times, f"{phase}_floor_s", floor_s, reasons)[first],
            _rows(times, share, main / seconds, reasons),
            _rows(times, over, seconds / floor_s, reasons),
        ]
    return pd.concat(parts, ignore_index=True)


def _roofs(
    times: pd.DataFrame, working_set_bytes: np.ndarray, manifest: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FLOP/s, bytes/s and "" for each execution; where its machine has no ceilings, NaN, NaN and why."""
    flops_per_s, bandwidth = np.full(len(times), np.nan), np.full(len(times), np.nan)
    reasons = np.full(len(times), "", dtype=object)
    home = manifest.get("machine") or {}
    cards = {**(manifest.get("machines") or {}), home.get("id"): home}
    machines = times["machine"].fillna(home.get("id", "")).to_numpy()
    for machine in set(machines):
        own, card = machines == machine, cards.get(machine) or {}
        ceilings, note = card.get("ceilings"), card.get("ceilings_note") or "not measured"
        if not ceilings:
            reasons[own] = f"No ceilings of this machine: {note.rstrip('.')}."
            continue
        alike = own.copy()
        for name in ("device", "dtype", "threads"):
            alike &= (times[name] == ceilings[name]).to_numpy()
        reasons[own & ~alike] = "The ceilings are of another device, dtype or number of threads."
        flops_per_s[alike] = ceilings["flops_per_s"]
        bandwidth[alike] = bandwidth_at(ceilings, working_set_bytes[alike])
    return flops_per_s, bandwidth, reasons


def _rows(times: pd.DataFrame, name: str, values: np.ndarray, reasons: np.ndarray) -> pd.DataFrame:
    """Rows of one metric, otherwise like `times`. A number has its cell's message, NaN its reason."""
    messages = np.where(np.isnan(values), np.where(reasons == "", None, reasons), times["message"])
    return times.assign(
        metric=name, value=values, unit=metric(name).unit, message=messages,
        step=np.nan, validity=None, validity_reasons=None,
    )  # fmt: skip
