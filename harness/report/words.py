"""How wide words are in DejaVu Sans, the font of the PNG files, and where they must be broken.

A page shows its own sans-serif, which is not wider.
"""

from __future__ import annotations

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

FONT = "DejaVu Sans"


@lru_cache(maxsize=16384)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width of one line in points."""
    look = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return TextToPath().get_text_width_height_descent(text, look, ismath=False)[0]


def folded(text: str, width: float, size: float, bold: bool = False, most: int = 4) -> list[str]:
    """Lines no wider than `width` points, broken at spaces, else anywhere; beyond `most` lines it is cut."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            joined = f"{line} {word}" if line else word
            if line and text_width(joined, size, bold) > width:
                lines.append(line)
                line = word
            else:
                line = joined
            while len(lines) <= most and text_width(line, size, bold) > width and len(line) > 1:
                fits = max(1, int(len(line) * width / text_width(line, size, bold)))
                while fits > 1 and text_width(line[:fits], size, bold) > width:
                    fits -= 1
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"]
