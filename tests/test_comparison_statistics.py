"""The numbers behind a verdict, against tables, against counting by hand, and against their own laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.comparison.latency import judge, verdict
from harness.comparison.pairs import mcnemar_p, newcombe, paired_p
from harness.comparison.permutation import (
    doubled_ranks,
    effect,
    exact_p,
    holm,
    interval_rank,
    replicates_for,
    smallest_p,
)
from harness.statistics import T95, normal_p, student, student_p

#: Two-sided p of complete separation: 2 / C(2n, n).
SEPARATED = {4: 0.0286, 5: 0.0079, 6: 0.0022, 7: 0.00058, 8: 0.000155, 9: 0.0000411}


@pytest.mark.parametrize(("n", "p"), SEPARATED.items())
def test_p_of_complete_separation_is_that_of_the_tables(n, p):
    below, above = np.arange(n, dtype=float), np.arange(n, dtype=float) + 100
    assert exact_p(below, above) == exact_p(above, below) == pytest.approx(p, rel=0.02)
    assert exact_p(below, above) == pytest.approx(2 / math.comb(2 * n, n)) == smallest_p(n, n)


@pytest.mark.parametrize(("n", "p"), [(8, 1 / 35)])
def test_p_of_one_value_out_of_place(n, p):
    """Rank sums 0 and 1 away from the end: (1 + 1) of 70 splits each way."""
    assert exact_p(np.array([1.0, 2, 3, 5]), np.array([4.0, 6, 7, 8])) == pytest.approx(4 / 70)
    assert exact_p(np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])) == pytest.approx(p)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_p_is_the_share_of_splits_that_are_as_far_out_ties_included(data):
    values = st.integers(0, 5).map(float)
    base = np.array(data.draw(st.lists(values, min_size=1, max_size=5)))
    head = np.array(data.draw(st.lists(values, min_size=1, max_size=5)))
    ranks = doubled_ranks(np.concatenate([base, head]))
    middle = ranks.sum() * len(base) / len(ranks)
    out = abs(ranks[: len(base)].sum() - middle)
    splits = itertools.combinations(ranks.tolist(), len(base))
    assert exact_p(base, head) == pytest.approx(np.mean([abs(sum(s) - middle) >= out - 1e-9 for s in splits]))


def test_with_nothing_on_a_side_nothing_is_known():
    assert exact_p(np.array([]), np.array([1.0])) == smallest_p(0, 3) == 1.0


@pytest.mark.parametrize(("n", "rank"), [(3, 0), (4, 1), (5, 3), (6, 6), (7, 9), (8, 14), (9, 18)])
def test_interval_ends_at_the_critical_value_of_the_tables(n, rank):
    """Mann and Whitney's two-sided critical U at 5 %, plus one."""
    assert interval_rank(n, n) == rank


def test_the_interval_is_the_test_turned_round():
    """Dividing head by a ratio inside the interval is not noticed at 5 %, outside it is."""
    numbers = np.random.default_rng(3)
    base, head = np.exp(numbers.normal(0, 0.02, 8)), np.exp(numbers.normal(0.1, 0.02, 8))
    _, low, high = effect(base, head)
    for end, outward in ((1 + low, 0.9999), (1 + high, 1.0001)):
        assert exact_p(base, head / (end * outward)) <= 0.05 < exact_p(base, head / (end / outward))


def test_effect_is_the_median_ratio_and_mirrors():
    base, head = np.array([1.0, 2.0, 4.0]), np.array([1.1, 2.2, 4.4])
    assert effect(base, head)[0] == pytest.approx(0.1)
    assert (1 + effect(base, head)[0]) * (1 + effect(head, base)[0]) == pytest.approx(1)
    assert math.isnan(effect(base, head)[1])


@pytest.mark.parametrize(
    ("num_tests", "alpha", "needed"),
    [(1, 0.05, 4), (80, 0.05, 7), (80, 0.025, 8), (160, 0.025, 8), (80, 0.01, 9)],
)
def test_replicates_that_a_page_of_cells_needs(num_tests, alpha, needed):
    assert replicates_for(num_tests, alpha) == needed
    assert smallest_p(needed, needed) * num_tests <= alpha < smallest_p(needed - 1, needed - 1) * num_tests


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.7, 0.9]) == [1.0, 1.0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.5, 2), min_size=5, max_size=9),
    st.lists(st.floats(0.5, 2), min_size=5, max_size=9),
    st.sampled_from([0.0, 0.03]),
)
def test_exchanging_the_sides_exchanges_fast_and_slow(base, head, floor_s):
    mirrored = {"FAST": "SLOW", "SLOW": "FAST"}
    one = judge(np.array(base), np.array(head), 0.05, floor_s)
    other = judge(np.array(head), np.array(base), 0.05, floor_s)
    assert one.p == pytest.approx(other.p)
    # An effect exactly on the threshold falls to either side with the last digit.
    if (
        min(
            abs(math.log1p(x) - s * math.log1p(one.limit))
            for s in (1, -1)
            for x in (one.effect, one.low, one.high)
        )
        > 1e-9
    ):
        said = verdict(one, one.p, 0.05)
        assert verdict(other, other.p, 0.05) == mirrored.get(said, said)


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 9, 22 / 1024), (4, 4, 1.0)]
)
def test_mcnemar_is_a_coin_thrown_for_every_case_that_changed(lost, won, p):
    assert mcnemar_p(lost, won) == mcnemar_p(won, lost) == pytest.approx(p)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_newcombes_interval_holds_the_difference_and_mirrors(both, lost, won, neither):
    n = both + lost + won + neither
    low, high = newcombe(both, lost, won, n)
    if not n:
        assert math.isnan(low)
        return
    assert -1 - 1e-9 <= low <= (won - lost) / n + 1e-9 and (won - lost) / n - 1e-9 <= high <= 1 + 1e-9
    assert newcombe(both, won, lost, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize("freedom", range(1, 11))
def test_student_p_is_five_per_cent_at_the_tables_points(freedom):
    assert student_p(T95[freedom - 1], freedom) == pytest.approx(0.05, abs=3e-5)
    assert student_p(-T95[freedom - 1], freedom) == student_p(T95[freedom - 1], freedom)


def test_student_p_of_further_points_of_the_tables():
    assert student_p(2.750, 30) == pytest.approx(0.01, abs=2e-5)
    assert student_p(63.657, 1) == pytest.approx(0.01, abs=1e-6)
    assert student_p(0, 7) == 1.0 and student_p(math.inf, 3) == 0.0
    assert student_p(1.959964, 10_000) == pytest.approx(normal_p(1.959964), abs=1e-4)


def test_paired_p_goes_with_its_interval():
    columns = np.array([[0.1, 0.3], [0.2, 0.25], [0.3, 0.6], [0.15, 0.2], [0.5, 0.9]])
    ones = np.concatenate([columns, np.ones((5, 1))], axis=1)
    ends = student(ones, lambda sums: (sums[1] - sums[0]) / sums[2])
    change = columns[:, 1] - columns[:, 0]
    t = change.mean() / (change.std(ddof=1) / math.sqrt(5))
    assert paired_p(change.mean(), ends, 5) == pytest.approx(student_p(t, 4))
    assert paired_p(1.0, (math.nan, math.nan), 2) == 1.0
    # Without a spread it is the sign test: three equal changes are no proof of anything.
    assert paired_p(0.5, (0.5, 0.5), 3) == 0.25 and paired_p(-0.5, (-0.5, -0.5), 10) == 2 / 2**10
    assert paired_p(0.0, (0.0, 0.0), 5) == 1.0
