"""From the files of one or more runs to one HTML page and its PNGs; needs no torch and no model.

    load.py       run folder -> Run(manifest, rows, telemetry), or one sentence why not
    groups.py     which rows may stand beside which: systems | quality; costs, needles
    language.py   texts and protocols that are never summed together;  grid.py  tasks laid out by cell
    scored.py     which metrics are scores of tasks
    forensics.py  what was still held when the answer was produced
    statistics.py medians, sums over sums, Wilson, bootstrap and t intervals: what the page calls a difference
    verdict.py    one line per architecture;  summaries.py  the same and the tasks, for terminal and README
    doubt.py      which numbers are suspect or invalid;  rings.py  how their points are drawn
    canvas.py palette.py    how a figure looks;  figure.py plot.py axis.py  what it says: panels, axes, legend
    render.py pool.py drawer.py     drawn in other processes;  draw.py axes.py words.py  there, by Matplotlib
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
from typing import TYPE_CHECKING

from .pool import together

if TYPE_CHECKING:
    from .load import Run
    from .summaries import Summary

__all__ = ["build", "build_curves", "load_run", "summary"]

# What reads and what draws is not imported before it is wanted: the processes that draw need little of it,
# and are on their way while it is imported here.


def build(runs: list[Path], out: Path) -> Path:
    """Draw the runs into `out/index.html` and `out/figures/*.png`; returns the page's path.

    Raises `harness.store.StoreError` for a run that cannot be read and OSError for an `out` that
    cannot be written.
    """
    with together():
        from .page import write

        return write(runs, out)


def build_curves(folders: list[Path], out: Path) -> Path:
    """Draw the trainings of folders of weights (their `*.curve.parquet`); errors as of `build`."""
    with together():
        from .page import write_curves

        return write_curves(folders, out)


def load_run(path: Path) -> Run:
    """Read a run folder. Raises StoreError, one sentence, for what is missing, truncated or foreign."""
    from .load import load_run as read

    return read(path)


def summary(run: Run) -> list[Summary]:
    """What the terminal says of a run."""
    from .summaries import summary as told

    return told(run)
