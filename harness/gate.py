"""The gate: does head cost more or lose more than base? Both are measured here, in turns, then compared.

    first set      every cell of both sides, `replicates` processes each
    compare        undecided: a latency that is AMBIGUOUS, or INVALID because others used the machine
    second set     those points alone, as many processes again
    compare        over all that was measured; what is still undecided is told

A point that is measured again runs beside the architectures that it ran beside before (one worker holds all
of them), or its numbers would be of another process; only its own new rows count. Each look at the data
spends its share of alpha (`Rules.looks`), so a second look does not add false alarms.

A gate's folder holds two run folders, `base` and `head`. Killed anywhere, the same command goes on there: its
name holds the keys of both sides, so changed code never meets old numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .comparison import Comparison, Finding, Rules, compare
from .environment import ROOT, source_hash
from .errors import UsageError
from .exits import EXIT_USAGE
from .gate_rules import enough, of_machine, wall_clock
from .plan import digest
from .sides import Hear, Point, Side, SideCell, SideEnded, started, take_turns
from .supervise import EnvironmentRefuses

#: How often a gate tests the same points.
LOOKS = 2


class Incomparable(Exception):
    """The sides cannot be set against each other; one sentence."""


@contextmanager
def opened(
    options: dict[str, Any], base_root: Path, base_name: str, out: Path | None, kind: str
) -> Iterator[tuple[Side, Side]]:
    """Both sides, prepared: `base_root` against the sources that this process runs from.

    `options` are those of `kvmark run`, `replicates` all that may be wanted of one side. `out` defaults to
    results/local/KIND-PLAN-DIGEST. Raises UsageError where head cannot measure the plan,
    Incomparable where base cannot, EnvironmentRefuses.
    """
    base, head = Side("base", Path(), base_root), Side("head", Path(), ROOT)
    before = source_hash()
    try:
        with started(base, head, options):
            _check_refused(base, head)
            plan = head.plan_name.rpartition("-")[0]
            name = f"{kind}-{plan}-{digest(base.plan_name, head.plan_name)[:8]}"
            folder = out or Path("results") / "local" / name
            base.folder, head.folder = folder / "base", folder / "head"
            yield base, head
    except SideEnded as end:
        if end.side is head and end.code == EXIT_USAGE:
            raise UsageError(f"{end}.") from None
        if end.side is base and end.code == EXIT_USAGE:
            raise Incomparable(f"The base ({base_name}) cannot measure this plan: {end}.") from None
        who = "this checkout" if end.side is head else f"the base ({base_name})"
        raise EnvironmentRefuses(f"A process of {who} ended: {end}.") from None
    if source_hash.__wrapped__(ROOT) != before:
        raise Incomparable("The sources of this checkout changed while they were measured; gate them again.")


def _check_refused(base: Side, head: Side) -> None:
    """A spec that neither side can build is a mistake of the user's."""
    for spec in base.refused.keys() & head.refused.keys():
        raise UsageError(head.refused[spec])


def gate(base: Side, head: Side, replicates: int, rules: Rules, hear: Hear) -> Comparison:
    """Measure and compare two prepared sides. Raises SideEnded, StoreError."""
    found = first_set(base, head, replicates, rules, hear)
    again = undecided(enough(found, base.folder, head.folder))
    if again:
        near = {point[1:] for point in again}
        more = holds(base, head, replicates)
        chosen = asked_for(rules)
        take_turns(
            base, head, lambda c: chosen(c) and c.replicate >= replicates and c.point[1:] in near, hear, more
        )
        found = _compared(
            base, head, rules, lambda c: chosen(c) and (c.replicate < replicates or c.point in again), hear
        )
    notes = [*found.notes, *_notes(base, head, again, replicates)]
    if not found.refusals:
        notes += wall_clock(base.folder, head.folder, found.rules)
    return enough(dataclasses.replace(found, notes=notes), base.folder, head.folder)


def first_set(base: Side, head: Side, replicates: int, rules: Rules, hear: Hear) -> Comparison:
    """The first set of processes, compared; where only latencies are asked for, only they are measured.

    Raises SideEnded, StoreError.
    """
    chosen = asked_for(rules)

    def first(cell: SideCell) -> bool:
        return cell.replicate < replicates and chosen(cell)

    take_turns(base, head, first, hear, holds(base, head, replicates))
    return _compared(base, head, rules, first, hear)


def asked_for(rules: Rules) -> Callable[[SideCell], bool]:
    """Whether a cell is to be measured: where only latencies are judged, those of latency suites."""
    return lambda cell: rules.only != ("latency",) or cell.process is None


def _compared(
    base: Side, head: Side, rules: Rules, counted: Callable[[SideCell], bool], hear: Hear
) -> Comparison:
    """What the counted cells say; the tables in both folders are then of these."""
    for side in (base, head):
        side.measure(filter(counted, side.cells), hear)
    return compare(base.folder, head.folder, of_machine(rules, head.folder))


def undecided(found: Comparison) -> set[Point]:
    """Points whose latency a second set of processes may decide."""
    return {
        finding.point
        for finding in found.findings
        if finding.kind == "latency"
        and (finding.verdict == "AMBIGUOUS" or (finding.verdict == "INVALID" and _disturbed(finding)))
    }


def _disturbed(finding: Finding) -> bool:
    """Whether it is invalid for something that may be over by now: not for what the code does."""
    return any(reason in finding.message for reason in ("foreign_cpu_overload", "throttled"))


def holds(base: Side, head: Side, replicates: int) -> bool:
    """Whether all processes of a set fit into this machine's memory, so that they may take turns repeat by
    repeat."""
    return 2 * replicates <= min(base.abreast, head.abreast)


def _notes(base: Side, head: Side, again: set[Point], replicates: int) -> Iterator[str]:
    if any(cell.process is None for cell in base.cells):
        turns = "repeat by repeat" if holds(base, head, replicates) else "process by process"
        yield f"Processes of a latency suite took turns {turns}."
    for side in (base, head):
        for spec, why in side.refused.items():
            yield f"{side.name} does not know {spec}: {why}"
    if again:
        many = "1 point was" if len(again) == 1 else f"{len(again)} points were"
        yield f"{many} measured a second time."
    yield from dict.fromkeys(base.remarks + head.remarks)
