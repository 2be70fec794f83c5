"""Points in doubt: what is suspect or invalid, how that is marked in a table, and why.

Every row has a verdict of its own (harness.validity). A point of a chart and a field of a table stand for
many rows: theirs is the worst verdict that more than half of the rows share, where an invalid row counts as
suspect, too. So one bad repeat of five spoils nothing, and three do. Rows that nobody judged speak for no
doubt. A score is a mean over its cases, and one that means nothing is in it: there a single row will do.

    †  suspect    something speaks against the number     ring around a hollow mark (rings.py)
    ‡  invalid    the number must not be used             the same with a cross; never the best of a table
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..validity.reasons import REASONS
from .groups import Group, cost_rows, needle_judge
from .once import once

SIGNS = {"suspect": "†", "invalid": "‡"}


@dataclass(frozen=True)
class Doubt:
    """A verdict that is not "valid", and the names of its reasons."""

    verdict: str
    reasons: tuple[str, ...]

    @property
    def sign(self) -> str:
        """What stands behind the number."""
        return SIGNS[self.verdict]


def doubts(rows: pd.DataFrame, keys: list[str], tolerated: float = 0.5) -> dict[tuple, Doubt]:
    """Values of `keys` -> doubt, for those of which more than the tolerated share of rows is in doubt."""
    told = rows["validity"].isin(list(SIGNS))
    if not told.any():
        return {}
    marked = rows.assign(doubtful=told, invalid=rows["validity"] == "invalid")
    shares = marked.groupby(keys)[["doubtful", "invalid"]].mean()
    bad = marked[told].groupby(keys)["validity_reasons"].unique().to_dict()
    found = {}
    for key, doubtful, invalid in zip(shares.index, shares["doubtful"], shares["invalid"], strict=True):
        if doubtful > tolerated:
            verdict = "invalid" if invalid > tolerated else "suspect"
            found[key] = Doubt(verdict, _named(bad[key]))
    return found


def _named(texts: Iterable[object]) -> tuple[str, ...]:
    """Each reason once, in the order in which they are known; foreign ones last, as they are called."""
    names = {name for text in texts if isinstance(text, str) for name in text.split("; ") if name}
    order = list(REASONS)
    return tuple(sorted(names, key=lambda name: (order.index(name) if name in REASONS else len(order), name)))


@once
def cost_doubts(group: Group, metric: str) -> dict[tuple[str, float, float], Doubt]:
    """(architecture, context, requests in the batch) -> doubt about a cost metric."""
    return doubts(cost_rows(group, metric), ["architecture", "context", "num_requests"])


@once
def score_doubts(group: Group, suite: str, metrics: tuple[str, ...] = ()) -> dict[tuple[str, float], Doubt]:
    """(architecture, context) -> doubt about the scores of a suite: of these metrics, else of needles."""
    names = metrics or (needle_judge(suite)[0],)
    rows = group.ok[(group.ok["suite"] == suite) & group.ok["metric"].isin(names)]
    return doubts(rows, ["architecture", "context"], tolerated=0.0)


def objects(found: Iterable[Doubt | None]) -> np.ndarray:
    """Doubts as a column of a table: None stays None."""
    listed = list(found)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column


def signed(text: str, doubt: Doubt | None) -> str:
    """A number as it stands in a table."""
    return text if doubt is None else f"{text} {doubt.sign}"


def notes_of(found: Iterable[Doubt | None]) -> list[str]:
    """A line for each verdict that occurs: its sign, and every reason in words."""
    met: dict[str, set[str]] = {}
    for doubt in found:
        if doubt is not None:
            met.setdefault(doubt.verdict, set()).update(doubt.reasons)
    return [f"{SIGNS[v]} {v}: {_in_words(_named(met[v]))}" for v in SIGNS if v in met]


def _in_words(names: tuple[str, ...]) -> str:
    told = [f"{name}: {REASONS[name].sentence}" if name in REASONS else f"{name}." for name in names]
    return " ".join(told) or "No reason is given."
