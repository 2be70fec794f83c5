"""MFU, MBU and floors against numbers worked out by hand, and what is said where a part is unknown."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness.metrics import METRICS
from harness.roofline import DERIVED, bandwidth_at, derived_rows
from harness.store import SCHEMA, Row

#: 100 GFLOP/s; 40 GB/s from 1 MB, 10 GB/s from 16 MB on.
CEILINGS = {
    "device": "cpu",
    "dtype": "fp32",
    "threads": 1,
    "flops_per_s": 100e9,
    "read_bytes_per_s": {"1000000": 40e9, "16000000": 10e9},
    "measured": "by hand",
    "note": None,
}
MACHINE = {"id": "m", "ceilings": CEILINGS, "ceilings_note": None}
BASE = Row(
    run="r", cell="c", architecture="a", suite="decode", metric="", value=math.nan, unit="", repeat=0,
    axes='{"batch": 2, "context": 8}', dtype="fp32", device="cpu", threads=1, batch=2, machine="m",
    weights="w", message="a remark",
)  # fmt: skip
WORK = {
    "prefill_flops": 4e9,
    "decode_flops": 1e8,
    "read_bytes_per_step": 16e6,  # of which the weights are 1 MB
    "weights_read_bytes": 1e6,
}


def execution(repeat=0, prefill_s=0.08, steps_s=(0.002, 0.004), **base) -> list[Row]:
    """Times of one repeat; CPU time is a tenth above wall time."""
    own = dataclasses.replace(BASE, repeat=repeat, **base)
    times = {"prefill_s": prefill_s, "prefill_cpu_s": 1.1 * prefill_s}
    times["decode_step_cpu_s"] = 1.1 * sum(steps_s) / len(steps_s)
    rows = [
        dataclasses.replace(own, metric=name, value=value, unit="s", phase=name.partition("_")[0])
        for name, value in times.items()
    ]
    return rows + [
        dataclasses.replace(own, metric="decode_step_s", value=value, unit="s", step=step, phase="decode")
        for step, value in enumerate(steps_s)
    ]


def predictions(work=WORK, **base) -> list[Row]:
    own = dataclasses.replace(BASE, **base)
    return [dataclasses.replace(own, metric=name, value=value) for name, value in work.items()]


def frame(*parts: list[Row]) -> pd.DataFrame:
    records = [dataclasses.asdict(row) for part in parts for row in part]
    import pyarrow as pa

    return pa.Table.from_pylist(records, schema=SCHEMA).to_pandas()


def derive(rows: pd.DataFrame, machine=MACHINE, **manifest) -> pd.DataFrame:
    found = derived_rows(rows, {"machine": machine, **manifest})
    assert list(found.columns) == list(rows.columns)
    assert set(found["metric"]) <= set(DERIVED) <= METRICS.keys()
    assert (found["unit"] == [METRICS[name].unit for name in found["metric"]]).all()
    return found


def numbers(found: pd.DataFrame, repeat=0) -> dict[str, float]:
    own = found[found["repeat"] == repeat]
    assert own["metric"].is_unique
    return dict(zip(own["metric"], own["value"], strict=True))


def test_by_hand_on_one_thread_with_cpu_time():
    found = numbers(derive(frame(predictions(), execution())))
    assert found == pytest.approx(
        {
            "prefill_mfu": 4e9 / (0.088 * 100e9),
            "prefill_floor_s": 0.04,
            "prefill_over_floor": 0.088 / 0.04,
            "decode_mbu": 16e6 / (0.0033 * 10e9),  # the weights are in those 16 MB, once
            "decode_floor_s": 0.0016,
            "decode_over_floor": 0.0033 / 0.0016,
        }
    )


@pytest.mark.parametrize(("device", "threads"), [("cpu", 4), ("cuda", 1)])
def test_by_hand_with_device_time_where_cpu_time_is_something_else(device, threads):
    known = {"device": device, "threads": threads}
    machine = MACHINE | {"ceilings": CEILINGS | known}
    found = numbers(derive(frame(predictions(**known), execution(**known)), machine))
    assert found["prefill_mfu"] == pytest.approx(0.5)
    assert found["decode_mbu"] == pytest.approx(16e6 / (0.003 * 10e9))


def test_work_is_of_the_whole_batch_already():
    """Rows hold FLOPs and bytes of all requests: the batch column changes nothing."""
    one = numbers(derive(frame(predictions(batch=1), execution(batch=1))))
    assert one == numbers(derive(frame(predictions(batch=16), execution(batch=16))))


def test_each_repeat_has_its_shares_and_the_cell_one_floor():
    found = derive(frame(predictions(), execution(), execution(1, 0.16, (0.01,))))
    assert numbers(found, 1) == pytest.approx(
        {
            "prefill_mfu": 4e9 / (0.176 * 100e9),
            "prefill_over_floor": 0.176 / 0.04,
            "decode_mbu": 16e6 / (0.011 * 10e9),
            "decode_over_floor": 0.011 / 0.0016,
        }
    )
    assert len(numbers(found)) == 6


def test_the_longer_of_the_two_is_the_floor():
    """A prompt so short that reading the weights outlasts its arithmetic; a step with much arithmetic."""
    work = WORK | {"prefill_flops": 1e5, "decode_flops": 1e9}
    found = numbers(derive(frame(predictions(work), execution())))
    assert found["prefill_floor_s"] == pytest.approx(1e6 / 40e9)
    assert found["prefill_mfu"] == pytest.approx(1e5 / (0.088 * 100e9))
    assert found["decode_floor_s"] == pytest.approx(0.01)
    assert found["decode_mbu"] == pytest.approx(16e6 / (0.0033 * 10e9))
    assert found["decode_over_floor"] == pytest.approx(0.33)  # below 1, and not cut off


def test_bandwidth_is_that_of_the_working_set():
    sets = np.array([1e3, 1e6, 4e6, 16e6, 1e12, math.nan])
    assert bandwidth_at(CEILINGS, sets) == pytest.approx(
        [40e9, 40e9, 25e9, 10e9, 10e9, math.nan], nan_ok=True
    )
    slow_start = {"read_bytes_per_s": {"16000000": 10e9, "1000000": 40e9, "1000": 2e9}}
    assert bandwidth_at(slow_start, np.array([1e3, 1e4])) == pytest.approx([40e9, 40e9])


def test_rows_are_like_those_of_their_cell():
    rows = frame(predictions(), execution())
    found = derive(rows)
    same = ["run", "cell", "architecture", "suite", "axes", "dtype", "device", "threads", "batch", "weights"]
    assert (found[same] == rows[same].iloc[0]).all(axis=None)
    assert (found["message"] == "a remark").all()
    assert found[["case", "step", "layer", "bin", "validity", "validity_reasons"]].isna().all(axis=None)
    assert (found["phase"] == found["metric"].str.partition("_")[0]).all()


@pytest.mark.parametrize(
    ("rows", "machine", "names", "words"),
    [
        (
            frame(predictions(), execution()),
            {"id": "m", "ceilings": None, "ceilings_note": "Not measured: --no-ceilings."},
            DERIVED,
            "No ceilings of this machine: Not measured: --no-ceilings.",
        ),
        (frame(predictions(), execution()), {"id": "m"}, DERIVED, "not measured"),
        (frame(predictions(), execution()), MACHINE | {"id": "n"}, DERIVED, "No ceilings of this machine"),
        (
            frame(predictions(dtype="bf16"), execution(dtype="bf16")),
            MACHINE,
            DERIVED,
            "another device, dtype",
        ),
        (frame(predictions(threads=2), execution(threads=2)), MACHINE, DERIVED, "another device, dtype"),
        (frame(execution()), MACHINE, DERIVED, "does not say what a"),
        (
            frame(predictions(WORK | {"prefill_flops": math.nan}), execution()),
            MACHINE,
            ("prefill_mfu", "prefill_floor_s", "prefill_over_floor"),
            "does not say what a prompt computes",
        ),
        (
            frame(predictions(WORK | {"read_bytes_per_step": math.nan}), execution()),
            MACHINE,
            ("decode_mbu", "decode_floor_s", "decode_over_floor"),
            "does not say what a step reads",
        ),
        (
            frame(predictions(), execution(prefill_s=math.nan)),
            MACHINE,
            ("prefill_mfu", "prefill_over_floor"),
            "The time was not measured",
        ),
    ],
)
def test_what_is_unknown_is_nan_and_says_why(rows, machine, names, words):
    found = derive(rows, machine).set_index("metric")
    assert len(found) == 6
    unknown = found["value"].isna()
    assert set(found.index[unknown]) == set(names)
    assert found["message"][unknown].str.contains(words, regex=False).all()
    assert (found["message"][~unknown] == "a remark").all()


def test_without_the_lesser_part_the_floor_is_that_of_the_other():
    """Runs from before `weights_read_bytes` have MFU and floors all the same."""
    work = {name: value for name, value in WORK.items() if name in ("prefill_flops", "read_bytes_per_step")}
    found = numbers(derive(frame(predictions(work), execution())))
    assert found["prefill_floor_s"] == pytest.approx(0.04)
    assert found["decode_floor_s"] == pytest.approx(0.0016)


def test_what_ran_once_and_cold_or_failed_has_no_rows():
    assert derive(frame(predictions(repeat=None), execution(None))).empty
    assert derive(frame(predictions(), execution(status="crash"))).empty
    assert derive(frame(predictions())).empty
    assert derive(frame([])).empty


def test_each_machine_of_a_run_has_its_own_roof():
    other = CEILINGS | {"flops_per_s": 200e9}
    rows = frame(
        predictions(), execution(), predictions(cell="d", machine="n"), execution(cell="d", machine="n")
    )
    rows = pd.concat([rows, frame(predictions(cell="e", machine="o"), execution(cell="e", machine="o"))])
    cards = {"m": {"id": "m"}, "n": {"id": "n", "ceilings": other}, "o": {"id": "o"}}
    found = derive(rows.reset_index(drop=True), machines=cards)
    mfu = found[found["metric"] == "prefill_mfu"].set_index("cell")["value"]
    assert mfu["c"] == pytest.approx(2 * mfu["d"]) and math.isnan(mfu["e"])


def test_its_own_rows_change_nothing():
    rows = frame(predictions(), execution())
    found = derive(rows)
    again = derive(pd.concat([rows, found], ignore_index=True))
    pd.testing.assert_frame_equal(again, found)


def test_importing_it_imports_no_torch():
    heavy = "{'torch', 'models', 'suites', 'pynvml'}"
    code = f"import sys, harness.roofline; sys.exit(bool({heavy} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
