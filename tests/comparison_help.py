"""Run folders for comparisons, with invented numbers: real Parquet, one file per run.

Two calls with another `seed` are two runs of the same code: 1 % noise between processes and within. `speed`
makes one of them slower somewhere, `edit` changes rows as they are written.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.comparison import Finding
from harness.metrics import METRICS
from harness.store import Row, axes_json, write_rows

DECODE, NEEDLE, BOOKS = "decode:contexts=256+1024", "needle:trials=20", "pg19"
SECONDS = {"prefill_s": 0.02, "decode_step_s": 0.002}
#: Without a bar and angle brackets nothing would be seen to be escaped.
HOSTILE = "mine|`<script>alert(1)</script>`\n\n# @everyone [x](javascript:alert(1)) & \"'\x07"


@dataclass(frozen=True)
class Made:
    """What a run holds."""

    architectures: tuple[str, ...] = ("transformer", "window:budget=128")
    contexts: tuple[int, ...] = (256, 1024)
    replicates: int = 8
    noise: float = 0.01
    quality: bool = False
    device: str = "cpu"
    seed: int = 0
    speed: Callable[[str, int, str], float] = lambda architecture, context, metric: 1.0
    edit: Callable[[Row], Row | None] = lambda row: row
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def write(folder: Path, **changes: Any) -> Path:
    """Write a run folder; `changes` are fields of `Made`."""
    made = replace(Made(), **changes)
    numbers = random.Random(made.seed)
    rows: list[Row] = []
    cells: list[dict[str, Any]] = []
    for architecture in made.architectures:
        for context in made.contexts:
            axes = {"batch": 1, "context": context}
            for replicate in range(made.replicates):
                base = _cell(cells, folder.name, architecture, DECODE, axes, made, replicate)
                rows += _decode(base, context, made, numbers)
        if made.quality:
            for depth in (0.0, 0.5):
                base = _cell(cells, folder.name, architecture, NEEDLE, {"depth": depth, "length": 512}, made)
                rows += [
                    replace(row, case=f"512-{depth}-{trial}")
                    for trial in range(20)
                    for row in (
                        number(base, "accuracy_strict", float(trial % 4 != 0)),
                        number(base, "answer_tokens", 6.0, phase="generate"),
                    )
                ]
            base = _cell(cells, folder.name, architecture, BOOKS, {"context": 512}, made)
            for book in range(6):
                counts = {"nll_nats": 8000.0 + 500 * book, "num_bytes": 5000.0}
                rows += [number(base, name, value, case=f"book-{book}") for name, value in counts.items()]
    write_rows(folder / "rows.parquet", [kept for row in rows if (kept := made.edit(row)) is not None])
    manifest(folder, cells, made)
    return folder


def _cell(
    cells: list[dict[str, Any]],
    run: str,
    architecture: str,
    suite: str,
    axes: dict,
    made: Made,
    replicate: int = 0,
) -> Row:
    key = f"{len(cells):05d}"
    cells.append(
        {"key": key, "architecture": architecture, "suite": suite, "axes": axes, "replicate": replicate}
    )
    return Row(
        run=run, cell=key, architecture=architecture, suite=suite, metric="", value=0.0, unit="",
        replicate=replicate, axes=axes_json(axes), implementation="naive", dtype="fp32", device=made.device,
        threads=1, batch=1, weights=f"{architecture.partition(':')[0]}@00ff", machine="m1", phase="score",
        text=None if suite == DECODE else "bundled:prose@ba98", validity="valid",
    )  # fmt: skip


def number(base: Row, metric: str, value: float, **changes: Any) -> Row:
    known = METRICS.get(metric)
    return replace(base, metric=metric, value=value, unit=known.unit if known else "", **changes)


def _decode(base: Row, context: int, made: Made, numbers: random.Random) -> list[Row]:
    live = 1024.0 * (context if "budget" not in base.architecture else 128)
    rows = [
        number(base, "cache_bytes_predicted", live, repeat=0, phase="predicted"),
        number(base, "weights_bytes", 3_300_000.0, phase="load"),
        number(base, "compressor_bytes", 0.0, phase="load"),
    ]
    process = {metric: numbers.gauss(1, made.noise) for metric in SECONDS}
    for repeat in range(3):
        rows.append(number(base, "cache_bytes_live", live, repeat=repeat, phase="continuation"))
        rows.append(number(base, "peak_prefill_bytes", 3.1e8 + live, repeat=repeat, phase="prefill"))
        for metric, seconds in SECONDS.items():
            factor = process[metric] * made.speed(base.architecture, context, metric)
            for step in range(2 if metric == "decode_step_s" else 1):
                value = seconds * context / 256 * factor * numbers.gauss(1, 0.01)
                phase, at = ("decode", step) if metric == "decode_step_s" else ("prefill", None)
                rows.append(number(base, metric, value, repeat=repeat, step=at, phase=phase))
    return rows


def manifest(folder: Path, cells: Sequence[dict[str, Any]], made: Made) -> None:
    machine = {
        "id": "m1", "device": made.device, "threads": 1, "cpu_model": "Invented CPU 2000", "cores": 8,
        "affinity": [0, 1], "cpu_quota_cores": None, "memory_bytes": 8 << 30, "python": "CPython 3.11.2",
        "packages": {"torch": "2.13.0", "triton": None}, "commit": f"{made.seed:040x}", "dirty": False,
        "gpu": {"name": "Invented GPU", "driver": "570.1", "sm_clock_max_hz": 1.9e9, "count": 1},
        "source_hash": f"hash-{made.seed}",
    }  # fmt: skip
    settings = {
        "shape": None, "model": None, "dtype": "fp32", "device": made.device, "threads": 1, "seed": 0,
        "repeats": 3, "replicates": made.replicates, "batch": 16, "prefill_chunk": None, "timeout_s": 600.0,
    }  # fmt: skip
    content = {
        "schema": 1,
        "run": folder.name,
        "plan": {"name": "invented", "settings": settings | made.settings},
        "cells": list(cells),
        "machine": machine | made.machine,
        "text": None,
        "model": None,
    }
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")


def slower(factor: float, architecture: str = "", metric: str = "") -> Callable[[str, int, str], float]:
    """A `speed` that is `factor` for what names the architecture and the metric (all, where empty)."""
    return lambda name, context, what: (
        factor if name.startswith(architecture) and what.startswith(metric) else 1.0
    )


def times(factor: float, metric: str, suite: str = "", **where: Any) -> Callable[[Row], Row]:
    """An `edit` that multiplies a metric's values; `where` are further fields that must be equal."""

    def edit(row: Row) -> Row:
        own = row.metric == metric and row.suite.startswith(suite)
        own = own and all(getattr(row, name) == value for name, value in where.items())
        return replace(row, value=row.value * factor) if own else row

    return edit


def without(**where: Any) -> Callable[[Row], Row | None]:
    """An `edit` that drops the rows whose fields are equal to these."""
    return lambda row: None if all(getattr(row, name) == value for name, value in where.items()) else row


def only(findings: list[Finding], **where: Any) -> list[Finding]:
    """Findings whose fields are equal to these."""
    return [f for f in findings if all(getattr(f, name) == value for name, value in where.items())]


def verdicts(findings: list[Finding]) -> set[str]:
    return {found.verdict for found in findings}
