"""What follows from a run's rows and telemetry: derived numbers, and a verdict on every number.

    complete(rows, telemetry, manifest)
      rows as measured ─► + energy, memory deltas (harness.validity), roofline, throughput
                       ─► + validity, validity_reasons

Called when a run's tables are assembled, and when a run is read whose rows nobody has judged. Derived rows
stand after those of their cell. The rows of a cell's own file stay as they were measured; what is derived
is dropped and derived anew, so calling it twice changes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from . import roofline, throughput
from .metrics import format_bytes, metric
from .store import SCHEMA
from .validity import Windows, executions, judge, windows
from .validity.energy import ENERGY, energy
from .validity.memory import NAMES, deltas
from .validity.repeats import above_predicted
from .validity.scopes import place_of

#: Metrics that are never measured but derived here.
DERIVED = {
    *ENERGY,
    *roofline.DERIVED,
    *throughput.DERIVED,
    *(f"{kind}_delta_{name}_bytes" for kind in ("nvml", "rss") for name in NAMES.values()),
}
#: One of them stands in every phase that was timed.
_TIMED = ("prefill_s", "decode_step_s", "continuation_s")
#: Columns of a derived row that are not those of the cell's other rows.
_OWN = ("case", "repeat", "step", "layer", "bin", "answer", "message", "validity", "validity_reasons")


def complete(rows: pd.DataFrame, telemetry: pd.DataFrame, manifest: dict[str, Any]) -> pd.DataFrame:
    """The rows of a run (columns of store.Row) with derived ones appended after their cells, all judged.

    `telemetry` has the columns of sampler.COLUMNS and may be empty; `manifest` is run.json. Pure; the same
    input gives the same output, and its own output is the same input.
    """
    columns = list(SCHEMA.names)
    rows = rows.loc[~rows["metric"].isin(DERIVED), columns].reset_index(drop=True)
    if rows.empty:
        return rows
    found = windows(telemetry, executions(rows))
    parts = [rows, _of_telemetry(rows, found)]
    parts += [roofline.derived_rows(rows, manifest)[columns], throughput.derived_rows(rows)[columns]]
    joined = pd.concat([_typed(part, rows) for part in parts if len(part)], ignore_index=True)
    order = np.argsort(pd.factorize(joined["cell"])[0], kind="stable")
    return judge(joined.iloc[order].reset_index(drop=True), found)


def to_table(rows: pd.DataFrame) -> pa.Table:
    """Rows as the table that is written: a value that is NaN stays NaN, everything else unknown is null."""
    columns = [
        pa.array(rows[field.name].to_numpy() if field.name == "value" else rows[field.name], field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def alarms(rows: pd.DataFrame) -> list[str]:
    """One sentence for every cell whose live cache holds more bytes than were predicted."""
    over = above_predicted(rows).set_index("cell")
    lines = rows[rows["cell"].isin(over.index) & (rows["metric"] == "cache_bytes_live")].drop_duplicates(
        "cell"
    )
    return [
        f"{row.architecture}, {row.suite}, {row.axes}: the live cache holds {format_bytes(live)} "
        f"({live:,.0f} bytes), but {predicted:,.0f} were predicted."
        for row in lines.itertuples()
        for live, predicted in [over.loc[row.cell]]
    ]


def _typed(part: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Derived rows under the types of the measured ones; whole numbers that may be null are floats in
    pandas."""
    numbers = {name for name in SCHEMA.names if pd.api.types.is_numeric_dtype(rows[name])}
    return part.astype(
        {
            name: "float64" if name in numbers and part[name].isna().any() else rows[name].dtype
            for name in part
        }
    )


def _of_telemetry(rows: pd.DataFrame, found: Windows) -> pd.DataFrame:
    """Rows of energy and of memory that was taken, for every cell and phase that was measured."""
    ok = rows[(rows["status"] == "ok") & rows["case"].isna()]
    timed = ok[ok["metric"].isin(_TIMED)]
    # A row of the whole cell: those of cases have axes of their own.
    whole = timed.drop_duplicates("cell").set_index("cell")
    phases = timed[["cell", "phase"]].drop_duplicates()
    phases = phases.assign(place=phases["phase"].map(place_of))
    joules = energy(found, _fed(ok, phases), whole["device"], executions(ok))
    taken = deltas(found, phases[["cell", "place"]].drop_duplicates(), whole["device"])
    lines = pd.concat([joules, taken.rename(columns={"place": "phase"})], ignore_index=True)
    derived = whole.reindex(lines["cell"]).reset_index()
    derived[[*_OWN, "scoring_mode"]] = None
    for column in ("metric", "value", "phase", "message"):
        derived[column] = lines[column].to_numpy()
    derived["unit"] = [metric(name).unit for name in lines["metric"]]
    return derived[list(SCHEMA.names)]


def _fed(ok: pd.DataFrame, phases: pd.DataFrame) -> pd.DataFrame:
    """(cell, metric, phase, tokens) of every phase with an energy, in the order of the rows; tokens are
    summed over the executions, NaN where the rows do not tell."""
    counted = {(phase, tokens): name for name, by in ENERGY.items() for phase, tokens in by.items()}
    counts = ok[ok["metric"].isin([tokens for _, tokens in counted])]
    sums = counts.groupby(["cell", "phase", "metric"])["value"].sum().to_dict()
    lines = [
        (cell, name, phase, sums.get((cell, phase, tokens), np.nan))
        for cell, phase in phases[["cell", "phase"]].itertuples(index=False)
        for (of_phase, tokens), name in counted.items()
        if of_phase == phase
    ]
    return pd.DataFrame(lines, columns=["cell", "metric", "phase", "tokens"])
