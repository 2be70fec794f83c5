"""Panels onto axes of Matplotlib: what `plot.Panel` and `axis.Axis` say, in the order of their calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .axis import Axis
from .html import printable
from .plot import GRID, Panel, Pen

#: Marks that Matplotlib has no name for.
MARKS = {
    "crossed": Path.make_compound_path(
        Path.unit_circle(), Path([(-0.7, -0.7), (0.7, 0.7)]), Path([(-0.7, 0.7), (0.7, -0.7)])
    )
}


def look(pen: Pen) -> dict[str, Any]:
    """Keyword arguments of a Line2D."""
    line = (0, pen.dash) if pen.dash else "-"
    return {
        "color": pen.color,
        "linewidth": pen.width,
        "linestyle": line if pen.width else "none",
        "marker": MARKS.get(pen.marker, pen.marker) or "none",
        "markersize": pen.size,
        "markerfacecolor": pen.face or pen.color,
        "markeredgecolor": pen.color,
        "markeredgewidth": pen.edge_width,
        "alpha": pen.alpha,
    }


def onto(panel: Panel, axes: Axes) -> None:
    """Draw it all, but for the title."""
    _scale(panel.x, axes, "x")
    _scale(panel.y, axes, "y")
    for color, boxes in panel.filled.items():
        axes.add_patch(PathPatch(_path(boxes), facecolor=color, linewidth=0))
    if panel.hatched:
        strokes = {"facecolor": "none", "edgecolor": GRID, "hatch": "////"}
        axes.add_patch(PathPatch(_path(panel.hatched), linewidth=0, **strokes))
    axes.autoscale_view()
    for verb, arguments, keywords in panel.told:
        VERBS[verb](axes, *arguments, **keywords)
    _finish(panel.x, axes, "x")
    _finish(panel.y, axes, "y")
    if panel.down:
        axes.invert_yaxis()
    if not panel.framed:
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    for artist in (*axes.lines, *axes.patches):
        artist.set_in_layout(False)  # all are within the axes, whose place is asked for


def _plot(axes: Axes, x: list[float], y: list[float], pen: Pen, **more: Any) -> None:
    axes.plot(x, y, **look(pen) | more)


def _level(axes: Axes, y: float, pen: Pen) -> None:
    axes.axhline(y, zorder=1.5, **look(pen))


def _on_axis(axes: Axes, x: float, pen: Pen) -> None:
    axes.add_line(
        Line2D([x], [0], transform=axes.get_xaxis_transform(), clip_on=False, zorder=5, **look(pen))
    )


def _word(axes: Axes, x: float, y: float, text: str, size: float, color: str) -> None:
    middle = {"ha": "center", "va": "center", "in_layout": False}
    axes.text(x, y, printable(text), fontsize=size, color=color, **middle)


VERBS: dict[str, Callable[..., None]] = {"plot": _plot, "level": _level, "on_axis": _on_axis, "word": _word}


def _path(boxes: list[tuple[float, float, float, float]]) -> Path:
    return Path.make_compound_path(
        *(
            Path([(x, y), (x, y + high), (x + wide, y + high), (x + wide, y), (x, y)], closed=True)
            for x, y, wide, high in boxes
        )
    )


def _scale(said: Axis, axes: Axes, which: str) -> None:
    """Before anything is drawn. `which`: "x" or "y"."""
    if said.log:
        getattr(axes, f"set_{which}scale")("log", base=said.log)


def _finish(said: Axis, axes: Axes, which: str) -> None:
    """Once everything is drawn: limits, ticks, labels and the name."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    limits = getattr(axes, f"get_{which}lim")
    if said.low is not None or said.high is not None:
        getattr(axes, f"set_{which}lim")(said.low, said.high)
    ticks = said.ticks
    if said.log and ticks is None:
        ticks = round_numbers(*limits(), said.log)
    if ticks is not None:
        low, high = sorted(limits())
        kept = [n for n, at in enumerate(ticks) if low <= at <= high]
        labels = said.labels and [printable(said.labels[n]) for n in kept]
        axis.set_ticks([ticks[n] for n in kept], labels=labels)
        axis.set_minor_locator(NullLocator())
    if said.format and not said.labels:
        axis.set_major_formatter(FuncFormatter(lambda value, _: said.format(value)))
    turned = {"labelrotation": said.degrees} if said.degrees else {}
    axes.tick_params(which, labelsize=said.label_size, **turned)
    if said.name:
        axis.set_label_text(printable(said.name), fontsize=said.name_size)


def round_numbers(low: float, high: float, base: int) -> list[float]:
    """Ticks inside [low, high]: powers where there are enough, else finer steps between them."""
    powers = [
        float(base) ** n for n in range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    ]
    steps = (
        [(1.0,), (1.0, 1.5)] if base == 2 else [(1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)]
    )
    for factors in steps:
        found = [power * factor for power in powers for factor in factors if low <= power * factor <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 7)]
    return [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high and tick > 0]
