"""Rows of suites that score tasks, written through `harness.store`: what the report's tests read.

`write_cells` writes exactly the numbers that a test names. `all_suites` invents a whole run of every such
suite, with the shapes that real ones have (a window forgets what is far back, LoCoCo's slots have no
positions, YOCO's needle lies in the cache that its layers share); nothing was measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from recorded_run import ARCHITECTURES, PG19_TEXT, Fixture, manifest

from harness.metrics import metric
from harness.store import Row, axes_json, write_rows

SCROLLS_TASKS = (
    "gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli", "squality",
)  # fmt: skip
ROUGE_TASKS = ("gov_report", "summ_screen_fd", "qmsum", "squality")
LAYERS = (0, 1, 2, 3)
DEPTHS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Told:
    """One cell: rows as dicts of `Row`'s fields, and in how many of its requests the policy acted."""

    architecture: str
    suite: str
    axes: dict
    rows: list[dict] = field(default_factory=list)
    requests: int = 10
    acted: int | None = None  # None: in all of them, if there is a budget
    text: str | None = PG19_TEXT
    status: str = "ok"


def write_cells(folder: Path, cells: list[Told], name: str = "invented") -> Path:
    """A run of these cells, with run.json; returns the folder."""
    listed = []
    for number, cell in enumerate(cells):
        key = f"{number:05d}t"
        write_rows(folder / "cells" / f"{key}.parquet", _rows(name, key, cell))
        known = {"architecture": cell.architecture, "suite": cell.suite, "axes": cell.axes}
        listed.append({"key": key, **known})
    manifest(folder, name, listed, Fixture())
    return folder


def _rows(run: str, key: str, cell: Told) -> Iterator[Row]:
    budget = "budget" in cell.architecture
    acted = cell.acted if cell.acted is not None else cell.requests * budget
    base = Row(
        run=run, cell=key, architecture=cell.architecture, suite=cell.suite, metric="", value=0.0, unit="",
        axes=axes_json(cell.axes), prompt_mode="stepwise" if budget else "parallel", implementation="naive",
        dtype="fp32", device="cpu", threads=1, batch=2, weights="reference@00ff00ff", text=cell.text,
        machine="invented-machine", phase="score", requests=cell.requests, requests_with_eviction=acted,
        evictions=40 * acted,
    )  # fmt: skip
    if cell.status != "ok":
        failed = {"phase": "prefill", "message": "an invented failure"}
        yield replace(base, metric="failure", value=math.nan, status=cell.status, **failed)
        return
    live = 40_000.0 if budget else 200_000.0
    for name in ("cache_bytes_live", "cache_bytes_predicted"):
        yield replace(base, metric=name, value=2 * live, unit="bytes", phase="continuation")
    for row in cell.rows:
        told = {**row, "axes": axes_json({**cell.axes, **row.get("axes", {})})}
        yield replace(base, unit=metric(row["metric"]).unit, **told)


def case(id: str, **numbers: float) -> list[dict]:
    """Rows of one case: metric=value."""
    return [{"case": id, "metric": name, "value": float(value)} for name, value in numbers.items()]


def held(id: str, shares: dict[int | None, float], span: int = 0, before: dict | None = None) -> list[dict]:
    """Rows of what was held of a watched span, by layer; `before` where the prompt's end differs."""
    found = []
    for phase, told in (("prefill", before or shares), ("generate", shares)):
        for layer, share in told.items():
            place = {"case": id, "layer": layer, "bin": span, "phase": phase}
            found.append({"metric": "watched_held_share", "value": share, **place})
    return found


def all_suites(seed: int = 11, architectures: tuple[str, ...] = ARCHITECTURES) -> list[Told]:
    """Every kind of suite, every architecture."""
    rng = random.Random(seed)
    cells = []
    for make in (_needle, _several, _books, _scrolls, _lm_eval, _ruler, _recall):
        for architecture in architectures:
            cells += make(architecture, rng)
    return cells


def _kept(architecture: str, depth: float, length: int, rng: random.Random) -> dict[int | None, float]:
    """Layer -> share of the needle that it holds."""
    kind = architecture.partition(":")[0]
    if kind == "lococo":
        return {}
    if architecture == "yoco:mixer=retention":
        return {None: 1.0}
    if kind == "yoco":
        return {0: float(depth == 1), 1: float(depth == 1), None: 1.0}
    reach = 128 / length
    if kind == "transformer" or length <= 128:
        return dict.fromkeys(LAYERS, 1.0)
    if kind == "window":
        return dict.fromkeys(LAYERS, float(depth >= 1 - reach))
    chance = 0.75 if kind == "tova" else reach
    return {layer: 1.0 if rng.random() < chance else rng.choice([0.0, 0.4]) for layer in LAYERS}


def _needle(architecture: str, rng: random.Random) -> Iterator[Told]:
    for length in (128, 512, 1024):
        for depth in DEPTHS:
            rows = []
            for trial in range(8):
                id, kept = f"n/{length}/{depth}/{trial}", _kept(architecture, depth, length, rng)
                whole = not kept or min(kept.values()) == 1 or kept.get(None) == 1
                hit = rng.random() < (0.95 if whole else 0.1)
                rows += case(id, accuracy_strict=hit, accuracy_substring=hit)
                policy = "budget" in architecture and length > 128
                rows += case(id, evicted_tokens=4 * (length - 128) * policy) + held(id, kept)
            acted = 8 * ("budget" in architecture and length > 128)
            axes = {"length": length, "depth": depth}
            yield Told(architecture, "needle:trials=8,lengths=128+512+1024", axes, rows, 8, acted)


def _several(architecture: str, rng: random.Random) -> Iterator[Told]:
    for length in (512, 1024):
        for depth in DEPTHS:
            rows = []
            for trial in range(8):
                id = f"m/{length}/{depth}/{trial}"
                spans = [_kept(architecture, depth + n * (1 - depth) / 4, length, rng) for n in range(4)]
                found = [not kept or min(kept.values()) == 1 or kept.get(None) == 1 for kept in spans]
                rows += case(
                    id, accuracy_any=any(found), accuracy_all=all(found), accuracy_mean=sum(found) / 4,
                    evicted_tokens=512 * ("budget" in architecture),
                )  # fmt: skip
                for span, kept in enumerate(spans):
                    rows += held(id, kept, span)
            axes = {"length": length, "depth": depth}
            yield Told(architecture, "needle:needles=4,query=all", axes, rows, 8)


def _books(architecture: str, rng: random.Random) -> Iterator[Told]:
    bits = {"transformer": 2.30, "yoco": 2.33, "tova": 2.36, "lococo": 2.39, "window": 2.42}
    base = bits.get(architecture.partition(":")[0], 2.55)
    books = [(f"book-{n}", 40 - 6 * n) for n in range(6)]
    rows = []
    for place, (book, buckets) in enumerate(books):
        nats = [(base + 0.1 * place + 0.6 / (n + 1) + rng.uniform(0, 0.02)) * 177.0 for n in range(buckets)]
        axes = {"book": book, "bucket": 256}
        sums = {"nll_nats": sum(nats), "num_bytes": 256 * buckets, "num_tokens": 256 * buckets}
        rows += [{**row, "axes": axes} for row in case(book, **sums, num_words=42 * buckets)]
        for name, values in (("bucket_nll_nats", nats), ("bucket_tokens", [256.0] * buckets)):
            rows += [
                {"case": book, "metric": name, "value": value, "bin": n, "axes": axes}
                for n, value in enumerate(values)
            ]
    yield Told(architecture, "pg19:books=6,bucket=256", {"context": 10240, "protocol": "stream"}, rows, 6)
    rows = []
    for place, (book, buckets) in enumerate(books):
        for chunk in range(buckets // 4):
            nats = (base + 0.3 + 0.1 * place + rng.uniform(0, 0.05)) * math.log(2) * 1024
            sums = {"nll_nats": nats, "num_bytes": 1024, "num_tokens": 1024, "num_words": 170}
            axes = {"book": book, "chunk": chunk}
            rows += [{**row, "axes": axes} for row in case(f"{book}/{chunk}", **sums)]
    yield Told(architecture, "pg19:protocol=tova,chunk=1024", {"context": 1024, "protocol": "tova"}, rows, 33)


def _scrolls(architecture: str, rng: random.Random) -> Iterator[Told]:
    worse = 0.0 if architecture.startswith(("transformer", "yoco")) else 0.25
    for task in SCROLLS_TASKS:
        rows = []
        for n in range(12):
            good = max(0.0, rng.gauss(0.3 - worse / 3, 0.1))
            if task in ROUGE_TASKS:
                scores = {"rouge1": good, "rouge2": good / 3, "rougeL": good / 1.5}
            elif task in ("quality", "contract_nli"):
                scores = {"exact_match": float(rng.random() < good)}
            else:
                scores = {"token_f1": good}
            hard = random.Random(f"{task}/{n}").uniform(0.8, 1.6)
            gold = {"gold_nll_nats": (hard + worse) * 100, "gold_tokens": 60, "gold_bytes": 100}
            rows += case(f"{task}-{n}", **scores, answer_tokens=20, **gold)
        acted = 0 if task == "contract_nli" else None
        axes = {"task": task, "length": 2048, "prompt": "zeroscrolls", "truncates": "the document"}
        text = "scrolls:all@0a1b2c3d4e5f"
        yield Told(architecture, "scrolls:length=2048", axes, rows, 24, acted, text)


def _lm_eval(architecture: str, rng: random.Random) -> Iterator[Told]:
    choices, cloze = ("acc", "acc_norm"), ("acc", "perplexity")
    for task, metrics in {"hellaswag": choices, "piqa": choices, "lambada_openai": cloze}.items():
        rows = [{"metric": "sample_len", "value": 100.0}, {"metric": "truncated_requests", "value": 0.0}]
        for name in metrics:
            value = rng.uniform(20, 40) if name == "perplexity" else rng.uniform(0.3, 0.5)
            rows += [{"metric": name, "value": value}, {"metric": f"{name}_stderr", "value": value / 10}]
        acted = {"hellaswag": None, "piqa": 0, "lambada_openai": 37}[task] if "budget" in architecture else 0
        text = "lm-eval 0.4.13: three@0a1b2c3d4e5f"
        yield Told(architecture, "lm_eval:tasks=three", {"task": task}, rows, 100, acted, text)


def _ruler(architecture: str, rng: random.Random) -> Iterator[Told]:
    for length in (1024, 2048):
        for task in ("multikey", "multivalue", "vartrack"):
            rows = []
            for trial in range(6):
                id = f"r/{task}/{length}/{trial}"
                part = rng.choice([0.0, 0.25, 0.5, 1.0]) if task != "multikey" else float(rng.random() < 0.6)
                gone = 9.0 * ("budget" in architecture)
                rows += case(id, ruler_part=part, ruler_all=part == 1, evicted_tokens=gone)
                rows += held(id, _kept(architecture, 0.5, length, rng))
            yield Told(architecture, "ruler:trials=6", {"task": task, "length": length}, rows, 6)


def _recall(architecture: str, rng: random.Random) -> Iterator[Told]:
    for pairs in (16, 64):
        rows = []
        for trial in range(6):
            id, right = f"q/{pairs}/{trial}", rng.random() < 0.6
            rows += case(id, recall_accuracy=right, gold_nll_nats=0.1 if right else 2 + rng.random())
            rows += held(id, _kept(architecture, 0.0, 8 * pairs, rng))
        yield Told(architecture, "recall", {"pairs": pairs, "length": 8 * pairs}, rows, 6, text=None)
