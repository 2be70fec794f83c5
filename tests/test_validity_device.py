"""Verdicts, memory and its ledger from a replayed GPU: clocks, throttling, neighbours, MIG, a lost device."""

import math
from dataclasses import replace

import pytest
from fake_nvml import UUIDS, Replay
from validity_help import cell_rows, executions, judged, only, reasons, record, replayed, samples

from harness import nvml
from harness.validity.ledger import ledger, total

MARKS = executions()
END_S = MARKS[-1][0] + 1
OURS = (4242, 3 << 30)


def replay(frames, uuid=None, environ=None, **options):
    """Telemetry of one cell while a device went through `frames`, spread evenly over the run."""
    ticks = int(END_S / 0.05)
    spread = [frames[tick * len(frames) // ticks] for tick in range(ticks)]
    module = Replay({0: spread, 1: [{"used": 9 << 30, "throttle": 0x80}]}, **options)
    uuid = uuid or nvml.device_uuid(module, 0, environ or {})
    return record(MARKS, replayed(nvml.open_gpu("cuda", uuid, module), ticks))


def test_a_calm_device_says_nothing():
    rows = judged(cell_rows(), replay([{"processes": (OURS,)}]))
    assert set(rows["validity"].dropna()) == {"valid"}


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([{"throttle": 0x8}], "throttled"),
        ([{"throttle": 0x20}], "throttled"),
        ([{"throttle": 0x40}], "throttled"),
        ([{"throttle": 0x80}], "throttled"),
        ([{"throttle": 0x4}], "power_capped"),
        ([{"throttle": 0x4 | 0x40}], "throttled; power_capped"),
        ([{"throttle": 0x1}], ""),
        ([{"throttle": 0x2}], ""),
        ([{"sm_mhz": 1980}, {"sm_mhz": 1845}], "clock_drift"),
        ([{"sm_mhz": 1980}, {"sm_mhz": 1905}], ""),
        ([{"memory_mhz": 2619}, {"memory_mhz": 1593}], "clock_drift"),
        ([{"sm_mhz": 1980}, {"sm_mhz": 345, "throttle": 0x1}], ""),  # idle, and so slow
        ([{"processes": (OURS, (7, None))}], "foreign_gpu_process"),
        ([{"processes": ((7, None), (8, None))}], ""),  # of another namespace: ours may be among them
    ],
)
def test_what_the_device_did_concerns_times_and_no_bytes_or_scores(frames, expected):
    rows = judged(cell_rows(), replay(frames))
    assert reasons(rows, "prefill_s") == reasons(rows, "decode_step_s") == {expected}
    for name in ("prefill_cpu_s", "cache_bytes_live", "peak_prefill_bytes", "accuracy_strict"):
        assert reasons(rows, name) == {""}
    shared = "foreign_gpu_process" if expected == "foreign_gpu_process" else ""
    assert reasons(rows, "nvml_delta_prefill_bytes") == {shared}


def test_a_slowdown_in_one_phase_or_in_the_warm_up_leaves_the_others_alone():
    def throttled(begin_s, end_s):
        slow = samples(END_S, throttle_reasons=lambda t: "hw_thermal" if begin_s < t < end_s else "none")
        return judged(cell_rows(), record(MARKS, slow))

    decode = next(t for t, _, phase in MARKS if phase == "decode" and t > 10)
    rows = throttled(decode + 0.1, decode + 0.5)
    assert reasons(rows, "decode_step_s") == {"throttled"}
    assert reasons(rows, "prefill_s") == {""}
    rows = throttled(1.0, 4.0)
    assert reasons(rows, "prefill_s") == reasons(rows, "decode_step_s") == {""}


def test_interleaved_cells_are_told_apart():
    marks = executions(("a", "b"))
    mine = [t for t, cell, phase in marks if (cell, phase) == ("b", "prefill")]
    slow = samples(
        marks[-1][0] + 1,
        throttle_reasons=lambda t: "sw_thermal" if any(m < t < m + 1 for m in mine) else "none",
    )
    rows = judged(cell_rows("a") + cell_rows("b"), record(marks, slow))
    assert reasons(rows, "prefill_s", cell="b") == {"throttled"}
    assert reasons(rows, "prefill_s", cell="a") == {""}
    assert reasons(rows, "decode_step_s", cell="b") == {""}


def test_an_execution_that_was_broken_off_counts_for_nothing():
    """A worker died in the decode of round 3, on a throttled GPU; another one measured all anew."""
    died = [mark for mark in executions(rounds=3) if mark[0] < 9][:-1]
    again = executions(start_s=20.0)
    slow = samples(again[-1][0] + 1, throttle_reasons=lambda t: "hw_thermal" if t < 19 else "none")
    rows = judged(cell_rows(), record(died + again, slow))
    assert reasons(rows, "prefill_s") == reasons(rows, "decode_step_s") == {""}


def test_a_batch_that_was_broken_off_between_two_counts_for_nothing():
    """Its batches are journalled: the second one was killed on a throttled GPU and measured again later."""
    broken = [(t + 10, c, p) for t, c, p in executions(rounds=1)][:-1]
    marks = [*executions(rounds=1), *broken, *executions(rounds=1, start_s=20)]
    slow = samples(25, throttle_reasons=lambda t: "hw_thermal" if 10 < t < 19 else "none")
    measured = [row for row in cell_rows(repeats=2, suite="pg19") if row.metric != "new_tokens_asked"]
    rows = judged([replace(row, repeat=None) for row in measured], record(marks, slow))
    assert reasons(rows, "prefill_s") == reasons(rows, "decode_step_s") == {""}


def test_only_the_device_that_is_meant_is_sampled():
    """The second one is throttled."""
    calm = replay([{"processes": (OURS,)}], environ={"CUDA_VISIBLE_DEVICES": UUIDS[0]})
    other = replay([{"processes": (OURS,)}], environ={"CUDA_VISIBLE_DEVICES": "1,0"})
    assert reasons(judged(cell_rows(), calm), "prefill_s") == {""}
    assert reasons(judged(cell_rows(), other), "prefill_s") == {"throttled"}


def test_memory_of_the_process_is_taken_where_the_driver_tells_it():
    frames = [{"processes": ((4242, n << 20), (7, 9 << 30))} for n in (100, 100, 300, 200)]
    row = only(judged(cell_rows(), replay(frames)), "nvml_delta_decode_bytes")
    assert row.value == 300 << 20
    assert "process" in row.message
    assert (row.phase, row.unit, row.repeat != row.repeat) == ("continuation", "bytes", True)


def test_otherwise_it_is_the_device_less_what_it_held_before():
    """usedGpuMemory is None, as in many containers."""
    unknown = [{"used": (n << 20), "processes": ((4242, None),)} for n in (500, *[800] * 20, 900, 800)]
    row = only(judged(cell_rows(), replay(unknown)), "nvml_delta_decode_bytes")
    assert row.value == 400 << 20
    assert "device" in row.message


def test_on_mig_there_is_memory_and_the_rest_is_unknown():
    refused = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage")
    refused += ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses")
    mig = replay([{"used": 1 << 30}, {"used": 2 << 30}], uuid="MIG-1234", refuse=refused)
    rows = judged(cell_rows(), mig)
    assert only(rows, "nvml_delta_prefill_bytes").value == 1 << 30
    assert math.isnan(only(rows, "prefill_j_per_token").value)
    assert reasons(rows, "prefill_s") == {""}


def test_a_device_that_is_lost_leaves_no_number_behind():
    rows = judged(cell_rows(), replay([{"lost": True}]))
    row = only(rows, "nvml_delta_prefill_bytes")
    assert math.isnan(row.value)
    assert "does not tell" in row.message
    assert reasons(rows, "nvml_delta_prefill_bytes") == {"-"}


def test_a_cpu_job_has_its_resident_set():
    own = samples(END_S, gpu_used_bytes=None, rss_bytes=lambda t: 1000 if t < 10 else 1500)
    rows = judged([replace(row, device="cpu") for row in cell_rows()], record(MARKS, own))
    assert only(rows, "rss_delta_prefill_bytes").value == 500
    assert "nvml_delta_prefill_bytes" not in set(rows["metric"])


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ([], "No sample"),
        (samples(0.9), "No sample"),  # ended before the first phase
        ([sample for sample in samples(END_S) if sample["t_s"] > 3], "before the job"),
    ],
)
def test_memory_without_samples_is_unknown_and_says_why(own, said):
    row = only(judged(cell_rows(), record(MARKS, own)), "nvml_delta_prefill_bytes")
    assert math.isnan(row.value)
    assert said in row.message


def parts(rows, phase="prefill"):
    return {part.name: part.num_bytes for part in ledger(rows, phase)}


def test_the_ledger_adds_up_to_what_nvml_saw():
    rows = judged(cell_rows(), replay([{"processes": ((4242, 3000),)}]))
    assert parts(rows) == {
        "weights": 900, "cache": 400, "other models": 200, "activations + logits": 500, "fragmentation": 600,
        "driver": 400, "unexplained": 0,
    }  # fmt: skip
    assert total(ledger(rows, "prefill")) == total(ledger(rows, "continuation")) == 3000
    assert parts(rows, "continuation")["activations + logits"] == 200


def test_a_part_below_zero_is_shown_as_unexplained():
    rows = judged(cell_rows(), replay([{"processes": ((4242, 2500),)}]))
    assert parts(rows)["driver"] == 0
    assert parts(rows)["unexplained"] == -100
    assert total(ledger(rows, "prefill")) == 2500


@pytest.mark.parametrize(
    ("missing", "unknown", "whole"),
    [
        (["nvml_delta_prefill_bytes"], {"driver"}, 2600),
        (["nvml_delta_prefill_bytes", "peak_prefill_reserved_bytes"], {"driver", "fragmentation"}, 2000),
        (["baseline_prefill_bytes"], {"other models", "activations + logits"}, 3000),
        (["peak_prefill_bytes"], {"activations + logits", "fragmentation"}, 3000),
        (["weights_bytes"], {"weights", "other models"}, 3000),
    ],
)
def test_a_part_that_cannot_be_known_is_none_and_the_sum_stays(missing, unknown, whole):
    rows = judged(cell_rows(), replay([{"processes": ((4242, 3000),)}]))
    left = rows[~rows["metric"].isin(missing)]
    assert {name for name, held in parts(left).items() if held is None} == unknown
    assert total(ledger(left, "prefill")) == whole


def test_the_ledger_of_a_cpu_job_ends_at_its_resident_set():
    rows = judged([replace(row, device="cpu") for row in cell_rows()])
    assert parts(rows) == {
        "weights": 900, "cache": 400, "other models": None, "activations + logits": 500,
        "fragmentation": None, "driver": 200, "unexplained": 0,
    }  # fmt: skip
    assert ledger(rows[rows["metric"] == "cache_bytes_live"], "prefill") == []
    assert ledger(rows.iloc[:0], "prefill") == []
