"""A paper's figures beside a run's: ratios of what the run measured, and plain words where it did not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from recorded_run import Fixture, manifest

from harness.report import load_run
from harness.report.groups import groups
from harness.report.papers import UNMEASURED, paper_section
from harness.store import Row, axes_json, write_rows
from harness.throughput import PLUS_1024

FULL, YOCO = "transformer", "yoco:mixer=retention"
GIB = 2.0**30


def row(cell: str, architecture: str, axes: dict, metric: str, value: float, **changes) -> Row:
    base = Row(
        run="invented", cell=cell, architecture=architecture, suite="decode:contexts=32768", metric=metric,
        value=value, unit="", axis="systems", axes=axes_json(axes), repeat=0, dtype="bfloat16",
        device="cuda", batch=int(axes["batch"]), weights="random@0", machine="m", prompt_mode="parallel",
        validity="valid",
    )  # fmt: skip
    return replace(base, **changes)


def group_of(folder, plan: str, cells: list[tuple[str, str, dict, dict[str, float]]]):
    """A run of that plan as the page reads it; a cell: key, architecture, axes, metrics."""
    listed = []
    for key, architecture, axes, metrics in cells:
        rows = [
            row(key, architecture, axes, name, value, phase=name.partition("_")[0])
            for name, value in metrics.items()
        ]
        write_rows(folder / "cells" / f"{key}.parquet", rows)
        listed.append(
            {"key": key, "architecture": architecture, "suite": "decode:contexts=32768", "axes": axes}
        )
    manifest(folder, "invented", listed, Fixture(axis="systems"))
    path = folder / "run.json"
    told = json.loads(path.read_text())
    told["plan"]["name"], told["machine"]["gpu"] = plan, {"name": "Invented GPU"}
    path.write_text(json.dumps(told))
    (group,) = groups(load_run(folder))
    return group


def lines(group) -> dict[tuple[str, str], list[str]]:
    (section,) = paper_section(group)
    assert "Invented GPU" in section.lead
    return {(r[0].text, r[1].text): [field.text for field in r[2:]] for r in section.tables[0].rows}


def test_yoco_ratios_are_of_what_was_measured(tmp_path):
    axes = {"context": 32768, "batch": 1}

    def cell(prefill_s, step_s, prefill_gib, decode_gib, weights_gib, cache_gib, floor_s, rate):
        return {
            "prefill_s": prefill_s, "decode_step_s": step_s, "peak_prefill_bytes": prefill_gib * GIB,
            "peak_decode_bytes": decode_gib * GIB, "weights_bytes": weights_gib * GIB,
            "cache_bytes_predicted": cache_gib * GIB, "prefill_floor_s": floor_s, PLUS_1024: rate,
        }  # fmt: skip

    cells = [
        ("a", FULL, axes, cell(1.2, 0.004, 15.0, 9.0, 6.0, 4.0, 0.9, 50.0)),
        ("b", YOCO, axes, cell(0.4, 0.002, 5.0, 6.0, 4.5, 0.5, 0.3, 110.0)),
    ]
    found = lines(group_of(tmp_path, "paper-yoco", cells))
    at = "32,768 tokens"
    # The higher peak of either phase: 15 GiB, and 6 GiB.
    assert found["memory, Transformer / YOCO", at] == ["1.95×", "2.50×", "2.00×"]
    assert found["prefill, Transformer / YOCO", at] == ["2.87×", "3.00×", "3.00×"]
    name = "prefill + 1,024 generated, YOCO / Transformer"
    assert found[name, at] == ["2.72×", "2.20×", "unknown"]
    # Nothing was measured at the other contexts, and nothing stands in its place.
    others = [line for (_, context), line in found.items() if context != at]
    assert len(others) == 15 and all(line[1] == UNMEASURED for line in others)


def test_a_peak_of_one_phase_is_no_peak(tmp_path):
    axes = {"context": 32768, "batch": 1}
    cells = [
        ("a", FULL, axes, {"prefill_s": 1.0, "peak_prefill_bytes": 8 * GIB}),
        ("b", YOCO, axes, {"prefill_s": 1.0, "peak_prefill_bytes": 4 * GIB, "peak_decode_bytes": 4 * GIB}),
    ]
    found = lines(group_of(tmp_path, "paper-yoco", cells))
    assert found["memory, Transformer / YOCO", "32,768 tokens"][1] == UNMEASURED


@pytest.mark.parametrize(("plan", "small", "at"), [
    ("paper-tova", "tova:budget=256,prompt=bulk", 4096), ("paper-lococo", "lococo:budget=128", 3482),
])  # fmt: skip
def test_rates_are_the_best_of_a_sweep(tmp_path, plan, small, at):
    other = "h2o:budget=128" if plan == "paper-lococo" else FULL
    rates = {other: {1: 100.0, 2: 150.0}, small: {1: 90.0, 2: 170.0, 4: 300.0}}
    cells = [
        (f"{spec[:3]}{batch}", spec, {"context": at, "batch": batch}, {"decode_tokens_per_s": rate})
        for spec, own in rates.items()
        for batch, rate in own.items()
    ]
    found = lines(group_of(tmp_path, plan, cells))
    name = (
        "decode rate, LoCoCo / H2O of 128"
        if plan == "paper-lococo"
        else "decode rate, TOVA of 256 / full cache"
    )
    assert found[name, f"{at:,} tokens"][1] == "2.00×"
    if plan == "paper-tova":
        assert found["largest batch, TOVA of 256", "4,096 tokens"][:2] == ["139", "4"]
        assert found["largest batch, full cache", "4,096 tokens"][:2] == ["8", "2"]
        assert found["largest batch, TOVA of 512", "4,096 tokens"][1] == UNMEASURED


def test_other_runs_have_no_such_table(tmp_path):
    cells = [("a", FULL, {"context": 32768, "batch": 1}, {"prefill_s": math.pi})]
    assert paper_section(group_of(tmp_path, "quality", cells)) == []
