"""Figures as files: what `figure.Figure` says, laid out by Matplotlib and written as PNG and as SVG.

Matplotlib lays a figure out once (constrained layout), for both of its files. It is imported here, in axes.py
and in words.py alone, which nothing imports before a figure is really drawn: in processes beside the one that
makes the page (pool.py). Deterministic by construction: no pyplot state, no user's matplotlibrc, a hash salt
per figure, no date.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawn
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .axes import look, onto
from .figure import Entry, Figure
from .html import printable
from .plot import GRID, INK, MUTED, Panel
from .words import FONT, folded, text_width

#: Pixels per inch of a PNG, and how hard zlib tries: the hardest takes ten times as long for a tenth less.
DPI, COMPRESS_LEVEL = 144, 3
LEGEND_PT, SMALL_PT = 9.0, 6.5
#: Points of a legend: between handle and name, between columns; at the figure's edges.
BESIDE, BETWEEN, PAD = 7.0, 12.0, 6.0
#: So many lines of a legend fit into a figure's stated height; it grows by `LINE_IN` for each further one.
LEGEND_LINES, LINE_IN = 5, 0.19
#: What stands to the left of a title, in points; so many of its lines are in the stated height.
BESIDE_TITLE, TITLE_LINES = 58.0, 2

#: Matplotlib's own settings, whatever the user's are, and ours. What a run names is never read as formulas.
RC = dict(matplotlib.rcParamsDefault) | {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "font.size": 10.0,
    "axes.formatter.useoffset": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "path.simplify_threshold": 0.5,
}
RC = {name: value for name, value in RC.items() if not name.startswith(("backend", "interactive", "webagg"))}


def files(figure: Figure, slug: str) -> tuple[str, bytes]:
    """The SVG and the PNG of a figure; equal figures are equal bytes, wherever they are drawn."""
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(RC | {"svg.hashsalt": slug}), warnings.catch_warnings():
        # The names of a run may hold what this font lacks: the SVG is shown in fonts that have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        drawn = _drawn(figure)
        quick = {"compress_level": COMPRESS_LEVEL}
        drawn.canvas.print_png(png, metadata={"Software": None}, pil_kwargs=quick)
        drawn.patch.set_visible(False)
        FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None, "Creator": None})
    return svg.getvalue(), png.getvalue()


def _drawn(figure: Figure) -> Drawn:
    """Everything in its place, on a canvas of Agg."""
    fig = Drawn(figsize=(figure.width_in, figure.height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)  # the layout measures with what draws
    count = len(figure.panels)
    axes = fig.subplots(count, 1, sharex=True, height_ratios=figure.shares, squeeze=False)[:, 0]
    more = 0
    for panel, own in zip(figure.panels, axes, strict=True):
        onto(panel, own)
        more += _title(panel, own, figure.width_in)
    more += _legend(figure, fig)
    if figure.footnote:
        text = _small(figure.footnote, figure.width_in)
        fig.supxlabel(text, x=0.02, ha="left", fontsize=SMALL_PT, color=MUTED)
    fig.set_figheight(figure.height_in + LINE_IN * more)
    fig.get_layout_engine().execute(fig)
    fig.set_layout_engine("none")
    return fig


def _title(panel: Panel, axes: Any, width_in: float) -> int:
    """How many lines it takes beyond those that there is room for."""
    if not panel.title:
        return 0
    width = 72 * width_in - BESIDE_TITLE
    lines = folded(printable(panel.title), width, panel.title_size, bold=True, most=8)
    axes.set_title("\n".join(lines), fontsize=panel.title_size)
    return max(0, len(lines) - max(TITLE_LINES, 1 + panel.title.count("\n")))


def _legend(figure: Figure, fig: Drawn) -> int:
    """The same of the legend, which has as many columns as its names leave room for."""
    if not figure.entries:
        return 0
    room = 72 * figure.width_in - 2 * PAD
    beside = figure.handle + BESIDE + BETWEEN
    names = [folded(printable(entry.name), room - beside, LEGEND_PT) for entry in figure.entries]
    widest = max(text_width(line, LEGEND_PT) for name in names for line in name)
    columns = max(1, min(figure.columns, int((room + BETWEEN) / (widest + beside))))
    box = fig.legend(
        handles=[_handle(e, "\n".join(name)) for e, name in zip(figure.entries, names, strict=True)],
        loc="outside lower left",
        ncols=columns,
        handlelength=figure.handle / LEGEND_PT,
        handletextpad=BESIDE / LEGEND_PT,
        columnspacing=BETWEEN / LEGEND_PT,
    )
    lines = np.array_split([len(name) for name in names], columns)  # as the legend deals them
    if figure.remark:
        box.set_title(_small(figure.remark, figure.width_in), prop={"size": SMALL_PT})
        box.get_title().set_color(MUTED)
        box.set_alignment("left")
    return max(0, max(sum(column) for column in lines) - LEGEND_LINES)


def _handle(entry: Entry, name: str) -> Line2D | Patch:
    """What stands for it; `name` is broken into lines."""
    return (
        Line2D([], [], label=name, **look(entry.pen)) if entry.pen else Patch(color=entry.color, label=name)
    )


def _small(text: str, width_in: float) -> str:
    return "\n".join(folded(printable(text), 72 * width_in - 2 * PAD, SMALL_PT))
