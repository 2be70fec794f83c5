"""How a point in doubt is drawn: its own mark hollow within a ring; a cross in the ring is invalid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .doubt import Doubt
from .plot import MUTED, PAPER, Panel, Pen

MARKS = {"suspect": "o", "invalid": "crossed"}
#: By how many points a ring is larger than the mark in it.
WIDER_PT = 6.0


def ringed(panel: Panel, x: float, y: float, pen: Pen, doubt: Doubt | None) -> None:
    """Over a point that is drawn already; nothing where there is no doubt."""
    if doubt is None:
        return
    ring = Pen(pen.color, marker=MARKS[doubt.verdict], size=pen.size + WIDER_PT, face="none", edge_width=1.1)
    panel.plot([x], [y], replace(pen, width=0.0, face=PAPER))
    panel.plot([x], [y], ring)


def explained(found: Iterable[Doubt | None]) -> dict[str, Pen]:
    """Entries of a legend for the verdicts that occur among these."""
    met = {doubt.verdict for doubt in found if doubt is not None}
    return {
        f"{verdict} (table)": Pen(MUTED, marker=mark, size=12.0, face="none", edge_width=1.1)
        for verdict, mark in MARKS.items()
        if verdict in met
    }
