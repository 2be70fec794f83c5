"""Where the memory of one phase went: parts that add up to the outermost quantity that is known.

    GPU                                               CPU
    NVML delta ┬ driver: context, modules, graphs     peak RSS ┬ driver: interpreter, libraries, other models
               │   NVML delta - reserved peak                  │   RSS before prefill - weights - cache
    reserved ──┼ fragmentation                                 │ (fragmentation: the C library is not asked)
               │   reserved - allocated peak                   │
    allocated ─┼ activations + logits                          ┼ activations + logits
               │   allocated peak - before prefill             │   peak RSS - RSS before prefill
               │ other models                                  │ (other models: within driver)
               │   before prefill - weights - cache            │
               ├ cache (live)                                  ├ cache (live)
               └ weights                                       └ weights

What is in use before prefill holds the weights of every architecture that the process interleaves (equal
weights once: they share their tensors) and the cache of this cell, which is allocated, and filled, before.
All numbers are of one execution, the one with the highest peak; only the NVML delta is of the whole phase.
Caches that were copied for several continuations of one prompt count as activations. On a CPU pages that an
earlier execution freed stay resident: they are in "driver", and activations come out too small.

A part that cannot be known is None, and its bytes are in `unexplained`, which is what is left of the whole:
0 where all quantities nest as drawn. No part is below zero: where one would be (a delta of NVML that is
below what torch reserved), it is 0 and `unexplained` negative, so that the sum stays exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

#: phase -> (peaks, allocator's or RSS; NVML delta)
PEAKS = {
    "prefill": (("peak_prefill_bytes",), "nvml_delta_prefill_bytes"),
    "continuation": (("peak_decode_bytes", "peak_continuation_bytes"), "nvml_delta_decode_bytes"),
}
UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Part:
    """Some of a phase's memory. `num_bytes` None: cannot be known; `source` says how it is known, or why
    not."""

    name: str
    num_bytes: int | None
    source: str


def total(parts: list[Part]) -> int:
    """The outermost quantity: all parts together."""
    return sum(part.num_bytes or 0 for part in parts)


def ledger(rows: pd.DataFrame, phase: str) -> list[Part]:
    """The parts of one cell's memory in one phase ("prefill", "continuation"), innermost first.

    `rows`: those of one cell, derived ones among them. Empty where no peak and no delta is known.
    """
    rows = rows[rows["status"] == "ok"]
    if rows.empty:
        return []
    peaks, delta_name = PEAKS[phase]
    own = {name: rows.loc[rows["metric"] == name, "value"].to_numpy() for name in rows["metric"].unique()}
    name = max(peaks, key=lambda name: _most(own.get(name)) or -1)
    number = int(np.nanargmax(own[name])) if _most(own.get(name)) is not None else 0

    def known(metric: str) -> int | None:
        """Of the execution with the highest peak, where each execution has one; else the highest."""
        values = own.get(metric, np.array([]))
        if len(values) == len(own.get(name, ())) and len(values) and not np.isnan(values[number]):
            return int(values[number])
        return _most(values)

    weights, cache, baseline = (
        known("weights_bytes"),
        known("cache_bytes_live"),
        known("baseline_prefill_bytes"),
    )
    peak, reserved = known(name), known(name.replace("_bytes", "_reserved_bytes"))
    if str(rows["device"].iloc[0]).split(":")[0] == "cpu":
        return _on_cpu(weights, cache, baseline, peak)
    return _on_gpu(weights, cache, baseline, peak, reserved, _most(own.get(delta_name)))


def _on_gpu(
    weights: int | None,
    cache: int | None,
    baseline: int | None,
    peak: int | None,
    reserved: int | None,
    delta: int | None,
) -> list[Part]:
    return _summed(
        [
            Part("weights", weights, "parameters of the model"),
            Part("cache", cache, "live cache"),
            Part(
                "other models", _less(baseline, weights, cache), "allocated before prefill - weights - cache"
            ),
            Part("activations + logits", _less(peak, baseline), "allocated peak - allocated before prefill"),
            Part("fragmentation", _less(reserved, peak), "reserved peak - allocated peak"),
            Part("driver", _less(delta, reserved), "NVML delta - reserved peak"),
        ],
        next((whole for whole in (delta, reserved, peak) if whole is not None), None),
    )


def _on_cpu(weights: int | None, cache: int | None, baseline: int | None, peak: int | None) -> list[Part]:
    return _summed(
        [
            Part("weights", weights, "parameters of the model"),
            Part("cache", cache, "live cache"),
            Part("other models", None, "within driver: RSS does not tell them from libraries"),
            Part("activations + logits", _less(peak, baseline), "peak RSS - RSS before prefill"),
            Part("fragmentation", None, "the C library's heap is not asked"),
            Part("driver", _less(baseline, weights, cache), "RSS before prefill - weights - cache"),
        ],
        peak,
    )


def _summed(parts: list[Part], whole: int | None) -> list[Part]:
    """The parts that are known, none below zero, and what is left of the whole."""
    if whole is None:
        return []
    parts = [
        Part(p.name, p.num_bytes if p.num_bytes is None else max(p.num_bytes, 0), p.source) for p in parts
    ]
    return [*parts, Part(UNEXPLAINED, whole - total(parts), "what is left of the whole")]


def _less(whole: int | None, *parts: int | None) -> int | None:
    return None if whole is None or None in parts else whole - sum(part or 0 for part in parts)


def _most(values: np.ndarray | None) -> int | None:
    known = [] if values is None else values[~np.isnan(values)]
    return int(known.max()) if len(known) else None
