"""Bytes, scores, and cells that are gone: what is judged without a test over processes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from comparison_help import BOOKS, DECODE, NEEDLE, number, only, times, verdicts, without, write

from harness.comparison import Rules, compare
from harness.store import axes_json


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base") / "base", quality=True)


def head(tmp_path, **changes):
    return write(tmp_path / "head", **{"seed": 1, "quality": True, **changes})


@pytest.mark.parametrize("metric", ["cache_bytes_live", "cache_bytes_predicted", "weights_bytes"])
def test_one_byte_more_fails(base, tmp_path, metric):
    def one_more(row):
        own = row.metric == metric and row.architecture == "transformer"
        return replace(row, value=row.value + 1) if own else row

    found = compare(base, head(tmp_path, edit=one_more))
    more = only(found.findings, verdict="MORE")
    assert {(f.architecture, f.metric, f.head - f.base) for f in more} == {("transformer", metric, 1.0)}
    assert found.exit_code == 1
    back = compare(tmp_path / "head", base)
    assert {f.metric for f in only(back.findings, verdict="FEWER")} == {metric} and back.exit_code == 0


def test_a_smaller_batch_that_grew_is_seen_beside_a_larger_one(tmp_path):
    """Of several batches in a cell the largest may be alike."""

    def two(grown):
        def edit(row):
            own = row.metric == "cache_bytes_live" and row.repeat == 1
            return replace(row, value=row.value / 2 + grown) if own else row

        return edit

    runs = [write(tmp_path / n, seed=s, edit=two(g)) for n, s, g in (("a", 0, 0), ("b", 1, 8))]
    found = only(compare(*runs).findings, metric="cache_bytes_live")
    assert verdicts(found) == {"MORE"} and all("others differ" in f.message for f in found)


def test_a_compressor_that_comes_out_of_nothing_is_more(base, tmp_path):
    found = compare(
        base,
        head(tmp_path, edit=lambda row: replace(row, value=8.0) if row.metric == "compressor_bytes" else row),
    )
    more = only(found.findings, verdict="MORE")
    assert {f.metric for f in more} == {"compressor_bytes"} and {f.effect for f in more} == {None}


def test_allocator_peaks_have_one_per_cent_on_cuda_and_are_not_judged_on_a_cpu(base, tmp_path):
    def grown(factor, device, name):
        return write(tmp_path / name, seed=1, device=device, edit=times(factor, "peak_prefill_bytes"))

    assert not only(compare(base, grown(2.0, "cpu", "cpu")).findings, kind="allocator")
    cuda = write(tmp_path / "cuda", device="cuda:0")
    for factor, said in ((1.009, "SAME"), (1.011, "MORE"), (0.9, "FEWER")):
        found = only(compare(cuda, grown(factor, "cuda:0", f"x{factor}")).findings, kind="allocator")
        assert verdicts(found) == {said} and len(found) == 4


def peaks(others, own):
    """A `write` on a GPU whose worker holds `others` bytes of other architectures' weights."""

    def edit(row):
        if row.metric == "peak_prefill_bytes":
            return replace(row, value=others + own)
        if row.metric == "compressor_bytes":
            return number(row, "baseline_allocate_bytes", others, repeat=0, phase="prefill")
        return row

    return edit


def test_peaks_of_the_allocator_are_those_of_one_architecture(tmp_path):
    """Another one in the same worker neither raises them nor hides what doubled."""

    def side(name, **held):
        return write(tmp_path / name, device="cuda:0", seed=len(name), edit=peaks(**held))

    base = side("b", others=1e9, own=1e6)
    for name, held, said in (
        ("other", {"others": 3e9, "own": 1e6}, "SAME"),
        ("doubled", {"others": 1e9, "own": 2e6}, "MORE"),
        ("halved", {"others": 3e9, "own": 5e5}, "FEWER"),
    ):
        found = only(compare(base, side(name, **held)).findings, kind="allocator")
        assert verdicts(found) == {said} and {f.base for f in found} == {1e6}, name


def test_what_was_reserved_is_judged_where_an_architecture_is_alone(tmp_path):
    def reserved(row):
        return replace(row, metric="peak_prefill_reserved_bytes") if "peak" in row.metric else row

    def judged(**settings):
        sides = [
            write(tmp_path / f"{n}{len(settings)}", device="cuda", seed=n, edit=reserved, settings=settings)
            for n in range(2)
        ]
        found = compare(*sides)
        return only(found.findings, kind="allocator"), any("reserved for several" in n for n in found.notes)

    assert judged() == ([], True)
    alone, noted = judged(interleave=False)
    assert len(alone) == 4 and verdicts(alone) == {"SAME"} and not noted


@pytest.mark.parametrize(("won", "said", "code"), [(False, "WORSE", 1), (True, "BETTER", 0)])
def test_cases_that_flip_one_way_are_a_change_of_quality(base, tmp_path, won, said, code):
    """Thirty of forty trials are hits; ten of those are lost (or the other ten won)."""

    def flipped(row):
        trial = int((row.case or "0-0-0").rsplit("-", 1)[-1]) if row.metric == "accuracy_strict" else 0
        own = row.metric == "accuracy_strict" and row.architecture == "transformer"
        return (
            replace(row, value=float(won)) if own and (trial % 4 == 0) is won and (won or trial < 7) else row
        )

    found = compare(base, head(tmp_path, edit=flipped), Rules(only=("quality",)))
    [changed] = [f for f in found.findings if f.verdict != "SAME"]
    assert (changed.verdict, changed.metric, changed.axes) == (
        said,
        "accuracy_strict",
        axes_json({"length": 512}),
    )
    assert (
        changed.effect == pytest.approx(0.25 if won else -0.25)
        and changed.low < changed.effect < changed.high
    )
    assert changed.num_base == 40 and "McNemar" in changed.message and found.exit_code == code


def test_a_case_or_two_decide_nothing(base, tmp_path):
    edit = times(0.0, "accuracy_strict", NEEDLE, case="512-0.0-1")
    found = compare(base, head(tmp_path, edit=edit), Rules(only=("quality",)))
    assert found.exit_code == 0
    assert [f.verdict for f in found.findings if f.verdict != "SAME"] == ["AMBIGUOUS"] * 2


@pytest.mark.parametrize(("factor", "said"), [(1.05, "WORSE"), (0.95, "BETTER"), (1.001, "SAME")])
def test_bits_per_byte_are_compared_book_by_book(base, tmp_path, factor, said):
    def edit(row):
        wobble = 1 + 0.001 * int((row.case or "x-0")[-1]) if row.metric == "nll_nats" else 1
        return times(factor * wobble / 1.0025, "nll_nats", BOOKS)(row)

    found = only(compare(base, head(tmp_path, edit=edit), Rules(only=("quality",))).findings, suite=BOOKS)
    assert {f.metric for f in found} == {"bits_per_byte"} and verdicts(found) == {said}
    assert all(f.num_base == 6 and f.base == pytest.approx(9250 / 5000 / math.log(2)) for f in found)


def test_scores_of_whole_cells_have_their_standard_errors(tmp_path):
    """lm-eval keeps no cases here: two proportions, as if unpaired."""

    def scored(value, error):
        def edit(row):
            if row.metric == "weights_bytes" and row.replicate == 0:
                return number(row, "acc", value, phase="score")
            if row.metric == "compressor_bytes" and row.replicate == 0:
                return number(row, "acc_stderr", error, phase="score")
            return row

        return edit

    def said(name, after, error):
        one = write(tmp_path / f"{name}-a", edit=scored(0.6, error))
        other = write(tmp_path / f"{name}-b", seed=1, edit=scored(after, error))
        found = compare(one, other, Rules(only=("quality",))).findings
        assert {f.metric for f in found} == {"acc"}
        return verdicts(found)

    assert said("equal", 0.6, 0.02) == {"SAME"} and said("worse", 0.4, 0.02) == {"WORSE"}
    assert said("near", 0.57, 0.02) == {"AMBIGUOUS"} and said("bare", 0.3, math.nan) == {"AMBIGUOUS"}


def spoilt(metric, **where):
    def edit(row):
        own = row.metric == metric and all(getattr(row, name) == value for name, value in where.items())
        return replace(row, validity="invalid", validity_reasons="not_finite") if own else row

    return edit


@pytest.mark.parametrize(
    ("metric", "where", "kind"),
    [
        ("accuracy_strict", {"case": "512-0.5-3"}, "quality"),
        ("nll_nats", {"case": "book-2"}, "quality"),
        ("cache_bytes_live", {"replicate": 2, "repeat": 1}, "bytes"),
    ],
)
def test_an_invalid_number_is_no_pass_however_alike_it_is(base, tmp_path, metric, where, kind):
    edit = spoilt(metric, **where)
    both = write(tmp_path / "both", quality=True, edit=edit)
    for pair in ((base, head(tmp_path, edit=edit)), (both, tmp_path / "head"), (both, base)):
        found = compare(*pair)
        wrong = only(found.findings, verdict="INVALID")
        assert found.exit_code == 4 and {f.kind for f in wrong} == {kind}
        assert all("not_finite" in f.message for f in wrong)


@pytest.mark.parametrize(("case", "left"), [("book-2", 5), (None, 0)])
def test_what_has_no_score_on_both_sides_for_want_of_numbers_is_no_pass(tmp_path, case, left):
    """NaN that nobody scored says nothing; NaN of logits that were not finite does."""

    def side(name, seed, message):
        def edit(row):
            own = row.metric == "nll_nats" and case in (None, row.case)
            return replace(row, value=math.nan, validity=None, message=message) if own else row

        return write(tmp_path / name, seed=seed, quality=True, edit=edit)

    said = "The model's logits were not finite (first at token 1 of 3)."
    found = compare(*(side(f"broken{n}", n, said) for n in range(2)))
    wrong = only(found.findings, verdict="INVALID")
    assert found.exit_code == 4 and {f.suite for f in wrong} == {BOOKS} and len(wrong) == 2
    assert {f.num_base for f in wrong} == {left}
    count = f"{6 - left} of 6"
    assert {f.message for f in wrong} == {f"invalid: {count} in base, {count} in head (not_finite)"}
    found = compare(*(side(f"unscored{n}", n, None) for n in range(2)))
    assert found.exit_code == 0 and not only(found.findings, verdict="INVALID")


def test_an_invalid_score_that_fell_is_worse_all_the_same(base, tmp_path):
    def broken(row):
        own = row.metric == "accuracy_strict" and row.architecture == "transformer"
        return replace(spoilt("accuracy_strict")(row), value=0.0) if own else row

    found = compare(base, head(tmp_path, edit=broken))
    assert found.counts["WORSE"] == 1 and found.exit_code == 1


def test_a_filter_of_lm_eval_does_not_hide_a_score_and_a_foreign_one_is_named(tmp_path):
    def scored(value):
        def edit(row):
            if row.metric not in ("weights_bytes", "compressor_bytes", "cache_bytes_predicted"):
                return row
            name = {
                "weights_bytes": "exact_match,strict-match",
                "compressor_bytes": "exact_match,strict-match_stderr",
                "cache_bytes_predicted": "charm",
            }[row.metric]
            return number(row, name, 0.02 if "stderr" in name else value, phase="score", repeat=None)

        return edit

    runs = [write(tmp_path / n, seed=s, edit=scored(v)) for n, s, v in (("a", 0, 0.6), ("b", 1, 0.1))]
    found = compare(*runs, Rules(only=("quality",)))
    assert {(f.metric, f.verdict) for f in found.findings} == {("exact_match,strict-match", "WORSE")}
    assert {f.label for f in found.findings} == {"exact match, strict-match"}
    [note] = [note for note in found.notes if "which way is better" in note]
    assert "charm" in note and "exact_match" not in note


def test_a_removed_cell_fails_and_a_new_one_does_not(base, tmp_path):
    fewer = head(tmp_path, architectures=("transformer",))
    found = compare(base, fewer)
    missing = only(found.findings, verdict="MISSING")
    assert found.exit_code == 1 and {f.architecture for f in missing} == {"window:budget=128"}
    assert len(missing) == 5 and all("not in the plan" in f.message for f in missing)
    new = compare(fewer, base)
    assert new.exit_code == 0 and len(only(new.findings, verdict="NEW")) == 5


def test_a_planned_cell_without_rows_is_missing(base, tmp_path):
    found = compare(base, head(tmp_path, edit=without(architecture="transformer", suite=DECODE)))
    missing = only(found.findings, verdict="MISSING")
    assert len(missing) == 2 and all("planned, not measured" in f.message for f in missing)
    assert found.exit_code == 1 and any("not finished" in note for note in found.notes)


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("prefill_s", "latency"),
        ("cache_bytes_live", "bytes"),
        ("accuracy_strict", "quality"),
        ("nll_nats", "quality"),
    ],
)
def test_a_number_that_is_no_longer_measured_fails(base, tmp_path, metric, kind):
    for name, edit in (("gone", without(metric=metric)), ("unknown", times(math.nan, metric))):
        found = compare(base, head(tmp_path / name, edit=edit))
        missing = only(found.findings, verdict="MISSING")
        assert {f.kind for f in missing} == {kind} and found.exit_code == 1, name


def test_one_case_without_a_score_fails(base, tmp_path):
    found = compare(base, head(tmp_path, edit=without(case="512-0.5-3")))
    assert {f.message for f in found.regressions} == {"1 of 40 cases have no score in head"}


def failed(status, **where):
    def edit(row):
        own = all(getattr(row, name) == value for name, value in where.items())
        if not own:
            return row
        return number(row, "failure", math.nan, status=status, message=f"{status}!", repeat=None)

    return edit


@pytest.mark.parametrize("status", ["oom", "timeout", "crash"])
def test_a_new_failure_fails_even_in_one_process_of_eight(base, tmp_path, status):
    edit = failed(status, architecture="transformer", suite=DECODE, replicate=3)
    found = compare(base, head(tmp_path, edit=edit))
    new = only(found.findings, verdict="NEW FAILURE")
    assert len(new) == 2 and found.exit_code == 1
    assert all(f.message == f"{status} in 1 of 8 processes: {status}!" for f in new)
    mended = compare(tmp_path / "head", base)
    assert len(only(mended.findings, verdict="MENDED")) == 2 and mended.exit_code == 0


@pytest.mark.parametrize("status", ["timeout", "crash"])
def test_what_crashes_on_both_sides_is_no_pass(tmp_path, status):
    edit = failed(status, architecture="transformer")
    runs = [write(tmp_path / n, seed=s, edit=edit) for n, s in (("a", 0), ("b", 1))]
    found = compare(*runs)
    assert found.exit_code == 4 and found.counts["INVALID"] == 2
    assert all("fails on both sides" in f.message for f in only(found.findings, verdict="INVALID"))


def test_more_failures_than_before_are_new_ones(tmp_path):
    def side(name, seed, replicates):
        def edit(row):
            return failed("oom", architecture="transformer")(row) if row.replicate in replicates else row

        return write(tmp_path / name, seed=seed, edit=edit)

    one, seven = side("one", 0, {3}), side("seven", 1, set(range(7)))
    found = compare(one, seven)
    new = only(found.findings, verdict="NEW FAILURE")
    assert found.exit_code == 1 and len(new) == 2
    assert {f.message for f in new} == {"oom in 7 of 8 processes: oom!; in base oom in 1 of 8 processes"}
    assert not only(compare(seven, one).findings, verdict="NEW FAILURE")
    again = only(compare(one, side("other", 2, {5})).findings, kind="cell")
    assert verdicts(again) == {"SAME"}


def test_a_base_that_did_not_finish_cannot_be_passed_against(base, tmp_path):
    half = head(tmp_path, edit=without(architecture="transformer", suite=DECODE))
    found = compare(half, base)
    few = only(found.findings, verdict="INSUFFICIENT", kind="cell")
    assert found.exit_code == 4 and {f.message for f in few} == {"planned, not measured in base"}
    other = write(tmp_path / "other", seed=2, edit=without(suite=DECODE))
    half = write(tmp_path / "half", edit=without(suite=DECODE))
    found = compare(half, other)
    assert found.exit_code == 4
    assert {f.message for f in found.findings} == {"planned, not measured on either side"}


def test_where_nothing_is_compared_nothing_passes(base, tmp_path):
    found = compare(base, head(tmp_path), Rules(only=("allocator",)))
    assert found.findings == [] and found.exit_code == 4
    assert compare(base, tmp_path / "head", Rules(only=("bytes",))).exit_code == 0


def test_what_fails_on_both_sides_is_told_and_passes(tmp_path):
    edit = failed("oom", architecture="transformer")
    runs = [write(tmp_path / n, seed=s, edit=edit) for n, s in (("a", 0), ("b", 1))]
    found = compare(*runs)
    cells = only(found.findings, kind="cell")
    assert found.exit_code == 0 and len(cells) == 2 and verdicts(cells) == {"SAME"}
    assert all("fails on both sides" in f.message for f in cells)
    assert {f.architecture for f in only(found.findings, kind="latency")} == {"window:budget=128"}
