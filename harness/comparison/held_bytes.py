"""Bytes: judged one by one, without a test, since they have no noise to speak of.

    bytes       the cache (predicted and live) and weights: a single byte more is MORE
    allocator   peaks of CUDA's allocator, within the threshold: workspaces move them a little

Allocated peaks count from what was in use before the cache was made. Else they held the weights of every
architecture of the worker: another one's would look like more of this one, and hide what doubled. What the
allocator reserved is the most that any of them left behind, so it is judged only where an architecture has a
worker to itself.

A CPU has no allocator to ask: its peaks are resident memory with what libraries keep for themselves, too
noisy for one per cent, and are not judged. A live cache beyond its prediction is no number to pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .findings import Finding
from .rules import ALLOCATOR_BYTES, EXACT_BYTES, Rules
from .runs import Measured, Point

#: What was in use before an architecture made its cache: weights, others' too.
BASELINE = "baseline_allocate_bytes"


@dataclass(frozen=True)
class Held:
    """One number of bytes at a point: the largest, all distinct ones in order, from how many rows, and why
    some of them are invalid."""

    largest: float
    distinct: tuple[float, ...]
    num: int
    invalid: str = ""


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
            found = _judged(point, metric, "bytes", (before, ours.num), (after, theirs.num), 0.0, message)
            invalid = ours.invalid or theirs.invalid
            if invalid and found.verdict != "MORE":
                found = replace(found, verdict="INVALID", message=invalid)
            yield found


def allocator(base: Measured, head: Measured, points: Sequence[Point], rules: Rules) -> Iterator[Finding]:
    """Peaks of CUDA's allocator: the median over processes of each one's largest. Records from before the
    baseline was kept are compared as they are, weights included; their finding says so."""
    points = [point for point in points if point in base.on_cuda | head.on_cuda]
    alone = [point for point in points if point not in base.in_company | head.in_company]
    above = BASELINE if all(BASELINE in side.by_metric for side in (base, head)) else None
    message = "above what was in use before its cache" if above else "with all that was in use"
    for metric in ALLOCATOR_BYTES if points else ():
        reserved = "reserved" in metric
        own, less = (alone, None) if reserved else (points, above)
        for point, ours, theirs in _pairs(base, head, own, metric, less):
            if theirs is None:
                yield _missing(point, metric, "allocator", ours)
            else:
                before, after = (ours.largest, ours.num), (theirs.largest, theirs.num)
                told = "" if reserved else message
                yield _judged(point, metric, "allocator", before, after, rules.allocator_threshold, told)


def _pairs(
    base: Measured, head: Measured, points: Sequence[Point], metric: str, above: str | None = None
) -> Iterator[tuple[Point, Held, Held | None]]:
    ours, theirs = _held(base, metric, above), _held(head, metric, above)
    return ((point, ours[point], theirs.get(point)) for point in points if point in ours)


def _held(measured: Measured, metric: str, above: str | None) -> dict[Point, Held]:
    rows = measured.by_metric.get(metric)
    if rows is None:
        return {}
    rows, keys = rows[np.isfinite(rows["value"])], ["point", "process"]
    largest = rows.groupby(keys)["value"].max()
    if above is not None:
        largest = (largest - measured.by_metric[above].groupby(keys)["value"].median()).dropna()
    largest = largest.groupby(level="point").median()
    wrong = rows[rows["validity"] == "invalid"]
    reasons = wrong.groupby("point")["validity_reasons"].first().fillna("invalid").to_dict()
    distinct = rows.groupby("point")["value"].agg(lambda values: tuple(sorted(set(values))))
    sizes = rows.groupby("point").size()
    return {
        measured.points[number]: Held(
            float(largest[number]), distinct[number], int(sizes[number]), reasons.get(number, "")
        )
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
