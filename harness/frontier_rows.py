"""What a search for the largest context found, as rows; no torch here, a table is drawn from a file.

frontier_context             tokens, or NaN with a sentence: no limit found, nothing fits, a crash
frontier_context_predicted   where the search began
frontier_limit_bytes         what a worker could fill
frontier_fit_*               the longest context that fitted: its length, peak bytes, predicted bytes
frontier_failure_*           the shortest longer one that did not: length, bytes held; `phase` tells where
frontier_probes              how many were measured; the message lists every one
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .frontier import FLOOR, bracket
from .metrics import format_count, metric
from .store import Row, read_table

if TYPE_CHECKING:
    from .plan import Cell

#: Statuses that say something about memory.
ANSWERS = ("ok", "oom")
PEAKS = ("peak_prefill_bytes", "peak_decode_bytes")


@dataclass(frozen=True)
class Probe:
    """What became of one context; `held_bytes` is its peak, or what was held when memory ran out."""

    status: str
    phase: str | None
    message: str | None
    held_bytes: float

    def told(self) -> str:
        return "fits" if self.status == "ok" else f"{self.status} in {self.phase or 'an unknown phase'}"


def read_probe(out: Path, cell: Cell) -> Probe:
    """Read a finished probe. Raises StoreError."""
    table = read_table(out / "cells" / f"{cell.key}.parquet").to_pandas()
    failed = table[table["status"] != "ok"]
    if len(failed):
        row = failed.iloc[0]
        return Probe(row["status"], row["phase"], row["message"], float(row["value"]))
    peaks = table[table["metric"].isin(PEAKS)]["value"]
    return Probe("ok", None, None, float(peaks.max()) if len(peaks) else math.nan)


def result_rows(
    base: Row,
    tried: dict[int, Probe],
    predicted: int | None,
    predict: Callable[[int], int],
    limit_bytes: int,
    ceiling: int,
    reason: str | None,
) -> Iterator[Row]:
    """What a search found, as rows; a number that there is none of is NaN, and its message says why."""

    def row(name: str, value: float, message: str | None = None, **fields: Any) -> Row:
        known = {"metric": name, "value": float(value), "unit": metric(name).unit, "message": message}
        return dataclasses.replace(base, **known, **fields)

    low, high = bracket({c: found.status == "ok" for c, found in tried.items() if found.status in ANSWERS})
    why = reason
    if reason is None and low is None:
        why = f"not even {FLOOR} tokens fit"
    elif reason is None and high is None:
        why = f"no limit found up to {format_count(ceiling)} tokens, which fit"
    yield row("frontier_context", math.nan if why or low is None else low, why)
    told = None if predicted is not None else f"no limit up to {format_count(ceiling)} tokens"
    value = math.nan if predicted is None else predicted
    yield row("frontier_context_predicted", value, told, phase="predicted")
    yield row("frontier_limit_bytes", limit_bytes)
    if low is not None:
        yield row("frontier_fit_context", low)
        yield row("frontier_fit_bytes", tried[low].held_bytes)
        yield row("frontier_fit_bytes_predicted", predict(low), phase="predicted")
    if high is not None:
        failed = tried[high]
        yield row("frontier_failure_context", high, failed.message, phase=failed.phase)
        yield row("frontier_failure_bytes", failed.held_bytes, failed.message, phase=failed.phase)
    contexts: dict[str, list[str]] = {}
    for context, found in tried.items():
        contexts.setdefault(found.told(), []).append(format_count(context))
    by_answer = "; ".join(f"{answer}: {', '.join(which)}" for answer, which in contexts.items())
    yield row("frontier_probes", len(tried), by_answer)
