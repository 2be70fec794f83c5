"""What a chart says of its data: pens, and a panel that draws with them onto axes of Matplotlib.

A panel keeps what it is told until it is drawn, which another process may do (pool.py): a chart is cheap to
describe, and dear to draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from .axis import Axis
from .html import printable

INK, MUTED, GRID, PAPER = "#24292f", "#6e7781", "#d8dee4", "#fffffe"
TITLE_PT = 10.5


@dataclass(frozen=True)
class Pen:
    """How a series is drawn: `width` 0 is no line, no `marker` no marks; `dash` in widths of the line."""

    color: str = INK
    width: float = 0.0
    dash: tuple[float, ...] = ()
    marker: Any = ""
    size: float = 6.0
    face: str = ""
    edge_width: float = 1.0
    alpha: float | None = None

    @property
    def look(self) -> dict[str, Any]:
        """Keyword arguments of a Line2D."""
        line = (0, self.dash) if self.dash else "-"
        return {
            "color": self.color,
            "linewidth": self.width,
            "linestyle": line if self.width else "none",
            "marker": self.marker or "none",
            "markersize": self.size,
            "markerfacecolor": self.face or self.color,
            "markeredgecolor": self.color,
            "markeredgewidth": self.edge_width,
            "alpha": self.alpha,
        }


@dataclass
class Panel:
    """Everything in units of `x` and `y`; drawn in the order of the calls."""

    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""
    title_size: float = TITLE_PT
    framed: bool = True
    down: bool = False
    told: list[Callable[[Axes], Any]] = field(default_factory=list)
    filled: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)
    hatched: list[tuple[float, float, float, float]] = field(default_factory=list)

    def plot(self, x: Iterable[float], y: Iterable[float], pen: Pen, every: tuple[int, int] = (0, 1)) -> None:
        """A series; marks stand at every k-th point from the first that `every` names."""
        x, y = list(x), list(y)
        marks = {} if every == (0, 1) else {"markevery": every}
        self.told.append(lambda axes: axes.plot(x, y, **marks, **pen.look))

    def whiskers(self, x: Sequence[float], ends: Sequence[tuple[float, float]], pen: Pen, cap: float) -> None:
        """Upright strokes with caps of `cap` points to either side, all of them one line with gaps."""
        caps = {"marker": "_", "markersize": 2 * cap} if cap else {}
        across = [at for one in x for at in (one, one, math.nan)]
        upright = [at for low, high in ends for at in (low, high, math.nan)]
        self.told.append(lambda axes: axes.plot(across, upright, **pen.look | caps))

    def level(self, y: float, pen: Pen) -> None:
        """A line across, at one height."""
        self.told.append(lambda axes: axes.axhline(y, zorder=1.5, **pen.look))

    def on_axis(self, x: float, pen: Pen) -> None:
        """A mark on the x axis, whatever the heights."""
        self.told.append(
            lambda axes: axes.add_line(
                Line2D([x], [0], transform=axes.get_xaxis_transform(), clip_on=False, zorder=5, **pen.look)
            )
        )

    def boxes(self, boxes: Iterable[tuple[float, float, float, float]], color: str) -> None:
        """Filled boxes (x, y, width, height); all of one colour are a single path."""
        self.filled.setdefault(color, []).extend(boxes)

    def hatch(self, x: float, y: float) -> None:
        """A box of one unit in slanting strokes."""
        self.hatched.append((x, y, 1, 1))

    def word(self, x: float, y: float, text: str, size: float, color: str) -> None:
        """A word around a point."""
        look = {"ha": "center", "va": "center", "fontsize": size, "color": color, "in_layout": False}
        self.told.append(lambda axes: axes.text(x, y, printable(text), **look))

    def onto(self, axes: Axes) -> None:
        """Draw it all, but for the title."""
        self.x.scale(axes, "x")
        self.y.scale(axes, "y")
        for color, boxes in self.filled.items():
            axes.add_patch(PathPatch(_path(boxes), facecolor=color, linewidth=0))
        if self.hatched:
            axes.add_patch(
                PathPatch(_path(self.hatched), facecolor="none", edgecolor=GRID, hatch="////", linewidth=0)
            )
        axes.autoscale_view()
        for one in self.told:
            one(axes)
        self.x.finish(axes, "x")
        self.y.finish(axes, "y")
        if self.down:
            axes.invert_yaxis()
        if not self.framed:
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
        for artist in (*axes.lines, *axes.patches):
            artist.set_in_layout(False)  # all are within the axes, whose place is asked for


def _path(boxes: list[tuple[float, float, float, float]]) -> Path:
    return Path.make_compound_path(
        *(
            Path([(x, y), (x, y + high), (x + wide, y + high), (x + wide, y), (x, y)], closed=True)
            for x, y, wide, high in boxes
        )
    )
