"""A small run with invented numbers, written through `harness.store`: what the report's tests read.

The numbers follow the shapes that real ones have (a budget caps the cache, an evictor misses early
needles, LoCoCo works in bursts), but nothing was measured. Everything comes from one seeded generator,
so two calls with the same arguments write the same rows.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from harness.metrics import METRICS
from harness.store import SCHEMA, Row, axes_json, write_rows, write_table

ARCHITECTURES = (
    "transformer",
    "yoco:mixer=swa",
    "yoco:mixer=retention",
    "tova:budget=128",
    "lococo:budget=128",
    "window:budget=128",
    "random:budget=128",
)
#: Changes that make the smallest run with one budget and its control.
SMALL = {"architectures": ("transformer", "window:budget=128"), "contexts": (256, 512), "steps": 8}
CONTEXTS = (256, 512, 1024)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PG19_TEXT = "pg19:test@0123456789ab"
OTHER_TEXT = "bundled:pydoc_data.topics@ba9876543210"
UNVERIFIED_TEXT = "pg19:test-unverified@00ba9876543d"
BYTES_PER_TOKEN = 1024.0
#: What a suite that runs once and cold reports as its prefill: nothing that may reach a verdict.
COLD_S = 7.77


@dataclass(frozen=True)
class Fixture:
    """What the written run is to contain."""

    axis: str = "quality"
    text: str = PG19_TEXT
    suites: tuple[str, ...] = ("decode", "needle:trials=10", "pg19")
    architectures: tuple[str, ...] = ARCHITECTURES
    contexts: tuple[int, ...] = CONTEXTS
    steps: int = 24
    telemetry: bool = True
    gpu: bool = False
    toy: bool = False
    batches: tuple[int, ...] = (1,)
    broken: str = ""  # name of a suite all of whose cells fail
    weights_notes: str = "trained from a hand-set induction-head initialisation"
    protocols: bool = False


def write_run(folder: Path, *, with_failures: bool = True, name: str = "invented", **changes: object) -> Path:
    """Write run.json, cells/ and telemetry/ of an invented run; `changes` are fields of `Fixture`."""
    fixture = replace(Fixture(), **changes)
    numbers = random.Random(7)
    cells = []
    for suite in fixture.suites:
        for architecture in fixture.architectures:
            for axes in _grid(suite, fixture):
                key = f"{len(cells):04d}{fixture.axis[0]}"
                base = _base(name, key, architecture, suite, fixture)
                rows = list(_cell(base, axes, fixture, numbers))
                if with_failures and (status := _failure(architecture, suite, axes, fixture)):
                    rows = [
                        replace(
                            base, axes=axes_json(axes), metric="failure", value=math.nan, unit="", **status
                        )
                    ]
                write_rows(folder / "cells" / f"{key}.parquet", rows)
                cells.append({"key": key, "architecture": architecture, "suite": suite, "axes": axes})
    if fixture.telemetry:
        _telemetry(folder, cells, numbers, fixture.gpu)
    manifest(folder, name, cells, fixture)
    return folder


def _grid(suite: str, fixture: Fixture) -> list[dict[str, float]]:
    if suite.startswith("needle"):
        return [{"length": c, "depth": d} for c in fixture.contexts for d in DEPTHS]
    if suite.startswith("pg19"):
        return [{"context": max(fixture.contexts)}]
    return [{"context": c, "batch": b} for c in fixture.contexts for b in fixture.batches]


def _base(run: str, key: str, architecture: str, suite: str, fixture: Fixture) -> Row:
    trained = fixture.axis == "quality"
    text = None if suite.startswith("decode") else fixture.text
    return Row(
        run=run,
        cell=key,
        architecture=architecture,
        suite=suite,
        metric="",
        value=0.0,
        unit="",
        axis=fixture.axis,
        prompt_mode="stepwise" if "budget" in architecture else "parallel",
        implementation="naive",
        dtype="float32",
        device="cpu",
        threads=1,
        batch=1,
        weights="reference@00ff00ff" if trained else "random@0",
        text=text,
        machine="invented-machine",
        phase="score",
    )


def _cell(base: Row, axes: dict[str, float], fixture: Fixture, numbers: random.Random) -> Iterator[Row]:
    context = float(axes.get("context") or axes["length"])
    base = replace(base, axes=axes_json(axes), **_evictions(base.architecture, context))
    if base.suite.startswith("decode"):
        yield from _decode(base, context, int(axes["batch"]), fixture.steps, numbers)
    else:
        yield _number(base, "cache_bytes_live", _cache_bytes(base.architecture, context))
        yield _number(base, "prefill_s", COLD_S, phase="prefill")
        yield _number(base, "foreign_cpu_share", 0.9)
        scored = _needle(base, axes, context, numbers) if base.suite.startswith("needle") else None
        yield from scored or _books(base, numbers)
    if fixture.toy:
        yield replace(base, metric="toy_wonder", value=4.25, unit="furlongs")


def _number(base: Row, metric: str, value: float, **changes: object) -> Row:
    unit = METRICS[metric].unit
    return replace(base, metric=metric, value=value, unit=unit, **changes)


def _evictions(architecture: str, context: float) -> dict[str, int]:
    evicts = "budget" in architecture and context > 256  # at 256 nothing is evicted: "not exercised"
    return {
        "requests": 1,
        "requests_with_eviction": int(evicts),
        "evictions": int(4 * context) if evicts else 0,
    }


def _cache_bytes(architecture: str, context: float) -> float:
    held = {"transformer": context, "yoco": 64 + context / 4}.get(
        architecture.split(":")[0], min(context, 192.0)
    )
    extra = 1.06 if architecture.startswith(("tova", "lococo")) else 1.0
    return round(held * BYTES_PER_TOKEN * extra)


def _decode(base: Row, context: float, batch: int, steps: int, numbers: random.Random) -> Iterator[Row]:
    live = batch * _cache_bytes(base.architecture, context)
    slow = {"tova": 2.6, "lococo": 1.4, "yoco": 0.6}.get(base.architecture.split(":")[0], 1.0)
    yield _number(base, "cache_bytes_predicted", live, repeat=0, phase="predicted")
    yield _number(base, "load_s", 0.21, phase="load")
    yield _number(base, "weights_bytes", 3_300_000.0)
    if base.architecture.startswith("lococo"):
        yield _number(base, "lococo_alpha", 0.31)
        yield _number(base, "compressions", context // 64)
    for repeat in range(5):
        noise = numbers.uniform(0.97, 1.05)
        prefill = slow * noise * (context * 2e-5 + context**2 * 9e-9)
        yield _number(base, "prefill_s", prefill, repeat=repeat, phase="prefill")
        yield _number(base, "cache_bytes_live", live, repeat=repeat, phase="continuation")
        yield _number(base, "foreign_cpu_share", 0.18, repeat=repeat)
        yield _number(base, "peak_prefill_bytes", 3.1e8 + live, repeat=repeat, phase="prefill")
        yield _number(base, "peak_decode_bytes", math.nan, repeat=repeat, message="no peak can be read here")
        total_s = 0.0
        for step in range(steps):
            burst = 4.0 if base.architecture.startswith("lococo") and step % 8 == 7 else 1.0
            value = (6e-4 + live * 9e-10) * noise * burst * numbers.uniform(0.98, 1.06)
            yield _number(base, "decode_step_s", value, repeat=repeat, step=step, phase="decode")
            total_s += value
        yield _number(base, "decode_tokens_per_s", batch * steps / total_s, repeat=repeat, phase="decode")


def _needle(base: Row, axes: dict[str, float], context: float, numbers: random.Random) -> Iterator[Row]:
    kind = base.architecture.split(":")[0]
    reach = 192 / context  # share of the text that a budget still holds
    seen = axes["depth"] >= 1 - reach
    chance = {"transformer": 0.99, "yoco": 0.97, "tova": 0.85, "lococo": 0.55, "window": 1.0 if seen else 0.0}
    chance["random"] = min(1.0, reach) ** 2
    for trial in range(10):
        hit = float(numbers.random() < (1.0 if context <= 256 else chance.get(kind, 0.5)))
        place = axes_json({**axes, "trial": trial})
        for metric in ("accuracy_strict", "accuracy_substring"):
            yield _number(base, metric, hit, case=f"{axes['length']}-{axes['depth']}-{trial}", axes=place)


def _books(base: Row, numbers: random.Random) -> Iterator[Row]:
    kind = base.architecture.split(":")[0]
    bits = {"transformer": 2.30, "yoco": 2.33, "tova": 2.36, "lococo": 2.39, "window": 2.42}.get(kind, 2.55)
    for book, size in (("book-a", 4096.0), ("book-b", 8192.0), ("book-c", 2048.0), ("book-d", 8192.0)):
        hardness = 0.2 * len(book) / 6 * (size / 8192)
        nll = (bits + hardness + numbers.uniform(0, 0.004)) * math.log(2) * size
        for metric, value in (
            ("nll_nats", nll),
            ("num_bytes", size),
            ("num_tokens", size),
            ("num_words", size // 6),
        ):
            yield _number(base, metric, value, case=book, scoring_mode="cache-extend")


def _failure(
    architecture: str, suite: str, axes: dict[str, float], fixture: Fixture
) -> dict[str, str] | None:
    if suite.split(":")[0] == fixture.broken:
        return {"status": "oom", "phase": "prefill", "message": "killed, like all of its suite"}
    if architecture.startswith("lococo") and suite == "decode" and axes["context"] == 1024:
        message = "the worker was killed at its memory limit of 2.0 GiB"
        return {"status": "oom", "phase": "prefill", "message": message}
    if architecture.startswith("random") and axes.get("depth") == 1.0 and axes.get("length") == 1024:
        return {"status": "timeout", "phase": "decode", "message": "no answer within 60 s"}
    return None


def _telemetry(folder: Path, cells: list[dict], numbers: random.Random, gpu: bool) -> None:
    jobs: dict[str, list[dict]] = {}
    for cell in cells:
        jobs.setdefault(
            f"{cell['suite']}-{cell['architecture']}".replace(":", "-").replace("=", "-"), []
        ).append(cell)
    for number, (job, members) in enumerate(jobs.items()):
        records, now = [], 1000.0 * number
        for cell in members:
            for phase, seconds in (("load", 0.2), ("prefill", 0.3), ("decode", 0.5), ("idle", 0.1)):
                mark = {
                    "kind": "mark",
                    "cell": cell["key"],
                    "phase": phase,
                    "architecture": cell["architecture"],
                }
                records.append({"job": job, "t_s": now, **mark})
                rss = 2.6e8 + 6e7 * (phase == "prefill") + numbers.uniform(0, 6e6)
                for tick in range(int(seconds * 20)):
                    sample = {"kind": "sample", "source": "nvml" if gpu else "rss", "rss_bytes": int(rss)}
                    if gpu:
                        watts = {"power_w": 80.0 + 200 * (phase == "prefill")}
                        sample |= {"gpu_process_bytes": int(4 * rss), "gpu_used_bytes": int(5 * rss), **watts}
                    records.append({"job": job, "t_s": now + tick / 20, **sample})
                now += seconds
        write_table(folder / "telemetry" / f"{job}.parquet", pa.Table.from_pylist(records, schema=TELEMETRY))


TELEMETRY = pa.schema(
    [
        ("job", pa.string()),
        ("t_s", pa.float64()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("rss_bytes", pa.int64()),
        ("gpu_used_bytes", pa.int64()),
        ("gpu_process_bytes", pa.int64()),
        ("power_w", pa.float64()),
        ("energy_j", pa.float64()),
        ("sm_clock_hz", pa.float64()),
        ("temperature_c", pa.float64()),
        ("throttle_reasons", pa.string()),
        ("cell", pa.string()),
        ("phase", pa.string()),
        ("architecture", pa.string()),
    ],
    metadata=SCHEMA.metadata,
)


def manifest(folder: Path, name: str, cells: list[dict], fixture: Fixture) -> None:
    source, _, digest = fixture.text.partition("@")
    machine = {
        "id": "invented-machine",
        "cpu_model": "Invented CPU 2000",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "gpu": None,
        "packages": {"torch": "2.13.0"},
        "python": "CPython 3.11.2",
        "commit": "c0ffee" * 6 + "c0ff",
        "dirty": False,
    }
    manifest = {
        "schema": 1,
        "run": name,
        "created": "2026-01-02T03:04:05+00:00",
        "plan": asdict(fixture),
        "cells": cells,
        "machine": machine,
        "text": {
            "source": source,
            "sha256": digest * 5,
            "bytes": 1_200_000,
            "kind": source.split(":")[0],
            "label": fixture.text,
        },
        "weights": {"reference": {"sha256": "00ff" * 16, "notes": fixture.weights_notes}},
    }
    if fixture.protocols:
        manifest["suites"] = {suite: {"protocol": f"<how> {suite} asks"} for suite in fixture.suites}
    (folder / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
