"""`compare`: two finished runs in, a Comparison out.

    read both sides -> fingerprints differ? refuse -> cells, bytes, peaks, latency, quality -> findings

Only points that were measured on both sides are judged by number; what is missing is a finding of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..metrics import is_known
from .cells import cells
from .findings import VERDICTS, Comparison, Finding
from .fingerprint import examine
from .held_bytes import allocator, exact
from .latency import latencies
from .quality import scores
from .rules import Rules
from .runs import Measured, Point, read

Folders = Path | Sequence[Path]


def compare(base: Folders, head: Folders, rules: Rules | None = None) -> Comparison:
    """Compare run folders; several on a side are one measurement in several sittings, processes added up.

    Raises StoreError (no run folder, a damaged file) and UsageError (the same folder twice, runs of
    different code on one side, a name that no fingerprint has). Different machines are no error but
    `refusals`.
    """
    rules = rules or Rules()
    sides = [[Path(one)] if isinstance(one, str | Path) else [Path(p) for p in one] for one in (base, head)]
    places = [path.resolve() for side in sides for path in side]
    if len(set(places)) < len(places):
        raise UsageError("The same run folder was given twice: a run compared with itself says nothing.")
    before, after = (read(side) for side in sides)
    refusals, allowed = examine(before.runs, after.runs, rules)
    findings = [] if refusals else _ordered(_findings(before, after, rules))
    notes = [] if refusals else _notes(before, after, rules)
    return Comparison(before.side, after.side, rules, findings, refusals, allowed, notes)


def _findings(base: Measured, head: Measured, rules: Rules) -> list[Finding]:
    found = list(cells(base, head))
    both = [point for point in base.points if _measured(base, point) and _measured(head, point)]
    if rules.judges("bytes"):
        found += exact(base, head, both)
    if rules.judges("allocator"):
        found += allocator(base, head, both, rules)
    if rules.judges("latency"):
        found += latencies(base, head, both, rules)
    if rules.judges("quality"):
        found += scores(base, head, both, rules)
    return found


def _measured(side: Measured, point: Point) -> bool:
    return "ok" in side.statuses.get(point, {}).values()


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Gravest first; within a verdict the largest effect, then in plan order."""
    return sorted(findings, key=lambda found: (VERDICTS.index(found.verdict), -abs(found.effect or 0.0)))


def _notes(base: Measured, head: Measured, rules: Rules) -> list[str]:
    """What the reader should know beside the findings."""
    notes = []
    gone = sorted(set(base.by_metric) - set(head.by_metric))
    if gone:
        notes.append(f"Only base has {', '.join(gone)}.")
    if rules.judges("quality"):
        scored = base.ok["metric"][base.ok["phase"] == "score"].unique()
        if unknown := sorted(name for name in scored if not is_known(name)):
            told = ", ".join(unknown)
            notes.append(f"Not judged, since nothing says which way is better: {told} (harness/metrics.py).")
    for name, side in (("base", base), ("head", head)):
        if side.side.dirty:
            notes.append(f"The sources of {name} differ from its commit.")
        if unmeasured := sum(point not in side.statuses for point in side.points):
            notes.append(f"{unmeasured} planned cells of {name} have no rows: its run is not finished.")
    for column in ("implementation", "prompt_mode"):
        before, after = (set(side.ok[column].dropna()) for side in (base, head))
        if before != after:
            told = [", ".join(sorted(one)) or "none" for one in (before, after)]
            notes.append(f"{column} is {told[0]} in base and {told[1]} in head.")
    peaks = any(name.startswith("peak_") for name in base.by_metric)
    if rules.judges("allocator") and peaks and not base.on_cuda:
        notes.append("Peaks of resident memory on a CPU are not judged.")
    if rules.judges("allocator") and base.on_cuda & (base.in_company | head.in_company):
        notes.append("What the allocator reserved for several architectures in one process is not judged.")
    return notes
