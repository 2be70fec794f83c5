"""One side of a comparison: its run folders, read and laid side by side.

A *point* is (architecture, suite, axes): a cell without its replicate. Each replicate of each folder is a
process of its own, so that a gate's second look (another folder) adds processes and replaces none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import UsageError
from ..report.load import Run, load_run
from ..store import axes_json
from .findings import Side

Point = tuple[str, str, str]
#: What a comparison reads of a row, beside its point and process.
COLUMNS = [
    *("cell", "metric", "value", "case", "repeat", "layer", "bin", "phase", "device", "status", "message"),
    *("validity", "validity_reasons", "implementation", "prompt_mode"),
]


@dataclass(frozen=True)
class Measured:
    """What one side holds. `rows` has COLUMNS of `store.Row`, and the numbers `point` and `process`."""

    side: Side
    runs: tuple[Run, ...]
    rows: pd.DataFrame
    points: list[Point]  # `rows.point` counts in these; planned cells without rows are among them

    @cached_property
    def ok(self) -> pd.DataFrame:
        """Rows of cells that were measured."""
        return self.rows[self.rows["status"] == "ok"]

    @cached_property
    def by_metric(self) -> dict[str, pd.DataFrame]:
        """Measured rows of whole cells (no case, layer or bin), by metric."""
        own = self.ok
        whole = own[own["case"].isna() & own["layer"].isna() & own["bin"].isna()]
        return dict(iter(whole.groupby("metric", sort=False)))

    @cached_property
    def on_cuda(self) -> set[Point]:
        """Points that were measured on a GPU."""
        own = self.ok["point"][self.ok["device"].fillna("").str.startswith("cuda")]
        return {self.points[number] for number in own.unique()}

    @cached_property
    def in_company(self) -> set[Point]:
        """Points of which several architectures were measured in one process, in turns."""
        repeated = set(self.ok["point"][self.ok["repeat"].notna()])
        plans = [run.manifest.get("plan") or {} for run in self.runs]
        if not any((plan.get("settings") or {}).get("interleave", True) for plan in plans):
            return set()
        points = [self.points[number] for number in repeated]
        asked = Counter(suite for _, suite in {point[:2] for point in points})
        return {point for point in points if asked[point[1]] > 1}

    @cached_property
    def statuses(self) -> dict[Point, dict[int, str]]:
        """Of each point that has rows: how each of its processes ended."""
        ended = self.rows[["point", "process", "status"]].drop_duplicates()
        by_point: dict[Point, dict[int, str]] = {}
        for number, process, status in ended.itertuples(index=False, name=None):
            own = by_point.setdefault(self.points[number], {})
            if own.get(process, "ok") == "ok":  # one failed row is a failed cell
                own[process] = status
        return by_point

    def message(self, point: Point) -> str:
        """What the first failed row of a point says."""
        code = self.points.index(point)
        failed = self.rows[(self.rows["point"] == code) & (self.rows["status"] != "ok")]
        told = failed["message"].dropna()
        return str(told.iloc[0]) if len(told) else ""


def read(folders: Sequence[Path]) -> Measured:
    """Read one side. Raises StoreError (no run folder), UsageError (runs of different code)."""
    runs = tuple(load_run(folder) for folder in folders)
    machines = [machine_of(run) for run in runs]
    for name in ("source_hash", "commit"):
        if len(found := {machine.get(name) for machine in machines}) > 1:
            told = ", ".join(str(value)[:10] for value in sorted(found, key=str))
            raise UsageError(f"{', '.join(map(str, folders))} are of different code ({name} {told}).")
    codes: dict[Point, int] = {}
    processes: dict[tuple[int, int], int] = {}
    frames = []
    for number, run in enumerate(runs):
        cells = {cell["key"]: _place(cell) for cell in run.cells}
        for point, replicate in cells.values():
            codes.setdefault(point, len(codes))
            processes.setdefault((number, replicate), len(processes))
        keys = run.rows["cell"]
        frames.append(
            run.rows[COLUMNS].assign(
                point=keys.map({key: codes[point] for key, (point, _) in cells.items()}).astype("int64"),
                process=keys.map({key: processes[number, rep] for key, (_, rep) in cells.items()}).astype(
                    "int64"
                ),
            )
        )
    rows = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    machine = machines[0]
    side = Side(
        names=tuple(run.name for run in runs),
        commit=machine.get("commit"),
        dirty=machine.get("dirty"),
        source_hash=machine.get("source_hash"),
        num_cells=int(rows["cell"].nunique()),
        machine=machine,
    )
    return Measured(side, runs, rows, list(codes))


def machine_of(run: Run) -> dict[str, Any]:
    """The card of the machine that measured a run. Raises UsageError where there were several."""
    home: dict[str, Any] = run.manifest.get("machine") or {}
    cards = {**(run.manifest.get("machines") or {}), home.get("id"): home}
    found = sorted(run.rows["machine"].dropna().unique())
    if len(found) > 1:
        raise UsageError(f"{run.name} was measured on {len(found)} machines ({', '.join(found)}).")
    return cards.get(found[0], home) if found else home


def _place(cell: dict[str, Any]) -> tuple[Point, int]:
    point = (str(cell["architecture"]), str(cell["suite"]), axes_json(cell.get("axes") or {}))
    return point, int(cell.get("replicate") or 0)


def without(axes: str, *names: str) -> str:
    """Axes without some of them: cells that are told apart by nothing else are one pool."""
    return axes_json({name: value for name, value in json.loads(axes).items() if name not in names})
