"""What a chart says of its data: pens, and a panel that is told what to draw with them.

A panel keeps what it is told, as plain data, until it is drawn (axes.py), which another process does
(pool.py): a chart is cheap to describe, and dear to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .axis import Axis

INK, MUTED, GRID, PAPER = "#24292f", "#6e7781", "#d8dee4", "#fffffe"
TITLE_PT = 10.5

#: Something to draw: (a verb of draw.py, its arguments, its keywords).
Told = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Pen:
    """How a series is drawn: `width` 0 is no line, no `marker` no marks; `dash` in widths of the line.

    A marker is one of Matplotlib's or "crossed", a circle with a cross in it.
    """

    color: str = INK
    width: float = 0.0
    dash: tuple[float, ...] = ()
    marker: Any = ""
    size: float = 6.0
    face: str = ""
    edge_width: float = 1.0
    alpha: float | None = None


@dataclass
class Panel:
    """Everything in units of `x` and `y`; drawn in the order of the calls."""

    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""
    title_size: float = TITLE_PT
    framed: bool = True
    down: bool = False
    told: list[Told] = field(default_factory=list)
    filled: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)
    hatched: list[tuple[float, float, float, float]] = field(default_factory=list)

    def plot(self, x: Iterable[float], y: Iterable[float], pen: Pen, every: tuple[int, int] = (0, 1)) -> None:
        """A series; marks stand at every k-th point from the first that `every` names."""
        marks = {} if every == (0, 1) else {"markevery": every}
        self.told.append(("plot", (list(x), list(y), pen), marks))

    def whiskers(self, x: Sequence[float], ends: Sequence[tuple[float, float]], pen: Pen, cap: float) -> None:
        """Upright strokes with caps of `cap` points to either side, all of them one line with gaps."""
        caps = {"marker": "_", "markersize": 2 * cap} if cap else {}
        across = [at for one in x for at in (one, one, math.nan)]
        upright = [at for low, high in ends for at in (low, high, math.nan)]
        self.told.append(("plot", (across, upright, pen), caps))

    def level(self, y: float, pen: Pen) -> None:
        """A line across, at one height."""
        self.told.append(("level", (y, pen), {}))

    def on_axis(self, x: float, pen: Pen) -> None:
        """A mark on the x axis, whatever the heights."""
        self.told.append(("on_axis", (x, pen), {}))

    def boxes(self, boxes: Iterable[tuple[float, float, float, float]], color: str) -> None:
        """Filled boxes (x, y, width, height); all of one colour are a single path."""
        self.filled.setdefault(color, []).extend(boxes)

    def hatch(self, x: float, y: float) -> None:
        """A box of one unit in slanting strokes."""
        self.hatched.append((x, y, 1, 1))

    def word(self, x: float, y: float, text: str, size: float, color: str) -> None:
        """A word around a point."""
        self.told.append(("word", (x, y, text, size, color), {}))
