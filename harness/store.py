"""One number, one row: the schema, and Parquet files that appear whole or not at all.

    run folder
    ├── run.json          plan, machine card, git commit: written before the first job
    ├── cells/KEY.parquet rows of one finished (or failed) cell; KEY names its inputs and our sources
    ├── telemetry/JOB.parquet   memory, power and clocks over time, with phase marks
    └── rows.parquet      all cells in plan order (a committed run keeps this, run.json, telemetry.parquet)

Long rows, not wide: a new metric needs no schema change. `repeat` counts within one process,
`replicate` counts processes: they are not the same kind of sample and are never pooled.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: Of run.json and of time series. 1: first version.
SCHEMA_VERSION = 1

#: Of rows. 1: first version. 2: `layer` and `bin`. 3: `answer`. 4: `validity_reasons`. Null before.
ROWS_VERSION = 4
ADDED = {"layer": 2, "bin": 2, "answer": 3, "validity_reasons": 4}

STATUSES = ("ok", "oom", "timeout", "crash")
#: First words of the message of a cell that was left out, since a smaller one of its kind failed.
NOT_TRIED = "not tried"

#: Characters of an error that a row keeps: some print the tensor that they are about.
LONGEST_MESSAGE = 500


class StoreError(Exception):
    """A results file is missing, truncated or of another schema; the message is one sentence."""


@dataclass(frozen=True)
class Row:
    """One measured, scored or predicted number. Unknown is None; unscored is NaN in `value`."""

    run: str
    cell: str  # hash of everything that determines the cell, our sources included
    architecture: str  # spec string with its options, e.g. "tova:budget=128"
    suite: str  # spec string with its options, e.g. "needle:trials=10"
    metric: str
    value: float
    unit: str
    case: str | None = None  # None: a number of the whole cell
    repeat: int | None = None  # within one process
    replicate: int = 0  # process
    step: int | None = None  # decode step
    layer: int | None = None  # counted from 0; None: a number of the whole model
    bin: int | None = None  # of a histogram; its metric says what the bins are
    answer: str | None = None  # what was generated; never an input or a reference
    axes: str = "{}"  # JSON with sorted keys, e.g. {"depth": 0.5, "length": 512}
    axis: str = "quality"  # "systems" (random weights) | "quality" (trained weights)
    prompt_mode: str | None = None  # how the prompt met the policy: stepwise, bulk, blockwise, parallel
    scoring_mode: str | None = None  # "cache-extend, segments of N", "cache-step", "cache-generate"
    implementation: str | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    evictions: int | None = None  # tokens dropped or folded, summed over layers and the cell's requests
    requests: int | None = None  # as lm-eval counts: a prompt with one continuation, so a case is one
    requests_with_eviction: int | None = None
    weights: str | None = None  # name@hash, or "random@seed"
    text: str | None = None  # source and hash of the text read
    machine: str | None = None
    phase: str | None = None  # "load", "allocate", "prefill", "decode", "score", "generate", "predicted", …
    status: str = "ok"
    message: str | None = None
    validity: str | None = None  # "valid" | "suspect" | "invalid"; None: not judged
    validity_reasons: str | None = None  # names of harness.validity.REASONS, "; " between them


_ARROW = {"str": pa.string(), "float": pa.float64(), "int": pa.int64()}
SCHEMA = pa.schema(
    [(f.name, _ARROW[str(f.type).split(" ")[0]]) for f in fields(Row)],
    metadata={"kvmark_schema": str(ROWS_VERSION)},
)


def axes_json(axes: dict[str, Any]) -> str:
    """Axes as the canonical JSON that rows hold."""
    return json.dumps(dict(sorted(axes.items())), separators=(", ", ": "))


def write_atomic(path: Path, data: bytes) -> None:
    """Write bytes so that `path` holds either its old content or all of the new. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet table atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows atomically. A value that is None becomes NaN; every other None stays null."""
    records = [asdict(row) for row in rows]
    for record in records:
        if record["value"] is None:
            record["value"] = math.nan
    write_table(path, pa.Table.from_pylist(records, schema=SCHEMA))


def read_table(path: Path) -> pa.Table:
    """Read one Parquet file of rows (or a time series), whole; older rows become those of today.

    Raises StoreError with one sentence.
    """
    try:
        with pq.ParquetFile(path) as file:  # not pq.read_table, whose imports take half a second
            table = file.read()
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist.") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is not a readable Parquet file ({first_line(error)}).") from None
    found = (table.schema.metadata or {}).get(b"kvmark_schema", b"?").decode()
    if found not in map(str, range(1, ROWS_VERSION + 1)):
        raise StoreError(f"{path} has schema version {found}; this kvmark reads 1 to {ROWS_VERSION}.")
    if "metric" in table.column_names:
        for name in [name for name, since in ADDED.items() if since > int(found)]:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
        if missing := [name for name in SCHEMA.names if name not in table.column_names]:
            raise StoreError(f"{path} holds rows without the column {missing[0]}.")
        table = table.select(SCHEMA.names).replace_schema_metadata(SCHEMA.metadata)
    return table


def outcome(path: Path) -> tuple[str, str | None] | None:
    """Status and message of the cell whose file this is. None: it is not there, or not whole."""
    try:
        found = read_table(path).select(["status", "message"]).to_pydict()
    except (StoreError, KeyError):
        return None
    failed = [pair for pair in zip(found["status"], found["message"], strict=True) if pair[0] != "ok"]
    return failed[0] if failed else ("ok", None)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its final stop; of a very long one, its beginning."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + "…"
