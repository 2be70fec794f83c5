"""How every figure looks, and how it becomes an SVG that follows the page into dark mode.

Figures are drawn once with the literal colours of the light theme. The PNG keeps them on white; in
the SVG each literal is the CSS variable it stands for (text and axes by `currentColor`), the background is
transparent and text stays text. Colour and marker are dealt by family, line style and further markers by
variant. Families that are named here look alike on every page; the others, and variants, are dealt anew for
each list of architectures: a part of a crowded page (`budgets.only`) deals among its own. Every mark is
filled. Two things alone are hollow: in charts over budgets a policy that had nothing to do
(`budget_lines.py`, its own mark), and everywhere a point in doubt (`doubt.py`, a ring, which nobody has
as a mark).

Deterministic by construction: no pyplot state, no user's matplotlibrc, a hash salt per figure, no date.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG

from .figure import Entry, Figure
from .groups import family
from .html import Table, escaped
from .plot import GRID, INK, MUTED, PAPER, Panel, Pen
from .pool import Later, later
from .words import FONT

#: family -> (light colour, CSS variable, marker); Okabe and Ito's palette, darkened where white asks for it.
FAMILIES = {
    "transformer": ("#3d444d", "--transformer", "s"),
    "yoco": ("#00876a", "--yoco", "o"),
    "tova": ("#0072b2", "--tova", "^"),
    "lococo": ("#d55e00", "--lococo", "D"),
    "window": ("#a88a00", "--window", "v"),
    "random": ("#c06a9a", "--random", "X"),
}
#: Families that are not ours take these in the order of their appearance.
OTHERS = (
    ("#7a5195", "--other-1", "P"),
    ("#8c564b", "--other-2", "*"),
    ("#5f7f1f", "--other-3", "h"),
    ("#4f6f8f", "--other-4", "<"),
    ("#8f1d2c", "--other-5", ">"),
    ("#0f7b8a", "--other-6", "p"),
)
#: Markers of the second variant of a family and further ones.
VARIANT_MARKERS = ((4, 1, 0), "H", "d")
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 2), (1, 1.5), (5, 1.5, 1, 1.5))
#: One hue for shares from 0 to 1, in steps of a tenth; dark mode runs the other way.
RAMP = tuple(
    "#" + "".join(f"{round(low + (high - low) * step / 10):02x}" for low, high in zip(*ends, strict=True))
    for ends in [((0xF1, 0xF3, 0xF5), (0x0A, 0x4F, 0x86))]
    for step in range(11)
)
ON_LIGHT, ON_DARK = "#1b1f24", "#fefefe"
#: Names longer than this are broken at their commas in a legend: two columns fit into a narrow figure.
LABEL_WIDTH = 25
#: Pixels per inch of a PNG, and how hard zlib tries: the hardest takes ten times as long for a tenth less.
DPI, COMPRESS_LEVEL = 144, 3

VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    ON_LIGHT: "var(--on-low)",
    ON_DARK: "var(--on-high)",
    **{colour: f"var({name})" for colour, name, _ in (*FAMILIES.values(), *OTHERS)},
    **{colour: f"var(--ramp-{step})" for step, colour in enumerate(RAMP)},
}

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

#: What becomes of a figure: (inline SVG, PNG bytes).
Drawing = Later[tuple[str, bytes]]


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


def tick(text: str) -> str:
    """A tick's label without the zeros of three significant digits: "2.00 ms" -> "2 ms"."""
    number, _, unit = text.partition(" ")
    number = number.rstrip("0").rstrip(".") if "." in number and unit else number
    return f"{number} {unit}".strip()


def millions(value: float) -> str:
    """Tokens of a training on an axis: 2.5e6 -> "2.5 M"."""
    return f"{value / 1e6:g} M"


def render(fig: Figure, slug: str, title: str) -> Drawing:
    """The figure as it is now, drawn in another process where the page is (pool.py)."""
    return later(lambda: _files(fig, slug, title))


def _files(fig: Figure, slug: str, title: str) -> tuple[str, bytes]:
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(RC | {"svg.hashsalt": slug}), warnings.catch_warnings():
        # The names of a run may hold what this font lacks: the SVG is shown in fonts that have it.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        drawn = fig.drawn(DPI)
        quick = {"compress_level": COMPRESS_LEVEL}
        drawn.canvas.print_png(png, metadata={"Software": None}, pil_kwargs=quick)
        drawn.patch.set_visible(False)
        FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None, "Creator": None})
    return _inline(svg.getvalue(), slug, title), png.getvalue()


def _inline(svg: str, slug: str, title: str) -> str:
    """An SVG file as an element of a page: ids of its own, colours of the page, fluid width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _tag(tag[0], slug), svg)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    size = f'style="width:{float(width) * 4 / 3:.0f}px" width="{width}pt" height="{height}pt"'
    svg = svg.replace(f'width="{width}pt" height="{height}pt"', size, 1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escaped(title)}" ', 1).strip()


def _tag(tag: str, slug: str) -> str:
    """A tag of the file, for the page."""
    if tag.startswith("<svg"):
        tag = re.sub(r'\s(?:xmlns|xmlns:xlink)="[^"]*"', "", tag)
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r'(\sid="|href="#|url\(#)', lambda match: f"{match[1]}{slug}-", tag)
    return re.sub(r"#[0-9a-f]{6}", lambda colour: VARIABLES.get(colour[0], colour[0]), tag)
