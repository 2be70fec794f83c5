"""Cells that are gone, new, newly failing, mended, or that say nothing.

A cell that runs out of memory on both sides is an outcome that was measured, and the same. One that crashes
or times out on both sides, or that has no rows where it was planned, is no pass: nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from .findings import Finding
from .runs import Measured

Statuses = dict[int, str]  # by process


def cells(base: Measured, head: Measured) -> Iterator[Finding]:
    """A finding per cell that is not simply measured on both sides; in base's order."""
    planned = [set(base.points), set(head.points)]
    for point in dict.fromkeys([*base.points, *head.points]):
        before, after = base.statuses.get(point, {}), head.statuses.get(point, {})
        message = head.message(point) if _failed(after) else ""
        if told := _told(before, after, [point in side for side in planned], message):
            verdict, words = told
            counts = {"num_base": len(before), "num_head": len(after)}
            yield Finding(*point, "", "cell", verdict, **counts, message=words)


def _told(before: Statuses, after: Statuses, planned: list[bool], message: str) -> tuple[str, str] | None:
    """Verdict and words, None where there is nothing to tell. `message` is of the first failure in head."""
    lost, failed = _failed(before), _failed(after)
    if not before and planned[0]:
        return "INSUFFICIENT", f"planned, not measured {'in base' if after else 'on either side'}"
    if not before:
        return (
            ("NEW", _in_words(after, message)) if after else ("INSUFFICIENT", "planned, not measured in head")
        )
    if not after:
        return "MISSING", f"in head {'planned, not measured' if planned[1] else 'not in the plan'}"
    if len(failed) * len(before) > len(lost) * len(after):
        also = f"; in base {_in_words(before)}" if lost else ""
        return "NEW FAILURE", f"{_in_words(after, message)}{also}"
    if not lost:
        return None
    if not failed:
        return "MENDED", f"in base {_in_words(before)}"
    words = f"fails on both sides: {_in_words(before)}, now {_in_words(after)}"
    measured = len(lost) < len(before) and len(failed) < len(after)
    return ("SAME" if measured or {*lost, *failed} == {"oom"} else "INVALID"), words


def _failed(statuses: Statuses) -> list[str]:
    return [status for status in statuses.values() if status != "ok"]


def _in_words(statuses: Statuses, message: str = "") -> str:
    """ "oom in 2 of 8 processes: killed at its limit"."""
    failed = _failed(statuses)
    if not failed:
        return ""
    kinds = " and ".join(dict.fromkeys(failed))
    where = f" in {len(failed)} of {len(statuses)} processes" if len(statuses) > 1 else ""
    return f"{kinds}{where}{': ' if message else ''}{message}"
