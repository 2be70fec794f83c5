"""Joules per token: a known counter comes back, and every way in which it means nothing has its sentence."""

import math
from dataclasses import replace

import pytest
from fake_nvml import Replay
from validity_help import cell_rows, executions, judged, only, reasons, record, replayed, samples

from harness import nvml

MARKS = executions(("a", "b"))
END_S = MARKS[-1][0] + 1
ROWS = cell_rows("a") + cell_rows("b")
#: Watts of each cell and phase, the rest being idle.
WATTS = {("a", "prefill"): 600.0, ("a", "decode"): 200.0, ("b", "prefill"): 300.0, ("b", "decode"): 250.0}


def spent_j(t_s, marks=MARKS, watts=WATTS):
    """The counter at a time, exactly."""
    ends = [t for t, _, _ in marks[1:]] + [math.inf]
    total = 80.0 * min(t_s, marks[0][0])
    for (begin, cell, phase), end in zip(marks, ends, strict=True):
        total += watts.get((cell, phase), 80.0) * max(0.0, min(t_s, end) - begin)
    return total


def counter(period_s=0.1):
    """As a driver gives it: the true value of the last update."""
    return lambda t_s: spent_j(math.floor(t_s / period_s + 1e-9) * period_s)


def per_token(rows, name, cell="a"):
    return only(rows[rows["cell"] == cell], name)


def test_joules_of_interleaved_cells_are_told_apart():
    """Five repeats of 32 prompt tokens in 1 s, and of 8 new ones in 2 s; the warm-up is in neither."""
    rows = judged(ROWS, record(MARKS, samples(END_S, step_s=0.02, energy_j=counter())))
    assert per_token(rows, "prefill_j_per_token").value == pytest.approx(600 / 32, rel=0.03)
    assert per_token(rows, "decode_j_per_token").value == pytest.approx(400 / 8, rel=0.03)
    assert per_token(rows, "prefill_j_per_token", "b").value == pytest.approx(300 / 32, rel=0.03)
    assert per_token(rows, "decode_j_per_token", "b").value == pytest.approx(500 / 8, rel=0.03)
    assert per_token(rows, "prefill_j_per_token").unit == "J/token"
    assert reasons(rows, "prefill_j_per_token") == {""}


def test_a_counter_read_through_nvml_comes_back_in_joules():
    marks, step_s = executions(), 0.05
    ticks = int((marks[-1][0] + 1) / step_s)
    module = Replay({0: [{"energy_mj": 1000 * 400 * tick * step_s} for tick in range(ticks)]})
    taken = replayed(nvml.open_gpu("cuda", nvml=module), ticks, step_s)
    rows = judged(cell_rows(), record(marks, taken))
    assert per_token(rows, "prefill_j_per_token").value == pytest.approx(400 / 32)


def test_generated_tokens_count_like_decoded_ones():
    rows = [replace(r, phase="generate") if r.phase == "decode" else r for r in cell_rows()]
    names = {"decode_step_s": "continuation_s", "new_tokens": "continuation_tokens"}
    rows = [replace(row, metric=names.get(row.metric, row.metric)) for row in rows]
    marks = [(t, c, "generate" if p == "decode" else p) for t, c, p in executions()]
    found = judged(rows, record(marks, samples(END_S)))
    row = per_token(found, "decode_j_per_token")
    assert row.value == pytest.approx(800 / 8)
    assert row.phase == "generate"


def short(phases=None, step_s=0.005, period_s=0.1, rounds=6):
    marks = executions(rounds=rounds, phases=phases or {})
    own = samples(marks[-1][0] + 1, step_s, energy_j=lambda t: 400 * math.floor(t / period_s) * period_s)
    return record(marks, own)


@pytest.mark.parametrize(
    ("telemetry", "said"),
    [
        (record([], []), "No GPU was sampled."),
        (record(MARKS, []), "No GPU was sampled."),
        (record(MARKS, samples(END_S, energy_j=None)), "no energy counter"),
        (record(MARKS, samples(END_S, energy_j=lambda t: 400 * t if t < 9 else None)), "fell silent"),
        (record(MARKS, [s for s in samples(END_S) if not 7.7 < s["t_s"] < 8.3]), "fell silent"),
        (record(MARKS, [s for s in samples(END_S) if s["t_s"] > 12]), "fell silent"),
        (record(MARKS, samples(END_S, energy_j=lambda t: 400 * (t if t < 8 else t - 8))), "ran backwards"),
        (short({"allocate": 0.1, "prefill": 0.15, "decode": 0.5, "idle": 0.1}), "too short"),  # 0.75 s
        (short({"allocate": 0.1, "prefill": 1.0, "decode": 1.0, "idle": 0.1}, period_s=1.0), "too short"),
        (
            short({"allocate": 0.1, "prefill": 0.25, "decode": 1.0, "idle": 0.1}, period_s=0.2),
            "5 windows",
        ),  # an update each
        (record(executions(rounds=4), samples(END_S)), "4 of 5 executions"),
    ],
)
def test_what_means_nothing_is_nan_and_says_why(telemetry, said):
    rows = judged(cell_rows(), telemetry)
    row = per_token(rows, "prefill_j_per_token")
    assert math.isnan(row.value)
    assert said in row.message, row.message
    assert row.message.endswith(".")
    assert reasons(rows, "prefill_j_per_token") == {"-"}


def test_windows_that_the_counter_hardly_moves_in_take_their_neighbours_energy():
    """Twelve of them are 3 s and 15 moves together, and still each has little more than one."""
    phases = {"allocate": 0.1, "prefill": 0.25, "decode": 1.0, "idle": 0.1}
    rows = judged(cell_rows(repeats=12), short(phases, period_s=0.2, rounds=13))
    assert "12 windows" in per_token(rows, "prefill_j_per_token").message
    assert per_token(rows, "decode_j_per_token").value == pytest.approx(400 / 8, rel=0.1)


def test_a_cpu_job_says_so():
    rows = judged([replace(row, device="cpu") for row in cell_rows()], record(MARKS, samples(END_S)))
    assert "CPU" in per_token(rows, "prefill_j_per_token").message
    assert math.isnan(per_token(rows, "decode_j_per_token").value)


def test_rows_without_token_counts_have_no_energy_per_token():
    rows = [row for row in cell_rows() if row.metric != "prompt_tokens"]
    found = judged(rows, record(MARKS, samples(END_S)))
    assert "how many tokens" in per_token(found, "prefill_j_per_token").message
    assert per_token(found, "decode_j_per_token").value > 0


def test_energy_of_a_throttled_device_is_invalid_and_one_of_wrong_tokens_too():
    slow = record(MARKS, samples(END_S, throttle_reasons="hw_thermal"))
    assert reasons(judged(cell_rows(), slow), "prefill_j_per_token") == {"throttled"}
    wrong = [replace(row, value=31.0) if row.metric == "prompt_tokens" else row for row in cell_rows()]
    found = judged(wrong, record(MARKS, samples(END_S)))
    assert reasons(found, "prefill_j_per_token") == {"token_counts"}
