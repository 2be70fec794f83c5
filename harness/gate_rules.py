"""What a gate asks of a comparison beyond `kvmark compare`.

processes    at least MIN_REPLICATES on each side that were measured and are valid, or a latency that did
             not fail is INSUFFICIENT (INVALID, if it lacks those that were left out)
noise        of this machine, where `kvmark calibrate` has found it
CPU time     on a CPU, in place of the wall clock, which whoever else runs there moves; that one is told
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .calibration import kept, settings_of
from .comparison import Comparison, Finding, Rules, compare
from .comparison.rules import FLOORS_S
from .metrics import metric
from .sides import Point
from .store import axes_json

#: Processes per side with which a latency can be called slower among some tens of cells: with fewer, an exact
#: test has nothing left after Holm's correction.
MIN_REPLICATES = 8
#: What is gated on a CPU instead.
CPU_TIME = {"prefill_s": "prefill_cpu_s", "decode_step_s": "decode_step_cpu_s"}


def finished(base: Path, head: Path, rules: Rules) -> Comparison:
    """The gate over two finished runs. Raises StoreError, UsageError."""
    rules = of_machine(rules, head)
    found = compare(base, head, rules)
    notes = [] if found.refusals else [*found.notes, *wall_clock(base, head, rules)]
    return enough(dataclasses.replace(found, notes=notes or found.notes), base, head)


def enough(found: Comparison, base: Path, head: Path) -> Comparison:
    """A latency without MIN_REPLICATES valid processes on each side passes as nothing."""
    counts = [replicates_of(run) for run in (base, head)]

    def checked(finding: Finding) -> Finding:
        planned = min(count[finding.point] for count in counts)
        few = min(planned, finding.num_base, finding.num_head)
        judged = finding.fails and finding.verdict != "INSUFFICIENT"
        if finding.kind != "latency" or judged or few >= MIN_REPLICATES:
            return finding
        message = f"a gate needs {MIN_REPLICATES} processes per side, not {few}"
        if planned < MIN_REPLICATES:
            message = f"{message} (--replicates {MIN_REPLICATES})"
        elif finding.num_invalid:
            return dataclasses.replace(finding, verdict="INVALID", message=f"{finding.message}; {message}")
        else:
            message = f"{message} of {planned} that were planned"
        return dataclasses.replace(finding, verdict="INSUFFICIENT", message=message)

    return dataclasses.replace(found, findings=[checked(finding) for finding in found.findings])


def replicates_of(run: Path) -> Counter[Point]:
    """Planned processes of each point."""
    cells = json.loads((run / "run.json").read_text(encoding="utf-8"))["cells"]
    planned = {
        (cell["architecture"], cell["suite"], axes_json(cell["axes"]), cell.get("replicate") or 0)
        for cell in cells
    }
    return Counter(cell[:3] for cell in planned)


def of_machine(rules: Rules, run: Path) -> Rules:
    """The rules with what they need to know of the machine that a run was measured on.

    Its noise, if `kvmark calibrate` has found it; and on a CPU the CPU time of the process instead of the
    wall clock, which whoever else runs there moves. Raises StoreError.
    """
    rules = rules if rules.calibration else dataclasses.replace(rules, calibration=kept(run))
    if settings_of(run)["device"] != "cpu":
        return rules
    return dataclasses.replace(rules, floors_s={CPU_TIME[name]: s for name, s in FLOORS_S.items()})


def wall_clock(base: Path, head: Path, rules: Rules) -> Iterator[str]:
    """One sentence per latency that was not gated because CPU time was: how the wall clock moved.

    Raises StoreError.
    """
    if rules.floors_s.keys() == FLOORS_S.keys():
        return
    told = dataclasses.replace(rules, floors_s=FLOORS_S, only=("latency",), calibration=None)
    findings = compare(base, head, told).findings
    for name in FLOORS_S:
        own = [found for found in findings if found.metric == name]
        effects = [found.effect for found in own if found.effect is not None]
        if effects:
            low, middle, high = min(effects), statistics.median(effects), max(effects)
            yield (
                f"Wall clock, not gated: {metric(name).label} {middle:+.1%} in the median of {len(effects)} "
                f"points ({low:+.1%} to {high:+.1%})."
            )
        elif own:
            yield f"Wall clock, not gated: {metric(name).label} is valid nowhere; the machine was busy."
