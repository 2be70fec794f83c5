"""Verdicts from rows alone: load by others, repeats, tokens, bytes; and that no reason leaves its scope."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from validity_help import cell_rows, frame, judged, number, reasons

from harness import rows as harness_rows
from harness.derived import alarms
from harness.validity import NOT_FINITE, REASONS
from harness.validity.reasons import VERDICTS
from suites.suite import Answer, Case

#: What each reason may touch.
TIMES = {"prefill_s", "decode_step_s", "decode_launch_share"}
TIMES |= {"prefill_tokens_per_s", "e2e_tokens_per_s"}
CPU_TIMES = {"prefill_cpu_s", "decode_step_cpu_s"}
CACHE = {"cache_bytes_live", "cache_payload_bytes"}


def changed(rows, name, values, **where):
    """The rows with a metric's values replaced, repeat by repeat (one number stands for all)."""
    values = itertools.repeat(values) if np.isscalar(values) else dict(enumerate(values))
    found = []
    for row in rows:
        if row.metric == name and all(getattr(row, key) == value for key, value in where.items()):
            row = replace(row, value=values[row.repeat] if isinstance(values, dict) else next(values))
        found.append(row)
    return found


def test_a_calm_cell_is_valid_and_what_was_not_measured_is_not_judged():
    rows = judged(cell_rows())
    measured = rows[
        ~rows["metric"].isin(["cache_bytes_predicted", "new_tokens_asked"]) & rows["value"].notna()
    ]
    assert set(measured["validity"]) == {"valid"}
    assert measured["validity_reasons"].isna().all()
    for name in ("cache_bytes_predicted", "new_tokens_asked"):
        assert reasons(rows, name) == {"-"}


@pytest.mark.parametrize(
    ("share", "times", "cpu_times"),
    [
        (0.10, "", ""),
        (0.11, "foreign_cpu_load", ""),
        (0.30, "foreign_cpu_load", ""),
        (0.31, "foreign_cpu_load", "foreign_cpu_load"),
        (0.60, "foreign_cpu_load", "foreign_cpu_load"),
        (0.61, "foreign_cpu_overload", "foreign_cpu_load"),
        (math.nan, "", ""),
    ],
)
def test_load_by_others_makes_the_times_of_its_phase_doubtful(share, times, cpu_times):
    rows = judged(changed(cell_rows(), "foreign_cpu_share", share, phase="prefill"))
    assert reasons(rows, "prefill_s") == {times}
    assert reasons(rows, "prefill_tokens_per_s") == {times}
    assert reasons(rows, "prefill_cpu_s") == {cpu_times}
    for name in ("decode_step_s", "decode_step_cpu_s", "cache_bytes_live", "peak_prefill_bytes"):
        assert reasons(rows, name) == {""}


def test_one_disturbed_repeat_of_five_is_not_the_median():
    rows = cell_rows()
    one = judged(changed(rows, "foreign_cpu_share", [0.9, 0, 0, 0, 0], phase="decode"))
    most = judged(changed(rows, "foreign_cpu_share", [0.9, 0.9, 0.9, 0, 0], phase="decode"))
    assert reasons(one, "decode_step_s") == {""}
    assert reasons(most, "decode_step_s") == {"foreign_cpu_overload"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0], "few_repeats"),
        ([1.2, 1.0, 1.0], "not_warmed_up"),
        ([1.0, 1.0, 1.2], "not_warmed_up"),
        ([1.1, 1.05, 1.05], ""),  # 5 % of it
        ([1.0, 1.0, 1.3, 1.0, 1.0], ""),  # one outlier in the middle is neither
        ([1.0, 1.2, 1.0, 1.2], "spread"),
        ([1.3, 1.3, 1.0, 1.0, 1.0], "not_warmed_up; spread"),
        ([1.0, 1.01, 1.02, 1.03, 1.04], ""),
    ],
)
@pytest.mark.parametrize("name", ["prefill_s", "prefill_cpu_s", "decode_step_s"])
def test_repeats_that_do_not_agree(name, values, expected):
    rows = judged(changed(cell_rows(repeats=len(values)), name, values))
    assert reasons(rows, name) == {expected}
    others = {"prefill_s", "prefill_cpu_s", "decode_step_s"} - {name}
    assert {reason for other in others for reason in reasons(rows, other)} <= {"", "few_repeats"}
    if name == "prefill_s":  # what is made of it is as good as it is
        assert reasons(rows, "prefill_tokens_per_s") == {expected}
    assert reasons(rows, "cache_bytes_live") == {""}


def test_steps_of_a_repeat_count_as_their_mean():
    """Work in bursts is no spread: the third and fourth step take ten times as long in every repeat."""
    rows = [row for row in cell_rows() if row.metric != "decode_step_s"]
    for repeat, step in itertools.product(range(5), range(4)):
        seconds = 5.0 if step > 1 else 0.5
        rows.append(number(name="decode_step_s", value=seconds, phase="decode", repeat=repeat, step=step))
    assert reasons(judged(rows), "decode_step_s") == {""}


def test_what_nobody_repeated_is_judged_by_load_and_never_by_spread():
    rows = [
        replace(row, suite="needle", axes="{}", repeat=None, metric=row.metric)
        for row in changed(cell_rows(), "prefill_s", [1.0, 2.0, 3.0, 4.0, 5.0])
    ]
    assert reasons(judged(rows), "prefill_s") == {""}
    busy = changed(rows, "foreign_cpu_share", 0.5, phase="prefill")
    assert reasons(judged(busy), "prefill_s") == {"foreign_cpu_load"}


@pytest.mark.parametrize(("share", "expected"), [(0.9, ""), (0.95, "host_bound"), (math.nan, "")])
def test_a_device_that_waits_for_its_host(share, expected):
    rows = judged(changed(cell_rows(), "decode_launch_share", share))
    assert reasons(rows, "decode_step_s") == {expected}
    assert reasons(rows, "decode_step_cpu_s") == {""}
    assert reasons(rows, "prefill_s") == {""}


def test_prompts_are_held_to_the_axes():
    rows = judged(changed(cell_rows(), "prompt_tokens", [32, 32, 31, 32, 32]))
    for name in ("prefill_s", "prefill_cpu_s", "decode_step_s"):
        assert reasons(rows, name) == {"token_counts"}
    assert reasons(rows, "peak_prefill_bytes") == reasons(rows, "accuracy_strict") == {""}


def test_forced_tokens_are_held_to_those_asked_for():
    rows = judged(changed(cell_rows(), "new_tokens", [8, 8, 8, 8, 6]))
    assert reasons(rows, "decode_step_s") == {"token_counts"}
    assert reasons(rows, "prefill_s") == {""}


def test_batches_of_a_scored_text_are_held_to_their_sum():
    def scored(*counts):
        rows = [row for row in cell_rows() if row.metric not in ("new_tokens", "new_tokens_asked")]
        rows = [replace(row, suite="pg19", repeat=None) for row in rows]
        for asked, done in counts:
            rows.append(number(name="new_tokens_asked", value=asked, phase="score", suite="pg19"))
            rows.append(number(name="continuation_tokens", value=done, phase="score", suite="pg19"))
            rows.append(number(name="continuation_s", value=1.0, phase="score", suite="pg19"))
        return judged(rows)

    assert reasons(scored((10, 10), (7, 7)), "continuation_s") == {""}
    assert reasons(scored((10, 10), (7, 6)), "continuation_s") == {"token_counts"}


def test_facts_are_what_the_execution_did_and_what_its_cases_ask_for():
    """Four tokens step by step are three decoded ones: the first is scored from the prompt's logits."""
    stepped = Case("a", (1, 2), forced=(3, 4, 5, 6), step_forced=True, scored=False)
    forced, free = Case("b", (1, 2), forced=(3, 4)), Case("c", (1,), max_new_tokens=9)
    base = number(name="", value=math.nan)
    asked = harness_rows.asked_rows(base, [stepped, stepped], 0)
    assert [(row.phase, row.value) for row in asked] == [("decode", 6.0)]
    asked = harness_rows.asked_rows(base, [forced, free], None)
    assert [(row.phase, row.value) for row in asked] == [("score", 2.0)]


def test_live_above_predicted_spoils_the_bytes_and_is_an_alarm():
    rows = judged(cell_rows("a") + changed(cell_rows("b"), "cache_bytes_live", [400, 400, 401, 400, 400]))
    spoilt = rows[rows["validity_reasons"] == "live_above_predicted"]
    assert set(spoilt["cell"]) == {"b"}
    assert set(spoilt["metric"]) == CACHE
    assert set(spoilt["validity"]) == {"invalid"}
    (sentence,) = alarms(rows)
    assert "tova:budget=8" in sentence
    assert "401 bytes" in sentence
    assert "400 were predicted" in sentence
    assert alarms(judged(cell_rows())) == []


def test_batches_are_held_to_their_own_prediction():
    """The second batch is shorter: it may not hold what the first one may."""

    def batches(live):
        rows = []
        for predicted, held in zip((400.0, 300.0), live, strict=True):
            rows.append(number(name="cache_bytes_predicted", value=predicted, phase="predicted"))
            rows.append(number(name="cache_bytes_live", value=held, phase="continuation"))
        return judged(rows)

    assert alarms(batches((400.0, 300.0))) == []
    assert len(alarms(batches((400.0, 350.0)))) == 1


def test_a_score_of_logits_that_were_not_finite_is_invalid():
    case, answer = Case("c", (1,), forced=(2,)), Answer((2,), (math.nan,))
    said = harness_rows.not_finite(case, answer)
    assert NOT_FINITE in said
    rows = judged(
        [*cell_rows(), number(name="accuracy_any", value=0.0, phase="score", case="c", message=said)]
    )
    assert reasons(rows, "accuracy_any") == {"not_finite"}
    assert reasons(rows, "accuracy_strict") == {""}


def test_a_number_that_is_missing_is_not_judged_but_a_peak_is_asked_for_each_time():
    rows = judged(changed(changed(cell_rows(), "peak_prefill_bytes", math.nan), "prefill_cpu_s", math.nan))
    assert reasons(rows, "peak_prefill_bytes") == {"peak_unknown"}
    assert reasons(rows, "prefill_cpu_s") == {"-"}


def test_failures_are_not_judged():
    failed = number(name="failure", value=math.nan, status="oom", message="no memory")
    rows = judged([failed])
    assert len(rows) == 1
    assert reasons(rows, "failure") == {"-"}


CEILINGS = {
    "device": "cuda", "dtype": "bf16", "threads": 1, "flops_per_s": 1e12,
    "read_bytes_per_s": {"1000000": 1e11}, "measured": "invented", "note": None,
}  # fmt: skip


@pytest.mark.parametrize(("device", "expected"), [("cuda", "not_warmed_up; spread"), ("cpu", "")])
def test_utilisation_is_as_good_as_the_time_it_is_made_of(device, expected):
    """On a CPU with one thread that is CPU time."""
    rows = changed(cell_rows(device=device), "prefill_s", [1.3, 1.3, 1.0, 1.0, 1.0])
    for name in ("prefill_flops", "decode_flops", "read_bytes_per_step", "weights_read_bytes"):
        rows.append(number(name=name, value=1e9, phase="predicted", repeat=0, device=device))
    manifest = {"machine": {"id": "m", "ceilings": CEILINGS | {"device": device}}}
    found = judged(rows, manifest=manifest)
    assert reasons(found, "prefill_mfu") == reasons(found, "prefill_over_floor") == {expected}
    assert reasons(found, "decode_mbu") == {""}
    assert reasons(found, "prefill_floor_s") == {"-"}
    assert reasons(found, "e2e_tokens_per_s") == {"not_warmed_up; spread"}


def test_every_reason_has_a_severity_and_a_sentence():
    for name, reason in REASONS.items():
        assert reason.severity in VERDICTS[1:], name
        assert reason.sentence.endswith("."), name


SCOPES = {
    "foreign_cpu_load": TIMES | CPU_TIMES,
    "foreign_cpu_overload": TIMES,
    "few_repeats": TIMES | CPU_TIMES,
    "not_warmed_up": TIMES | CPU_TIMES,
    "spread": TIMES | CPU_TIMES,
    "host_bound": TIMES - {"prefill_s", "prefill_tokens_per_s"},
    "token_counts": TIMES | CPU_TIMES,
    "live_above_predicted": CACHE,
    "peak_unknown": {
        f"peak_{phase}{kind}_bytes" for phase in ("prefill", "decode") for kind in ("", "_reserved")
    },
}


@pytest.mark.parametrize("seed", range(12))
def test_no_reason_ever_touches_a_metric_outside_its_scope(seed):
    """Random disturbances of all numbers at once."""
    random = np.random.default_rng(seed)
    rows = []
    for cell in "abcd":
        for row in cell_rows(cell, repeats=int(random.integers(1, 7))):
            share = row.metric in ("foreign_cpu_share", "decode_launch_share")
            value = random.uniform() if share else row.value * random.choice([1.0, 1.0, 1.5])
            rows.append(replace(row, value=math.nan if random.uniform() < 0.05 else value))
    found = judged(rows)
    told = found[found["validity_reasons"].notna()]
    seen = set()
    for metric, text in zip(told["metric"], told["validity_reasons"], strict=True):
        for name in text.split("; "):
            seen.add(name)
            assert metric in SCOPES[name], (metric, name)
    assert len(seen) >= 5
    worst = [
        max(VERDICTS.index(REASONS[n].severity) for n in t.split("; ")) for t in told["validity_reasons"]
    ]
    assert [VERDICTS[rank] for rank in worst] == list(told["validity"])


def test_the_order_of_cells_and_the_presence_of_others_change_no_verdict():
    disturbed = changed(cell_rows("a"), "foreign_cpu_share", 0.9)
    alone = judged(disturbed)
    among = judged(cell_rows("b") + disturbed)
    pd.testing.assert_frame_equal(among[among["cell"] == "a"].reset_index(drop=True), alone)
    assert set(among[among["cell"] == "b"]["validity"].dropna()) == {"valid"}
    assert isinstance(frame(disturbed), pd.DataFrame)
