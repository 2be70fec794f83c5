"""Reading one run folder: its manifest, the rows of its cells, its telemetry.

    run.json                     always; names the cells in plan order
    cells/KEY.parquet            a run at work: only the keys that run.json lists, others are old code's
    rows.parquet                 all cells in one file, judged: of a committed run, or written last by a
                                 finished one; of a run at work it is older than its newest cell
    telemetry.parquet | telemetry/*.parquet | nothing        the same

A cell that has no rows yet is no error: the page says how many of how many are done. Rows that nobody has
judged are judged here, and what follows from them is derived (harness.derived).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..derived import complete
from ..store import SCHEMA, SCHEMA_VERSION, StoreError, first_line, read_table

TELEMETRY_COLUMNS = [
    *("job", "t_s", "kind", "source", "rss_bytes", "gpu_used_bytes", "gpu_process_bytes"),
    *("foreign_gpu_processes", "power_w", "energy_j", "sm_clock_hz", "memory_clock_hz", "temperature_c"),
    *("throttle_reasons", "cell", "phase", "architecture"),
]


@dataclass(frozen=True)
class Run:
    """One run as read: `rows` in plan order (columns of `store.Row`), `telemetry` by job and time."""

    manifest: dict[str, Any]
    rows: pd.DataFrame
    telemetry: pd.DataFrame

    @property
    def name(self) -> str:
        """The run's own name."""
        return str(self.manifest.get("run", "run"))

    @property
    def cells(self) -> list[dict[str, Any]]:
        """The planned cells, in plan order."""
        return self.manifest.get("cells") or []

    @property
    def architectures(self) -> list[str]:
        """Every architecture of the run, in plan order: what colours are dealt by."""
        planned = [str(cell["architecture"]) for cell in self.cells]
        return list(dict.fromkeys([*planned, *self.rows["architecture"].unique()]))

    @property
    def num_done(self) -> int:
        """How many planned cells have rows, failures among them."""
        return len({cell["key"] for cell in self.cells} & set(self.rows["cell"]))


def load_run(path: Path) -> Run:
    """Read a run folder. Raises StoreError, one sentence, for what is missing, truncated or foreign."""
    manifest = _manifest(path / "run.json")
    rows, telemetry = _rows(path, manifest), _telemetry(path)
    if rows["validity"].isna().all():  # cells of a run at work, or a record from before verdicts
        rows = complete(rows, telemetry, manifest)
    return Run(manifest, rows, telemetry)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist: {path.parent} is not a run folder.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable JSON ({first_line(error)}).") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != SCHEMA_VERSION:
        raise StoreError(f"{path} has schema version {found}; this kvmark reads version {SCHEMA_VERSION}.")
    cells = manifest.get("cells") or []
    if not isinstance(cells, list) or not all(map(_is_cell, cells)):
        raise StoreError(f"{path} has a list of cells that is damaged.")
    return manifest


def _is_cell(cell: Any) -> bool:
    names = ("key", "architecture", "suite")
    named = isinstance(cell, dict) and all(isinstance(cell.get(name), str) for name in names)
    return named and isinstance(cell.get("axes", {}), dict)


def _is_axes(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


def _rows(path: Path, manifest: dict[str, Any]) -> pd.DataFrame:
    keys = [cell["key"] for cell in manifest.get("cells") or []]
    files = [file for key in keys if (file := path / "cells" / f"{key}.parquet").exists()]
    if not files and not (path / "rows.parquet").exists() and (path / "cells").is_dir():
        return SCHEMA.empty_table().to_pandas()
    rows = _assembled(path / "rows.parquet", files)
    if rows is None:
        tables = [read_table(file) for file in files]
        rows = pa.concat_tables(tables, promote_options="default").to_pandas()
    if not all(map(_is_axes, rows["axes"].unique())):
        raise StoreError(f"{path} holds rows whose axes are not a JSON object.")
    order = {key: number for number, key in enumerate(keys)}
    rows = rows[rows["cell"].isin(order.keys())]
    return rows.sort_values("cell", key=lambda cells: cells.map(order), kind="stable", ignore_index=True)


def _assembled(whole: Path, files: list[Path]) -> pd.DataFrame | None:
    """All rows in one file, judged: what the runner writes last. None if cells were finished after it."""
    if files and not _is_newest(whole, files):
        return None
    rows = read_table(whole).to_pandas()
    return rows if not files or set(rows["cell"]) == {file.stem for file in files} else None


def _is_newest(whole: Path, files: list[Path]) -> bool:
    return whole.exists() and whole.stat().st_mtime_ns > max(file.stat().st_mtime_ns for file in files)


def _telemetry(path: Path) -> pd.DataFrame:
    files, whole = sorted((path / "telemetry").glob("*.parquet")), path / "telemetry.parquet"
    files = [whole] if not files or _is_newest(whole, files) else files
    frames = [read_table(file).to_pandas() for file in files if file.exists()]
    frames = [frame for frame in frames if len(frame)] or [pd.DataFrame(columns=TELEMETRY_COLUMNS)]
    return pd.concat(frames, ignore_index=True).reindex(columns=TELEMETRY_COLUMNS)
