"""Windows of the telemetry: which samples were taken while which cell was in which phase.

    marks     allocate   prefill        decode            idle    allocate  …
              ├──────────┼──────────────┼─────────────────┼───────┤
    samples   . . . . . . . . . . . . . . . . . . . . . . . . . . . . .
              ╰───────────── one execution ───────────────╯

A mark begins its phase; the next mark of the job ends it, whosever cell that is of. An execution is whole
if it came to "idle": one that was killed was measured anew by another worker, and its windows count for
nothing. Rows hold the last executions of a cell (the warm-up came before them, as did rounds that a failed
partner broke off), so of n executions in the rows the windows are those of the last n that are whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .scopes import PLACES, place_of

#: Phases in which nothing is measured.
_BETWEEN = ("load", "allocate", "idle")


@dataclass(frozen=True)
class Windows:
    """`windows`: one line per phase of an execution that counts (job, cell, phase, place, begin_s, end_s,
    execution), by time; `samples`: by job and time, with `window` (the index of theirs in `windows`, or -1)
    and `marked` (a mark of their job stood before them)."""

    windows: pd.DataFrame
    samples: pd.DataFrame

    def of(self, column: str) -> pd.Series:
        """Readings of one column within windows, NaN left out; the index is the window's."""
        inside = self.samples[self.samples["window"] >= 0]
        return pd.to_numeric(inside.set_index("window")[column]).dropna()


def windows(telemetry: pd.DataFrame, executions: pd.Series) -> Windows:
    """Windows of the telemetry of a run (columns of sampler.COLUMNS). `executions`: how many the rows hold,
    by cell."""
    frame = telemetry.assign(sample=telemetry["kind"] == "sample")
    frame = frame.sort_values(["job", "t_s", "sample"], kind="stable", ignore_index=True)
    frame["mark"] = (~frame["sample"]).cumsum() - 1
    marks, samples = frame[~frame["sample"]], frame[frame["sample"]]
    marks = marks.reset_index(drop=True)
    job = marks["job"]
    before = job.shift() == job
    fresh = ~before | (marks["cell"].shift() != marks["cell"])
    fresh |= (marks["phase"] == "allocate") | (marks["phase"].shift() == "idle")
    last = frame.groupby("job")["t_s"].max()
    found = pd.DataFrame(
        {
            "job": job,
            "cell": marks["cell"],
            "phase": marks["phase"],
            "begin_s": marks["t_s"],
            "end_s": marks["t_s"].shift(-1).where(job.shift(-1) == job, job.map(last).astype("float64")),
            "execution": fresh.cumsum(),
        }
    )
    whole = found.loc[found["phase"] == "idle", "execution"].unique()
    chosen = found[found["execution"].isin(whole)]
    order = chosen.drop_duplicates("execution")
    from_last = order.groupby("cell")["execution"].rank(ascending=False)
    counted = order[from_last <= order["cell"].map(executions).astype("float64")]["execution"]
    chosen = chosen[chosen["execution"].isin(counted) & ~chosen["phase"].isin(_BETWEEN)]
    chosen = chosen.assign(place=[place_of(phase) for phase in chosen["phase"]])
    number = np.full(len(marks) + 1, -1)
    number[chosen.index] = np.arange(len(chosen))
    # A sample before the first mark of its job belongs to the job before it only by this order.
    own = marks["job"].reindex(samples["mark"]).to_numpy() == samples["job"].to_numpy()
    samples = samples.assign(window=np.where(own, number[samples["mark"]], -1), marked=own)
    return Windows(chosen.reset_index(drop=True), samples.reset_index(drop=True))


def executions(rows: pd.DataFrame) -> pd.Series:
    """How many executions the rows hold, by cell: each counts the bytes of its cache once."""
    return rows.loc[rows["metric"] == "cache_bytes_live", "cell"].value_counts()


__all__ = ["PLACES", "Windows", "executions", "windows"]
