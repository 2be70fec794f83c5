"""From the files of one or more runs to one HTML page and its PNGs; needs no torch and no model.

    load.py       run folder -> Run(manifest, rows, telemetry), or one sentence why not
    groups.py     which rows may stand beside which: systems | quality; costs, needles
    language.py   texts and protocols that are never summed together;  grid.py  tasks laid out by cell
    scored.py     which metrics are scores of tasks
    forensics.py  what was still held when the answer was produced
    statistics.py medians, sums over sums, Wilson, bootstrap and t intervals: what the page calls a difference
    verdict.py    one line per architecture;  summary.py  the same and the tasks, for terminal and README
    doubt.py      which numbers are suspect or invalid;  rings.py  how their points are drawn
    canvas.py     how a figure looks and becomes an SVG that follows the page's colours
    figure.py plot.py axis.py words.py    panels, axes and legend on Matplotlib;  pool.py  several at once
    lines.py budget_lines.py heatmap.py timeline.py     the charts, each with its table
    budgets.py    which of many budgets of a policy are shown first;  measured.py  every score as numbers
    needles.py by_budget.py kept.py held.py tasks.py books.py scrolls.py lm_eval.py cost.py quality.py
    all_numbers.py training.py compressors.py ledger.py roofline.py papers.py
                  the parts of the page, in the order of sections.py;  guide.py  what the numbers mean
    seeds.py seeded.py      the only part that is drawn across runs: figures of several seeds
    html.py style.py page.py            tables, CSS, the file

The page is dated by its run and holds nothing of the moment or the machine of its drawing: redrawn
from the same files it is the same file, byte for byte.
"""

from __future__ import annotations

from pathlib import Path

from .load import Run, load_run
from .summary import Summary, summary

__all__ = ["Run", "Summary", "build", "build_curves", "load_run", "summary"]


def build(runs: list[Path], out: Path) -> Path:
    """Draw the runs into `out/index.html` and `out/figures/*.png`; returns the page's path.

    Raises `harness.store.StoreError` for a run that cannot be read and OSError for an `out` that
    cannot be written.
    """
    # What draws is not imported before a page is really wanted.
    from .page import write

    return write(runs, out)


def build_curves(folders: list[Path], out: Path) -> Path:
    """Draw the trainings of folders of weights (their `*.curve.parquet`); errors as of `build`."""
    from .page import write_curves

    return write_curves(folders, out)
