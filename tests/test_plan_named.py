"""The plans that come with kvmark: every spec is known, and each holds the grid that it is for."""

from __future__ import annotations

import itertools

import pytest
import torch

import models
import suites
from harness.plan import PLANS
from models.shapes import SHAPES

POLICIES = ("tova", "h2o", "snapkv", "scissorhands", "streaming", "window", "random", "short")
FAMILY = {"transformer", "yoco", "yoco:mixer=retention"}


def options(plan: str, suite: str) -> list:
    """Of every spec of a suite in a plan."""
    specs = [spec for spec in PLANS[plan].suites if spec.partition(":")[0] == suite]
    return [suites.options(spec) for spec in specs]


@pytest.mark.parametrize("plan", PLANS.values(), ids=lambda plan: plan.name)
def test_every_spec_is_known_and_no_cell_comes_twice(plan):
    canonical = [models.canonical_spec(spec) for spec in plan.architectures]
    assert len(set(canonical)) == len(canonical)
    assert len({suites.canonical_spec(spec) for spec in plan.suites}) == len(plan.suites)


def test_quality_has_every_policy_at_every_budget():
    plan = {models.canonical_spec(spec) for spec in PLANS["quality"].architectures}
    assert plan >= FAMILY
    for name, budget in itertools.product(POLICIES, (64, 128, 256, 512, 1024)):
        assert models.canonical_spec(f"{name}:budget={budget}") in plan
    assert set(models.names()) == {spec.partition(":")[0] for spec in plan}


def test_budgets_in_bytes_are_what_lococo_holds():
    specs = PLANS["quality"].architectures
    memories = [spec for spec in specs if spec.startswith("lococo")]
    assert len(memories) >= 3
    for spec in memories:
        model = models.build(spec, SHAPES["family"])
        held = model.cache_bytes(2048, 1, torch.float32, prompt=2048).total
        for rival in ("h2o", "window"):
            assert f"{rival}:budget_bytes={held}" in specs, f"{spec} holds {held} bytes"


def test_quality_leads_with_keyed_needles_and_asks_ten_trials():
    needles, first = options("quality", "needle"), PLANS["quality"].suites[0]
    keyed = [o for o in needles if o.variant == "keyed"]
    assert "variant=keyed" in first and max(keyed[0].lengths) == 2048
    assert (keyed[0].num_distractors, keyed[1].num_distractors) == (8, 31)
    assert {o.variant for o in needles} == {"number", "city", "magic", "uuid", "keyed"}
    assert all(o.trials >= 10 for o in [*needles, *options("quality", "recall")])
    assert {o.protocol for o in options("quality", "pg19")} == {"tova", "stream"}
    assert max(length for o in needles for length in o.lengths) == 2048


def test_entry_is_the_entry_tickets_grid():
    assert set(PLANS["entry"].architectures) == FAMILY
    for o in options("entry", "needle"):
        assert set(o.lengths) == {512, 1024, 2048, 4096} and len(o.all_depths) == 11 and o.trials >= 10
        assert o.spacing == "linear"
    assert {o.variant for o in options("entry", "needle")} == {"number", "keyed"}
