"""A comparison as lines of text: what the terminal, the Markdown table and JUnit have in common.

One row per finding that is worth a look, gravest first. What is SAME is folded to counts, what is
INSUFFICIENT to one line per reason: a page of dashes hides the one line that matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..metrics import NOTHING, metric
from .findings import (
    EXIT_INCOMPARABLE,
    EXIT_INSUFFICIENT,
    EXIT_PASS,
    EXIT_REGRESSION,
    KINDS,
    Comparison,
    Finding,
)

COLUMNS = ("verdict", "architecture", "cell", "number", "base", "head", "change", "95 % interval", "how")
NAMES = {
    EXIT_PASS: "pass",
    EXIT_REGRESSION: "regression",
    EXIT_INCOMPARABLE: "incomparable",
    EXIT_INSUFFICIENT: "insufficient",
}
FOLDED = ("SAME", "INSUFFICIENT")


def headline(comparison: Comparison) -> str:
    """The outcome in one sentence."""
    outcome = NAMES[comparison.exit_code].upper()
    if comparison.refusals:
        return f"{outcome}: base and head differ in {'; '.join(comparison.refusals)}."
    counts = ", ".join(f"{number} {verdict}" for verdict, number in comparison.counts.items())
    return f"{outcome}: {len(comparison.findings)} findings ({counts or 'nothing to compare'})."


def rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Cells of the table, by COLUMNS."""
    suites = suite_names(comparison.findings)
    return [
        (
            found.verdict,
            found.architecture,
            " ".join(filter(None, (suites[found.suite], found.place))),
            found.label,
            *(metric(found.metric).format(value) for value in (found.base, found.head)),
            change(found),
            interval(found),
            how(found),
        )
        for found in comparison.findings
        if found.verdict not in FOLDED
    ]


def folded(comparison: Comparison) -> list[str]:
    """What the table leaves out: counts of SAME by kind, reasons of INSUFFICIENT."""
    same = Counter(found.kind for found in comparison.findings if found.verdict == "SAME")
    counts = ", ".join(f"{same[kind]} {kind}" for kind in KINDS if same[kind])
    told = [f"SAME: {counts}."] if counts else []
    few = Counter(found.message for found in comparison.findings if found.verdict == "INSUFFICIENT")
    told += [f"INSUFFICIENT: {number} × {message}." for message, number in few.items()]
    failing = [f for f in comparison.findings if f.verdict == "SAME" and f.kind == "cell"]
    told += [f"{found.architecture} {found.suite} {found.place}: {found.message}." for found in failing]
    return told + list(_limits(comparison))


def _limits(comparison: Comparison) -> Iterator[str]:
    """What a latency had to exceed: a SAME at a limit of 20 % says less than one at 5 %."""
    limits = [f.threshold for f in comparison.findings if f.kind == "latency" and f.threshold is not None]
    if not limits:
        return
    noise = comparison.rules.calibration
    of = "the noise of this machine is not known (kvmark calibrate)"
    if noise:
        of = f"the noise of this machine, calibrated {noise.created[:10]}, where it is above the threshold"
    low, high = (f"{100 * limit:.3g} %" for limit in (min(limits), max(limits)))
    told = low if low == high else f"{low} to {high}"
    yield f"Latencies had to change by more than {told}: {of}."


def suite_names(findings: list[Finding]) -> dict[str, str]:
    """Suites without their options, where that still tells them apart."""
    specs = dict.fromkeys(found.suite for found in findings)
    short = Counter(spec.partition(":")[0] for spec in specs)
    return {spec: name if short[name := spec.partition(":")[0]] == 1 else spec for spec in specs}


def change(found: Finding) -> str:
    """The effect with its sign: per cent of base; of quality points, or the metric's unit."""
    return _signed(found, found.effect)


def interval(found: Finding) -> str:
    if found.low is None or found.high is None:
        return NOTHING
    return f"{_signed(found, found.low)} to {_signed(found, found.high)}"


def _signed(found: Finding, value: float | None) -> str:
    if value is None:
        return NOTHING
    if found.kind != "quality":
        # A byte more of a gigabyte is MORE: it must not read as no change.
        return f"{100 * value:+.1f} %" if abs(value) >= 5e-4 or not value else f"{100 * value:+.1e} %"
    known = metric(found.metric)
    return f"{100 * value:+.1f} points" if known.unit == "share" else f"{value:+.3g} {known.unit}"


def how(found: Finding) -> str:
    """The test, its p after Holm, the number of samples, doubts."""
    counts = f"n {found.num_base}/{found.num_head}" if found.kind in ("latency", "quality") else ""
    p = f"p {found.p:.2g}" if found.p is not None else ""
    suspect = f"suspect: {found.suspect}" if found.suspect else ""
    return "; ".join(filter(None, (found.message, p, counts, suspect)))
