"""Verdicts on real run folders: every kind, every verdict, and what is no regression."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from comparison_help import DECODE, only, slower, times, verdicts, write

from harness.comparison import Calibration, Rules, compare
from harness.comparison.calibration import Noise
from harness.comparison.permutation import smallest_p
from harness.errors import UsageError
from harness.store import axes_json

LATENCY = Rules(only=("latency",))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base") / "base", quality=True)


def head(tmp_path, **changes):
    return write(tmp_path / "head", **{"seed": 1, "quality": True, **changes})


def test_the_same_code_twice_is_the_same(base, tmp_path):
    found = compare(base, head(tmp_path))
    assert verdicts(found.findings) == {"SAME"} and found.exit_code == 0
    assert {f.kind for f in found.findings} == {"bytes", "latency", "quality"}
    latency = only(found.findings, kind="latency")
    assert len(latency) == 8 and all(f.num_base == f.num_head == 8 and 0 < f.p <= 1 for f in latency)
    assert all("exact rank-sum test" in f.message for f in latency)


@pytest.mark.parametrize(("factor", "said", "code"), [(1.15, "SLOW", 1), (1 / 1.15, "FAST", 0)])
def test_a_change_of_fifteen_per_cent_is_found_where_it_is(base, tmp_path, factor, said, code):
    found = compare(base, head(tmp_path, speed=slower(factor, "window", "decode")))
    changed = only(found.findings, architecture="window:budget=128", metric="decode_step_s")
    assert [f.verdict for f in changed] == [said] * 2
    assert all(f.low < factor - 1 < f.high and f.p <= 0.05 and f.threshold == 0.05 for f in changed)
    assert verdicts([f for f in found.findings if f not in changed]) == {"SAME"}
    assert found.exit_code == code and found.findings[0] is (changed[0] if code else found.findings[0])


def test_slower_by_less_than_the_threshold_is_the_same(base, tmp_path):
    """Two per cent, without noise: as sure as can be, and nobody's regression."""
    quiet = write(tmp_path / "quiet", noise=0.0, seed=3)
    found = compare(quiet, write(tmp_path / "later", noise=0.0, seed=4, speed=slower(1.02)), LATENCY)
    assert verdicts(found.findings) == {"SAME"}
    assert all(f.p < 0.05 and f.effect == pytest.approx(0.02, abs=0.01) for f in found.findings)


def test_noise_that_leaves_it_open_is_ambiguous_and_passes(base, tmp_path):
    found = compare(base, head(tmp_path, noise=0.25), LATENCY)
    assert "AMBIGUOUS" in verdicts(found.findings) and found.exit_code == 0
    assert found.ambiguous == only(found.findings, verdict="AMBIGUOUS")


def test_more_processes_decide_what_few_left_open(tmp_path):
    """A second folder per side is a second sitting: its processes come on top."""

    def side(name, seed, factor, code):
        machine = {"source_hash": f"hash-{code}", "commit": f"{code:040x}"}
        return write(tmp_path / name, seed=seed, noise=0.04, machine=machine, speed=slower(factor))

    first = [side("a1", 0, 1.0, 0), side("b1", 1, 1.09, 1)]
    again = [side("a2", 10, 1.0, 0), side("b2", 11, 1.09, 1)]
    before = compare(*first, LATENCY)
    after = compare([first[0], again[0]], [first[1], again[1]], LATENCY)
    assert all(f.num_base == f.num_head == 16 for f in after.findings)
    assert len(after.ambiguous) < len(before.ambiguous) and after.exit_code == 1


def test_microseconds_are_nobodys_regression(base, tmp_path):
    """Half the time of a step of 4 µs is less than the floor of 5 µs."""
    tiny = {"edit": times(0.002, "decode_step_s")}
    before, after = write(tmp_path / "a", **tiny), head(tmp_path, speed=slower(1.3, "", "decode"), **tiny)
    found = only(
        compare(before, after, LATENCY).findings,
        metric="decode_step_s",
        axes=axes_json({"batch": 1, "context": 256}),
    )
    assert verdicts(found) == {"SAME"} and all(f.threshold > 1 for f in found)


def test_noise_of_the_machine_raises_the_limit(base, tmp_path):
    changed = head(tmp_path, speed=slower(1.15, "window"))
    entries = tuple(
        Noise("window:budget=128", DECODE, axes_json({"batch": 1, "context": c}), m, 0.3, 8)
        for c in (256, 1024)
        for m in ("prefill_s", "decode_step_s")
    )
    noisy = Calibration("m1", None, "2026-01-01T00:00:00+00:00", entries)
    assert compare(base, changed, LATENCY).exit_code == 1
    found = compare(base, changed, replace(LATENCY, calibration=noisy))
    assert verdicts(found.findings) == {"SAME"} and {f.threshold for f in found.findings} == {0.3}


def test_a_calibration_comes_from_code_compared_with_itself(base, tmp_path):
    same = compare(base, head(tmp_path))
    noise = Calibration.of(same)
    noise.write(tmp_path / "noise.json")
    assert Calibration.read(tmp_path / "noise.json") == noise
    assert len(noise.entries) == 8 and all(0 < entry.noise < 0.1 for entry in noise.entries)
    first = noise.entries[0]
    assert noise.noise((first.architecture, first.suite, first.axes), first.metric) == first.noise
    # A point that was not calibrated has the largest of its metric; a metric that was not, none.
    worst = max(entry.noise for entry in noise.entries if entry.metric == "prefill_s")
    assert noise.noise(("new", DECODE, "{}"), "prefill_s") == worst
    assert noise.noise(("new", DECODE, "{}"), "load_s") == 0.0


@pytest.mark.parametrize("replicates", [1, 3])
def test_few_processes_are_insufficient_and_say_how_many_it_takes(tmp_path, replicates):
    runs = [write(tmp_path / n, seed=s, replicates=replicates, quality=True) for n, s in (("a", 0), ("b", 1))]
    found = compare(*runs)
    latency = only(found.findings, kind="latency")
    assert verdicts(latency) == {"INSUFFICIENT"} and found.exit_code == 4
    assert all("--replicates 6" in f.message and f.base and f.head for f in latency)
    assert verdicts([f for f in found.findings if f.kind != "latency"]) == {"SAME"}
    assert compare(*runs, Rules(only=("bytes", "quality"))).exit_code == 0


def doubtful(validity, **where):
    def edit(row):
        own = row.metric == "prefill_s" and all(getattr(row, k) == v for k, v in where.items())
        return replace(row, validity=validity, validity_reasons="throttled; foreign-cpu") if own else row

    return edit


def test_invalid_processes_are_left_out_and_the_rest_decides(base, tmp_path):
    found = compare(base, head(tmp_path, edit=doubtful("invalid", replicate=2)), LATENCY)
    prefill = only(found.findings, metric="prefill_s")
    assert verdicts(prefill) == {"SAME"} and {f.num_head for f in prefill} == {7}
    assert all("1 invalid processes left out (throttled; foreign-cpu)" in f.message for f in prefill)


def test_too_many_invalid_processes_end_with_four(base, tmp_path):
    found = compare(base, head(tmp_path, edit=doubtful("invalid", architecture="transformer")), LATENCY)
    bad = only(found.findings, verdict="INVALID")
    assert {(f.architecture, f.metric) for f in bad} == {
        ("transformer", "prefill_s")
    } and found.exit_code == 4
    assert all("throttled" in f.message and f.head is None for f in bad)


def test_suspect_numbers_are_judged_and_told(base, tmp_path):
    found = compare(base, head(tmp_path, edit=doubtful("suspect")), LATENCY)
    assert found.exit_code == 0
    assert {f.suspect for f in only(found.findings, metric="prefill_s")} == {"throttled; foreign-cpu"}
    assert {f.suspect for f in only(found.findings, metric="decode_step_s")} == {""}


def test_cold_executions_are_no_latency(base, tmp_path):
    """Quality cells run once, cold: their prefill is in the rows and in no verdict."""
    cold = {
        "edit": lambda row: replace(row, repeat=None) if row.metric in ("prefill_s", "decode_step_s") else row
    }
    runs = [write(tmp_path / n, seed=s, **cold) for n, s in (("a", 0), ("b", 1))]
    assert not only(compare(*runs).findings, kind="latency")


def test_regressions_come_first_and_the_exit_code_is_the_gravest(base, tmp_path):
    """A regression is a fact, whatever else could not be judged."""

    def edit(row):
        row = doubtful("invalid", architecture="transformer")(row)
        return times(2.0, "cache_bytes_live")(row)

    found = compare(base, head(tmp_path, edit=edit))
    order = [f.verdict for f in found.findings]
    assert found.exit_code == 1 and order == sorted(order, key="MORE INVALID AMBIGUOUS SAME".split().index)


def test_the_same_folder_twice_is_a_mistake(base):
    with pytest.raises(UsageError, match="given twice"):
        compare(base, base)


def test_runs_of_different_code_are_no_side(base, tmp_path):
    with pytest.raises(UsageError, match="different code"):
        compare([base, write(tmp_path / "other", seed=5)], head(tmp_path))


@pytest.mark.parametrize(
    "bad", [{"alpha": 0}, {"threshold": -1}, {"threshold": math.nan}, {"only": ("speed",)}, {"looks": 0}]
)
def test_rules_that_make_no_sense_are_refused(bad):
    with pytest.raises(UsageError):
        Rules(**bad)


def test_a_time_of_nothing_is_no_time(base, tmp_path):
    """A clock that stood still: the process does not count, and no logarithm of zero is taken."""
    edit = times(0.0, "prefill_s", replicate=0, architecture="transformer")
    found = compare(base, head(tmp_path, edit=edit), LATENCY)
    counts = {f.num_head for f in only(found.findings, metric="prefill_s", architecture="transformer")}
    assert counts == {7} and found.exit_code == 0


def test_p_is_corrected_for_the_number_of_latencies(base, tmp_path):
    """Eight latencies, each as far out as eight processes can be: eight times the smallest p."""
    found = compare(base, head(tmp_path, speed=slower(1.5)), LATENCY).findings
    assert len(found) == 8 and {f.p for f in found} == {8 * smallest_p(8, 8)}
