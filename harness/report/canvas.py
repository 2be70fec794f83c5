"""How every figure looks, and how it becomes an SVG that follows the page into dark mode.

Figures are drawn once with the literal colours of the light theme. The PNG keeps them on white; in
the SVG each literal is replaced by the CSS variable it stands for (text and axes by `currentColor`),
the background is transparent and text stays text. Colour and marker are dealt by family, line style and
filling by variant. Families that are named here look alike on every page; the others, and variants, are
dealt anew for each list of architectures: a part of a crowded page (`budgets.only`) deals among its own.
Hollow is a variant (`variants_told`), but in charts over budgets (`budget_lines.py`), where it is a policy
that had nothing to do: there, and over training, variants have markers of their own (`marked`).

Deterministic by construction: no pyplot state, no user's matplotlibrc, a hash salt per figure, no date.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .groups import family
from .html import Table

INK, MUTED, GRID, PAPER = "#24292f", "#6e7781", "#d8dee4", "#fffffe"

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
#: Markers of the second variant of a family and further ones, where they are told apart so (`marked`).
VARIANT_MARKERS = ((4, 1, 0), "H", "d")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
#: One hue for shares from 0 to 1, in steps of a tenth; dark mode runs the other way.
RAMP = tuple(
    "#" + "".join(f"{round(low + (high - low) * step / 10):02x}" for low, high in zip(*ends, strict=True))
    for ends in [((0xF1, 0xF3, 0xF5), (0x0A, 0x4F, 0x86))]
    for step in range(11)
)
ON_LIGHT, ON_DARK = "#1b1f24", "#fefefe"
#: Names longer than this are broken at their commas in a legend: two columns fit into a narrow figure.
LABEL_WIDTH = 25
#: So many lines of a legend fit into a figure's stated height; it grows by `LINE_IN` for each further one.
LEGEND_LINES, LINE_IN = 5, 0.19

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

RC = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.titlesize": 10.5,
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
    "savefig.transparent": False,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True)
class Style:
    """How one architecture is drawn, everywhere."""

    color: str
    marker: Any
    dash: Any
    face: str
    size: float

    def line(self) -> dict[str, Any]:
        """Keyword arguments of a line with markers."""
        return {**self.points(), "linestyle": self.dash, "linewidth": 1.6}

    def points(self) -> dict[str, Any]:
        """Keyword arguments of markers alone."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": self.size,
            "markerfacecolor": self.face,
            "markeredgecolor": self.color,
            "linestyle": "none",
        }


@dataclass(frozen=True)
class Chart:
    """A drawn figure, its file name without ending, and the numbers it shows."""

    slug: str
    title: str
    svg: str
    png: bytes
    table: Table
    wide: bool = False
    note: str = ""


def styles(architectures: list[str]) -> dict[str, Style]:
    """A style for every architecture; the second variant of a family is dashed and hollow, and so on.

    Later ones have smaller markers, so that of two equal points both are seen.
    """
    unknown = [name for name in dict.fromkeys(map(family, architectures)) if name not in FAMILIES]
    known = {**FAMILIES, **{name: OTHERS[index % len(OTHERS)] for index, name in enumerate(unknown)}}
    found: dict[str, Style] = {}
    for place, spec in enumerate(architectures):
        color, _, marker = known[family(spec)]
        variant = sum(family(other) == family(spec) for other in found)
        face = color if variant % 2 == 0 else PAPER
        found[spec] = Style(color, marker, DASHES[variant % len(DASHES)], face, max(4.5, 8.0 - 0.5 * place))
    return found


def marked(looks: dict[str, Style]) -> dict[str, Style]:
    """The same with variants of a family told apart by their markers, all filled."""
    seen: Counter[str] = Counter()
    for spec, style in looks.items():
        variant = seen[family(spec)]
        marker = VARIANT_MARKERS[(variant - 1) % len(VARIANT_MARKERS)] if variant else style.marker
        looks[spec] = replace(style, face=style.color, marker=marker)
        seen[family(spec)] += 1
    return looks


def variants_told(architectures: list[str]) -> str:
    """A lead's sentence about hollow points, for charts of these in `styles`; empty where none is hollow."""
    hollow = any(style.face == PAPER for style in styles(architectures).values())
    return " Hollow points tell variants of a family apart, and nothing else." * hollow


@contextmanager
def drawing(slug: str) -> Iterator[None]:
    """The page's settings and nobody else's, for the time of one figure."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**RC, "svg.hashsalt": slug})
        yield


def figure(width_in: float, height_in: float) -> Figure:
    """An empty figure; narrow ones (≤ 5 in) keep their text legible on a phone."""
    return Figure(figsize=(width_in, height_in), layout="constrained")


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


def legend(fig: Figure, used: dict[str, Style], lines: bool = True, remark: str = "") -> None:
    """The architectures in use, below the axes, in as many columns as their names leave room for.

    A long legend makes the figure higher, so that the axes keep their height. `remark` is a line of small
    print above them.
    """
    names = [wrapped(spec) for spec in used]
    handles = [
        Line2D([], [], label=name, **(style.line() if lines else style.points()))
        for name, style in zip(names, used.values(), strict=True)
    ]
    longest = max((len(line) for name in names for line in name.split("\n")), default=1)
    columns = max(1, min(3, int(fig.get_figwidth() * 13 / (longest + 7))))
    box = fig.legend(
        handles=handles, loc="outside lower left", ncols=columns, columnspacing=1.2, handlelength=2.4
    )
    if remark:
        box.set_title(remark, prop={"size": 6.5})
        box.get_title().set_color(MUTED)
        box.set_alignment("left")
    heights = np.array_split([1 + name.count("\n") for name in names], columns)  # as the legend deals them
    most = max(sum(column) for column in heights)
    fig.set_figheight(fig.get_figheight() + LINE_IN * max(0, most - LEGEND_LINES))


def footnote(fig: Figure, text: str) -> None:
    """One line of small print below the axes of a figure without a legend; nothing for an empty text."""
    if text:
        fig.supxlabel(text, x=0.02, ha="left", fontsize=6.5, color=MUTED)


def tick(text: str) -> str:
    """A tick's label without the zeros of three significant digits: "2.00 ms" -> "2 ms"."""
    number, _, unit = text.partition(" ")
    number = number.rstrip("0").rstrip(".") if "." in number and unit else number
    return f"{number} {unit}".strip()


def render(fig: Figure, slug: str, title: str) -> tuple[str, bytes]:
    """(inline SVG, PNG bytes) of a figure. Called inside `drawing(slug)`."""
    png, svg = io.BytesIO(), io.StringIO()
    fig.savefig(png, format="png", dpi=144, metadata={"Software": None})
    fig.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(svg.getvalue(), slug, title), png.getvalue()


def _inline(svg: str, slug: str, title: str) -> str:
    """An SVG file as an element of a page: ids of its own, colours of the page, fluid width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns|xmlns:xlink)="[^"]*"', "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\sid="|href="#|url\(#)', lambda match: f"{match[1]}{slug}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups()
    size = f'style="width:{float(width) * 4 / 3:.0f}px" width="{width}pt" height="{height}pt"'
    svg = svg.replace(f'width="{width}pt" height="{height}pt"', size, 1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1).strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
