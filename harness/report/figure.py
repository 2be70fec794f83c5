"""A figure: panels above each other over one x axis, what their lines are called, and small print.

Matplotlib lays it out once (constrained layout), for both of its files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawn
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .html import printable
from .plot import MUTED, Panel, Pen
from .words import folded, text_width

LEGEND_PT, SMALL_PT = 9.0, 6.5
#: Points of a legend: its handles, between handle and name, between columns; at the figure's edges.
HANDLE, BESIDE, BETWEEN, PAD = 21.0, 7.0, 12.0, 6.0
#: So many lines of a legend fit into a figure's stated height; it grows by `LINE_IN` for each further one.
LEGEND_LINES, LINE_IN = 5, 0.19
#: What stands to the left of a title, in points; so many of its lines are in the stated height.
BESIDE_TITLE, TITLE_LINES = 58.0, 2


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a pen, or a filled box of a colour."""

    name: str
    pen: Pen | None = None
    color: str = ""

    def handle(self, name: str) -> Line2D | Patch:
        """What stands for it; `name` is broken into lines."""
        return (
            Line2D([], [], label=name, **self.pen.look) if self.pen else Patch(color=self.color, label=name)
        )


@dataclass
class Figure:
    """`shares` are the heights of the panels as parts; sizes in inches; at most so many `columns`."""

    width_in: float
    height_in: float
    panels: list[Panel] = field(default_factory=lambda: [Panel()])
    shares: list[float] = field(default_factory=lambda: [1.0])
    entries: list[Entry] = field(default_factory=list)
    columns: int = 3
    handle: float = HANDLE
    remark: str = ""
    footnote: str = ""

    def drawn(self, dpi: int) -> Drawn:
        """Everything in its place, on a canvas of Agg; within the settings of canvas.py."""
        fig = Drawn(figsize=(self.width_in, self.height_in), dpi=dpi, layout="constrained")
        FigureCanvasAgg(fig)  # the layout measures with what draws
        count = len(self.panels)
        axes = fig.subplots(count, 1, sharex=True, height_ratios=self.shares, squeeze=False)[:, 0]
        more = 0
        for panel, own in zip(self.panels, axes, strict=True):
            panel.onto(own)
            more += self._title(panel, own)
        more += self._legend(fig)
        if self.footnote:
            text = self._small(self.footnote)
            fig.supxlabel(text, x=0.02, ha="left", fontsize=SMALL_PT, color=MUTED)
        fig.set_figheight(self.height_in + LINE_IN * more)
        fig.get_layout_engine().execute(fig)
        fig.set_layout_engine("none")
        return fig

    def _title(self, panel: Panel, axes: Any) -> int:
        """How many lines it takes beyond those that there is room for."""
        if not panel.title:
            return 0
        width = 72 * self.width_in - BESIDE_TITLE
        lines = folded(printable(panel.title), width, panel.title_size, bold=True, most=8)
        axes.set_title("\n".join(lines), fontsize=panel.title_size)
        return max(0, len(lines) - max(TITLE_LINES, 1 + panel.title.count("\n")))

    def _legend(self, fig: Drawn) -> int:
        """The same of the legend, which has as many columns as its names leave room for."""
        if not self.entries:
            return 0
        room = 72 * self.width_in - 2 * PAD
        beside = self.handle + BESIDE + BETWEEN
        names = [folded(printable(entry.name), room - beside, LEGEND_PT) for entry in self.entries]
        widest = max(text_width(line, LEGEND_PT) for name in names for line in name)
        columns = max(1, min(self.columns, int((room + BETWEEN) / (widest + beside))))
        box = fig.legend(
            handles=[e.handle("\n".join(name)) for e, name in zip(self.entries, names, strict=True)],
            loc="outside lower left",
            ncols=columns,
            handlelength=self.handle / LEGEND_PT,
            handletextpad=BESIDE / LEGEND_PT,
            columnspacing=BETWEEN / LEGEND_PT,
        )
        lines = np.array_split([len(name) for name in names], columns)  # as the legend deals them
        if self.remark:
            box.set_title(self._small(self.remark), prop={"size": SMALL_PT})
            box.get_title().set_color(MUTED)
            box.set_alignment("left")
        return max(0, max(sum(column) for column in lines) - LEGEND_LINES)

    def _small(self, text: str) -> str:
        return "\n".join(folded(printable(text), 72 * self.width_in - 2 * PAD, SMALL_PT))
