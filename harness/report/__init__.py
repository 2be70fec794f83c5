"""From the files of one or more runs to one HTML page and its PNGs; needs no torch and no model.

    load.py       run folder -> Run(manifest, rows, telemetry), or one sentence why not
    groups.py     which rows may stand beside which: systems | quality, text by text
    statistics.py medians, sums over sums, Wilson intervals: what the page calls a difference
    verdict.py    one line per architecture; the terminal prints the same strings
    canvas.py     how a figure looks and becomes an SVG that follows the page's colours
    lines.py heatmap.py timeline.py     the charts, each with its table
    sections.py   the parts of the page in their order;  guide.py  what the numbers mean
    html.py style.py page.py            tables, CSS, the file

The page is dated by its run and holds nothing of the moment or the machine of its drawing: redrawn
from the same files it is the same file, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

from .load import Run, load_run
from .verdict import Summary, summary

__all__ = ["Run", "Summary", "build", "load_run", "summary"]


def build(runs: list[Path], out: Path) -> Path:
    """Draw the runs into `out/index.html` and `out/figures/*.png`; returns the page's path.

    Raises `harness.store.StoreError` for a run that cannot be read and OSError for an `out` that
    cannot be written.
    """
    # Matplotlib takes a second to import: not before a page is really wanted.
    from .page import write

    return write(runs, out)
