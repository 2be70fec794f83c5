"""Bytes, and cells that fail: judged one by one, without a test, since neither has noise to speak of.

    bytes       the cache (predicted and live) and weights: a single byte more is MORE
    allocator   peaks of CUDA's allocator, within the threshold: workspaces move them a little
    cell        out of memory, timeout or crash where base had none, cells that are gone, cells that are new

A CPU has no allocator to ask: its peaks are resident memory with what libraries keep for themselves, too
noisy for one per cent, and are not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .findings import Finding
from .rules import ALLOCATOR_BYTES, EXACT_BYTES, Rules
from .runs import Measured, Point


@dataclass(frozen=True)
class Held:
    """One number of bytes at a point: the largest, all distinct ones in order, and from how many rows."""

    largest: float
    distinct: tuple[float, ...]
    num: int


def exact(base: Measured, head: Measured, points: Sequence[Point]) -> Iterator[Finding]:
    """Cache and weights, to the byte. A cell of several batches has several values: all must be alike."""
    for metric in EXACT_BYTES:
        for point, ours, theirs in _pairs(base, head, points, metric):
            if theirs is None:
                yield _missing(point, metric, "bytes", ours)
                continue
            before, after = ours.largest, theirs.largest
            message = ""
            if ours.distinct != theirs.distinct and before == after:
                before, after = sum(ours.distinct), sum(theirs.distinct)
                message = "sums: the largest batch is alike, others differ"
            yield _judged(point, metric, "bytes", (before, ours.num), (after, theirs.num), 0.0, message)


def allocator(base: Measured, head: Measured, points: Sequence[Point], rules: Rules) -> Iterator[Finding]:
    """Peaks of CUDA's allocator: the median over processes of each one's largest."""
    points = [point for point in points if point in base.on_cuda | head.on_cuda]
    for metric in ALLOCATOR_BYTES if points else ():
        for point, ours, theirs in _pairs(base, head, points, metric):
            if theirs is None:
                yield _missing(point, metric, "allocator", ours)
            else:
                before, after = (ours.largest, ours.num), (theirs.largest, theirs.num)
                yield _judged(point, metric, "allocator", before, after, rules.allocator_threshold)


def _pairs(
    base: Measured, head: Measured, points: Sequence[Point], metric: str
) -> Iterator[tuple[Point, Held, Held | None]]:
    ours, theirs = _held(base, metric), _held(head, metric)
    return ((point, ours[point], theirs.get(point)) for point in points if point in ours)


def _held(measured: Measured, metric: str) -> dict[Point, Held]:
    rows = measured.by_metric.get(metric)
    if rows is None:
        return {}
    rows = rows[np.isfinite(rows["value"])]
    largest = rows.groupby(["point", "process"])["value"].max().groupby(level="point").median()
    distinct = rows.groupby("point")["value"].agg(lambda values: tuple(sorted(set(values))))
    sizes = rows.groupby("point").size()
    return {
        measured.points[number]: Held(float(largest[number]), distinct[number], int(sizes[number]))
        for number in largest.index
    }


def _judged(
    point: Point,
    metric: str,
    kind: str,
    base: tuple[float, int],
    head: tuple[float, int],
    threshold: float,
    message: str = "",
) -> Finding:
    (before, num_base), (after, num_head) = base, head
    verdict = "SAME"
    if after > before * (1 + threshold):
        verdict = "MORE"
    elif after * (1 + threshold) < before:
        verdict = "FEWER"
    effect = after / before - 1 if before else None
    return Finding(
        *point, metric, kind, verdict, before, after, effect,
        threshold=threshold, num_base=num_base, num_head=num_head, message=message,
    )  # fmt: skip


def _missing(point: Point, metric: str, kind: str, held: Held) -> Finding:
    return Finding(
        *point,
        metric,
        kind,
        "MISSING",
        held.largest,
        num_base=held.num,
        message="measured in base, not in head",
    )


def cells(base: Measured, head: Measured) -> Iterator[Finding]:
    """Cells that are gone, new, newly failing, mended, or failing on both sides; in base's order."""
    for point in dict.fromkeys([*base.points, *head.points]):
        before, after = base.statuses.get(point, {}), head.statuses.get(point, {})
        lost, failed = _failed(before), _failed(after)
        blank = (*point, "", "cell")
        counts = {"num_base": len(before), "num_head": len(after)}
        if not before:
            if after:
                yield Finding(*blank, "NEW", **counts, message=_told(failed, after, head.message(point)))
        elif not after:
            planned = "planned, not measured" if point in head.points else "not in the plan"
            yield Finding(*blank, "MISSING", **counts, message=f"in head {planned}")
        elif failed and not lost:
            message = _told(failed, after, head.message(point))
            yield Finding(*blank, "NEW FAILURE", **counts, message=message)
        elif failed and len(failed) == len(after) and len(lost) < len(before):
            message = f"{_told(failed, after, head.message(point))}; in base {_told(lost, before)}"
            yield Finding(*blank, "NEW FAILURE", **counts, message=message)
        elif lost and not failed:
            yield Finding(*blank, "MENDED", **counts, message=f"in base {_told(lost, before)}")
        elif lost:
            message = f"fails on both sides: {_told(lost, before)}, now {_told(failed, after)}"
            yield Finding(*blank, "SAME", **counts, message=message)


def _failed(statuses: dict[int, str]) -> list[str]:
    return [status for status in statuses.values() if status != "ok"]


def _told(failed: list[str], all: dict[int, str], message: str = "") -> str:
    """ "oom in 2 of 8 processes: killed at its limit"."""
    if not failed:
        return ""
    kinds = " and ".join(dict.fromkeys(failed))
    where = f" in {len(failed)} of {len(all)} processes" if len(all) > 1 else ""
    return f"{kinds}{where}{': ' if message else ''}{message}"
