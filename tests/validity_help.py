"""Invented runs for the verdicts: rows and telemetry of a few cells, calm unless a test disturbs them."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa

from harness import nvml, sampler
from harness.derived import complete
from harness.metrics import metric
from harness.store import SCHEMA, Row, axes_json

MANIFEST = {"machine": {"id": "m", "ceilings": None}, "cells": []}
#: Seconds of the phases of one execution.
PHASES = {"allocate": 0.1, "prefill": 1.0, "decode": 2.0, "idle": 0.1}


def number(cell="a", name="prefill_s", value=1.0, **fields) -> Row:
    """One row of a cell of the decode suite on a GPU."""
    base = Row(
        run="r", cell=cell, architecture="tova:budget=8", suite="decode:new_tokens=4", metric=name,
        value=value, unit=metric(name).unit, axes=axes_json({"batch": 2, "context": 16}), device="cuda",
        dtype="bf16", threads=1, batch=2, machine="m", phase="prefill",
    )  # fmt: skip
    return replace(base, **fields)


def cell_rows(cell="a", repeats=5, **fields) -> list[Row]:
    """What a calm cell measured: equal repeats, bytes as predicted, tokens as asked."""
    rows = []
    for repeat in range(repeats):
        for name, value, phase in (
            ("prompt_tokens", 32.0, "prefill"), ("prefill_s", 1.0, "prefill"),
            ("prefill_cpu_s", 1.0, "prefill"), ("prefill_tokens_per_s", 32.0, "prefill"),
            ("foreign_cpu_share", 0.01, "prefill"), ("baseline_prefill_bytes", 1500.0, "prefill"),
            ("peak_prefill_bytes", 2000.0, "prefill"), ("peak_prefill_reserved_bytes", 2600.0, "prefill"),
            ("new_tokens", 8.0, "decode"), ("decode_step_s", 0.5, "decode"), ("decode_step_s", 0.6, "decode"),
            ("decode_step_cpu_s", 0.5, "decode"), ("decode_launch_share", 0.2, "decode"),
            ("foreign_cpu_share", 0.01, "decode"), ("peak_decode_bytes", 1700.0, "decode"),
            ("peak_decode_reserved_bytes", 2600.0, "decode"), ("cache_bytes_live", 400.0, "continuation"),
            ("cache_payload_bytes", 300.0, "continuation"),
        ):  # fmt: skip
            rows.append(number(cell, name, value, phase=phase, repeat=repeat, **fields))
    rows.append(number(cell, "cache_bytes_predicted", 400.0, phase="predicted", repeat=0, **fields))
    rows.append(number(cell, "new_tokens_asked", 8.0, phase="decode", repeat=0, **fields))
    rows.append(number(cell, "weights_bytes", 900.0, phase="load", repeat=0, **fields))
    rows.append(number(cell, "accuracy_strict", 1.0, phase="score", case="c", repeat=0, **fields))
    return rows


def frame(rows: list[Row]) -> pd.DataFrame:
    """Rows as they are read from Parquet."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA).to_pandas()


def series(marks: list[tuple[float, str | None, str]], samples: list[dict], job="j") -> pa.Table:
    """The time series of (t_s, cell, phase) and of samples with their `t_s`."""
    told = [{"t_s": t, "cell": c, "phase": p, "architecture": "tova:budget=8"} for t, c, p in marks]
    tables = [
        sampler.sample_table(samples, "sample", job, None),
        sampler.sample_table(told, "mark", job, None),
    ]
    return sampler.joined(tables)


def record(marks: list[tuple[float, str | None, str]], samples: list[dict]) -> pd.DataFrame:
    """The same as a run's telemetry is read."""
    return series(marks, samples).to_pandas()


def executions(cells=("a",), rounds=6, start_s=1.0, phases=PHASES) -> list[tuple[float, str, str]]:
    """Marks of interleaved rounds, the first of them the warm-up."""
    marks, now = [], start_s
    for _ in range(rounds):
        for cell in cells:
            for phase, seconds in phases.items():
                marks.append((now, cell, phase))
                now += seconds
    return marks


def samples(end_s: float, step_s=0.05, **readings) -> list[dict]:
    """GPU samples from 0 to `end_s`; a reading is a value, or a function of the time."""
    calm = {"sm_clock_hz": 1.98e9, "memory_clock_hz": 2.619e9, "throttle_reasons": "none", "power_w": 400.0}
    calm |= {"gpu_used_bytes": 5000, "rss_bytes": 100, "energy_j": lambda t_s: round(400.0 * t_s, 3)}
    found = []
    for tick in range(int(end_s / step_s) + 1):
        t_s = tick * step_s
        values = {k: v(t_s) if callable(v) else v for k, v in (calm | readings).items()}
        found.append({"t_s": t_s, "source": "nvml", **values})
    return found


def replayed(gpu: nvml.Gpu, ticks: int, step_s=0.05, pid=4242) -> list[dict]:
    """Samples of a replayed device, as the sampler would take them."""
    found = []
    for tick in range(ticks):
        found.append({"t_s": tick * step_s, "source": "nvml", "rss_bytes": 100, **gpu.sample(pid)})
        gpu._nvml.tick()
    return found


def judged(rows: list[Row], telemetry: pd.DataFrame | None = None, manifest: dict = MANIFEST) -> pd.DataFrame:
    """`complete` of an invented run; without telemetry nothing was sampled."""
    telemetry = record([], []) if telemetry is None else telemetry
    return complete(frame(rows), telemetry, manifest)


def reasons(rows: pd.DataFrame, name: str, **where) -> set[str]:
    """The reasons of a metric's rows; "" for a valid one, "-" for one that is not judged."""
    own = rows[rows["metric"] == name]
    for column, value in where.items():
        own = own[own[column] == value]
    assert len(own), name
    told = own["validity_reasons"].fillna("").where(own["validity"].notna(), "-")
    return set(told)


def only(rows: pd.DataFrame, name: str) -> SimpleNamespace:
    """The single row of a metric."""
    own = rows[rows["metric"] == name]
    assert len(own) == 1, own
    return SimpleNamespace(**own.iloc[0].to_dict())
