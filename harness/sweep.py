"""Batches of one architecture at one context ascend until memory runs out; larger ones are not tried.

    batch    1    2    4    8    16              32
             ok   ok   ok   oom  oom, not tried  oom, not tried

What 8 requests have no memory for, 16 have none for either, and each try costs a warm-up and a fresh
process. The rows of the batches that were left out say so; nobody measured them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from .plan import Cell
from .store import NOT_TRIED

#: `--batch sweep`: where the batches of a sweep lie, unless memory ends it earlier.
SWEEP = tuple(2**n for n in range(11))


def left_out(cells: Sequence[Cell], statuses: Mapping[str, str]) -> Iterator[tuple[Cell, str]]:
    """Cells without a status that a smaller batch's lack of memory decides, each with its message.

    Cells belong together if all but `batch` is equal: architecture, suite, replicate and the other axes.
    """
    smallest: dict[str, int] = {}
    for cell in cells:
        if statuses.get(cell.key) == "oom" and "batch" in cell.axes:
            rest, batch = _rest(cell), cell.axes["batch"]
            smallest[rest] = min(batch, smallest.get(rest, batch))
    for cell in cells:
        failed = smallest.get(_rest(cell))
        if failed is not None and cell.key not in statuses and cell.axes.get("batch", 0) > failed:
            yield cell, f"{NOT_TRIED}: batch {failed:,} ran out of memory"


def _rest(cell: Cell) -> str:
    others = {name: value for name, value in cell.axes.items() if name != "batch"}
    return json.dumps([cell.architecture, cell.suite, cell.replicate, others], sort_keys=True)
