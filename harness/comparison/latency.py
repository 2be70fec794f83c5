"""Latency: one number per process, an exact test per point, Holm over all of them.

    rows -> median over a process's repeats (a decode step first as the mean over the steps of its repeat, so
            that a policy that works in bursts pays for its bursts) -> the processes of both sides -> verdict

Repeats within a process are not independent: to test them is pseudo-replication, and calls identical code
slower in a tenth to a half of all cells. Processes with an invalid measurement are left out; who has too few
left is INVALID.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .findings import Finding
from .permutation import TEST, effect, exact_p, holm, replicates_for, smallest_p
from .rules import Rules
from .runs import Measured, Point


@dataclass(frozen=True)
class Samples:
    """Process medians of one latency on one side, in seconds; how many processes were invalid, and why."""

    values: np.ndarray
    num_invalid: int = 0
    reasons: str = ""
    suspect: str = ""

    @property
    def num(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Judged:
    """What the numbers of one latency say before Holm: effect and interval relative to base."""

    effect: float
    low: float
    high: float
    p: float
    limit: float


def samples(measured: Measured, metric: str) -> dict[Point, Samples]:
    """Process medians by point. Executions that were neither warmed up nor repeated are none."""
    rows = measured.by_metric.get(metric)
    if rows is None or rows["repeat"].isna().all():
        return {}
    rows = rows[rows["repeat"].notna()]
    keys = ["point", "process"]
    medians = rows.groupby([*keys, "repeat"])["value"].mean().groupby(level=keys).median()
    medians = medians.where(medians > 0)
    invalid = (rows["validity"] == "invalid").groupby([rows[key] for key in keys]).any()
    doubtful = dict(iter(rows[rows["validity"].isin(["suspect", "invalid"])].groupby("point")))
    found = {}
    for point, values in medians.groupby(level="point"):
        bad, own = invalid.loc[values.index], doubtful.get(point, rows.iloc[:0])
        found[measured.points[point]] = Samples(
            values[~bad].dropna().to_numpy(float),
            int(bad.sum()),
            _reasons(own, "invalid"),
            _reasons(own, "suspect"),
        )
    return found


def _reasons(rows: pd.DataFrame, validity: str) -> str:
    if rows.empty:
        return ""
    told = rows.loc[rows["validity"] == validity, "validity_reasons"].dropna()
    return "; ".join(dict.fromkeys(reason for line in told.unique() for reason in line.split("; ")))


def judge(base: np.ndarray, head: np.ndarray, limit: float, floor_s: float) -> Judged:
    """Effect, interval and p of two sets of process medians. The floor counts at the faster side's speed."""
    faster_s = min(float(np.median(base)), float(np.median(head)))
    tolerance = max(limit, floor_s / faster_s)
    return Judged(*effect(base, head), exact_p(base, head), tolerance)


def verdict(judged: Judged, p: float, alpha: float) -> str:
    """FAST | SAME | SLOW | AMBIGUOUS, with `p` after Holm. Exchanging the sides exchanges FAST and SLOW."""
    up = 1 + judged.limit
    if p <= alpha and 1 + judged.effect > up:
        return "SLOW"
    if p <= alpha and (1 + judged.effect) * up < 1:
        return "FAST"
    if 1 + judged.high <= up and (1 + judged.low) * up >= 1:  # never with NaN ends
        return "SAME"
    return "AMBIGUOUS"


def latencies(base: Measured, head: Measured, points: Sequence[Point], rules: Rules) -> Iterator[Finding]:
    """A finding per point and latency that base has. INSUFFICIENT where no p could ever be small enough."""
    pairs: list[tuple[Finding, Samples, Samples]] = []
    for metric in rules.floors_s:
        ours, theirs = samples(base, metric), samples(head, metric)
        for point in points:
            if point not in ours:
                continue
            blank = Finding(*point, metric, "latency", "SAME", num_base=ours[point].num)
            if point not in theirs or not theirs[point].num + theirs[point].num_invalid:
                yield replace(blank, verdict="MISSING", message="measured in base, not in head")
            elif ours[point].num + ours[point].num_invalid:
                pairs.append((blank, ours[point], theirs[point]))
    alpha, needed = rules.alpha_per_look, replicates_for(len(pairs), rules.alpha_per_look)
    decided: list[tuple[Finding, Judged]] = []
    for blank, one, other in pairs:
        found = _described(blank, one, other)
        judged = None
        if one.num and other.num:
            limit = rules.limit(found.point, found.metric)
            judged = judge(one.values, other.values, limit, rules.floors_s[found.metric])
            found = _measured(found, judged)
        if judged is None or smallest_p(one.num, other.num) * len(pairs) > alpha:
            yield _undecidable(found, one, other, len(pairs), needed)
        else:
            decided.append((found, judged))
    for (found, judged), p in zip(decided, holm([judged.p for _, judged in decided]), strict=True):
        yield replace(found, p=p, verdict=verdict(judged, p, alpha))


def _described(blank: Finding, base: Samples, head: Samples) -> Finding:
    left_out = base.num_invalid + head.num_invalid
    told = f"; {left_out} invalid processes left out ({base.reasons or head.reasons})" if left_out else ""
    reasons = [name for side in (base, head) for name in side.suspect.split("; ") if name]
    suspect = "; ".join(dict.fromkeys(reasons))
    return replace(
        blank,
        base=float(np.median(base.values)) if base.num else None,
        head=float(np.median(head.values)) if head.num else None,
        num_base=base.num,
        num_head=head.num,
        num_invalid=left_out,
        message=f"{TEST}, Holm{told}",
        suspect=suspect,
    )


def _measured(found: Finding, judged: Judged) -> Finding:
    ends = (None, None) if math.isnan(judged.low) else (judged.low, judged.high)
    return replace(found, effect=judged.effect, low=ends[0], high=ends[1], threshold=judged.limit)


def _undecidable(found: Finding, base: Samples, head: Samples, num: int, needed: int) -> Finding:
    if base.num_invalid or head.num_invalid:
        reasons = "; ".join(dict.fromkeys(filter(None, (base.reasons, head.reasons)))) or "no reason stated"
        message = (
            f"{base.num_invalid} processes of base and {head.num_invalid} of head are invalid ({reasons}); "
            f"of the rest are too few"
        )
        return replace(found, verdict="INVALID", message=message)
    message = (
        f"{base.num} and {head.num} processes; with {num} latencies none can be significant below "
        f"{needed} on each side (--replicates {needed})"
    )
    return replace(found, verdict="INSUFFICIENT", message=message)
