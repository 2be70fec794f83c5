"""From a described figure to an SVG that follows the page into dark mode, and a PNG.

Figures are drawn once with the literal colours of the light theme. The PNG keeps them on white; in the SVG
each literal is the CSS variable it stands for (text and axes by `currentColor`), the background is
transparent and text stays text. Nothing here imports pandas: it is what the processes import that draw
(drawer.py).
"""

from __future__ import annotations

import re
from concurrent.futures import Future
from functools import partial

from .figure import Figure
from .html import escaped
from .palette import VARIABLES
from .pool import later

#: What becomes of a figure: (inline SVG, PNG bytes).
Drawing = Future[tuple[str, bytes]]


def render(fig: Figure, slug: str, title: str) -> Drawing:
    """The figure as it is now, drawn in another process where the page is (pool.py)."""
    return later(partial(drawn, fig, slug, title))


def drawn(fig: Figure, slug: str, title: str) -> tuple[str, bytes]:
    """(inline SVG, PNG bytes)."""
    from .draw import files  # Matplotlib is imported by who draws, not by who describes

    svg, png = files(fig, slug)
    return inline(svg, slug, title), png


def inline(svg: str, slug: str, title: str) -> str:
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
