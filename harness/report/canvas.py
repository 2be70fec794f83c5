"""How every figure looks: which architecture has which colour, mark and line, and what its legend says.

Colour and marker are dealt by family, line style and further markers by variant. Families that are named in
palette.py look alike on every page; the others, and variants, are dealt anew for each list of architectures:
a part of a crowded page (`budgets.only`) deals among its own. Every mark is filled. Two things alone are
hollow: in charts over budgets a policy that had nothing to do (`budget_lines.py`, its own mark), and
everywhere a point in doubt (`doubt.py`, a ring, which nobody has as a mark).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .figure import Entry, Figure
from .groups import family
from .html import Table
from .palette import FAMILIES, OTHERS
from .plot import Panel, Pen
from .render import Drawing

#: Markers of the second variant of a family and further ones.
VARIANT_MARKERS = ((4, 1, 0), "H", "d")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5), (5, 1.5, 1, 1.5))
#: Names longer than this are broken at their commas in a legend: two columns fit into a narrow figure.
LABEL_WIDTH = 25


@dataclass(frozen=True)
class Style:
    """How one architecture is drawn, everywhere."""

    color: str
    marker: str
    dash: tuple[float, ...]
    size: float

    def line(self, width: float = 1.6, size: float | None = None) -> Pen:
        """A line with markers."""
        return Pen(self.color, width, self.dash, self.marker, size or self.size)

    def points(self, size: float | None = None) -> Pen:
        """Markers alone."""
        return Pen(self.color, marker=self.marker, size=size or self.size)

    def bare(self, width: float, alpha: float = 1.0) -> Pen:
        """A line without markers."""
        return Pen(self.color, width, self.dash, alpha=alpha)


@dataclass(frozen=True)
class Chart:
    """A drawn figure, its file name without ending, and the numbers it shows."""

    slug: str
    title: str
    drawing: Drawing
    table: Table
    wide: bool = False
    note: str = ""

    @property
    def svg(self) -> str:
        return self.drawing.result()[0]

    @property
    def png(self) -> bytes:
        return self.drawing.result()[1]


def styles(architectures: list[str]) -> dict[str, Style]:
    """A style for every architecture; the second variant of a family has a dash and a marker of its own.

    Later ones have smaller markers, so that of two equal points both are seen.
    """
    unknown = [name for name in dict.fromkeys(map(family, architectures)) if name not in FAMILIES]
    known = {**FAMILIES, **{name: OTHERS[index % len(OTHERS)] for index, name in enumerate(unknown)}}
    seen: Counter[str] = Counter()
    found: dict[str, Style] = {}
    for place, spec in enumerate(architectures):
        color, _, marker = known[family(spec)]
        variant = seen[family(spec)]
        marker = VARIANT_MARKERS[(variant - 1) % len(VARIANT_MARKERS)] if variant else marker
        found[spec] = Style(color, marker, DASHES[variant % len(DASHES)], max(4.5, 8.0 - 0.5 * place))
        seen[family(spec)] += 1
    return found


def figure(width_in: float, height_in: float) -> tuple[Figure, Panel]:
    """An empty figure and its panel; narrow ones (≤ 5 in) keep their text legible on a phone."""
    found = Figure(width_in, height_in)
    return found, found.panels[0]


def wrapped(name: str, width: int = LABEL_WIDTH) -> str:
    """A spec in lines of at most `width` characters, broken behind colons and commas (else anywhere)."""
    if len(name) <= width:
        return name
    lines = [""]
    for part in re.findall(rf"[^:,]{{0,{width - 1}}}[:,]|[^:,]{{1,{width}}}", name):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(filter(None, lines))


def short(name: str) -> str:
    """A name that may be as long as its owner likes, in so many characters as a legend's column holds."""
    return name if len(name) <= LABEL_WIDTH else name[: LABEL_WIDTH - 1] + "…"


def legend(fig: Figure, used: dict[str, Pen], remark: str = "") -> None:
    """What is drawn, below the axes; `remark` is a line of small print above it."""
    fig.entries = [Entry(wrapped(name), pen) for name, pen in used.items()]
    fig.remark = remark
