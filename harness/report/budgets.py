"""Runs with many budgets of one policy: which line a spec belongs to, and which budgets are shown first.

A run is *crowded* where some policy has three budgets or more: then maps, forensics and the verdict show each
policy at one budget, the nearest to 1/8 of the longest prompt (`near`), other budgets are folded tables
(`slices`, `rest`), and every budget is a point of “Quality by budget”. Variants that are not shown at any
budget are named (`absent_alerts`). Other runs are shown whole.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache

import pandas as pd

from .groups import NO_CONTEXT, Group, family
from .once import once

#: So many budgets of one policy are too many to stand side by side.
CROWD = 3
#: What a budget is compared with where one of many is shown: this part of the longest prompt.
SHARE = 8
#: Options whose numbers follow the budget, because they are counts of its slots or rounded shares of them:
#: they tell two policies apart only where the budget does not.
WITH_BUDGET = {"lococo": ("heavy", "local")}


@lru_cache(maxsize=4096)
def _stated(spec: str) -> tuple[tuple[str, str], ...]:
    parts = [part for part in spec.partition(":")[2].split(",") if part]
    return tuple((key.strip(), value.strip()) for key, _, value in (part.partition("=") for part in parts))


def options_of(spec: str) -> dict[str, str]:
    """`"tova:budget=64,select=head"` -> `{"budget": "64", "select": "head"}`."""
    return dict(_stated(spec))


def policy(spec: str, without: tuple[str, ...] = ()) -> str:
    """The spec without its budget, and `without` some other options."""
    own = [f"{k}={v}" for k, v in _stated(spec) if not k.startswith("budget") and k not in without]
    return family(spec) + (":" + ",".join(own) if own else "")


@once
def policy_names(group: Group) -> dict[str, str]:
    """Spec -> the line over budgets that it is a point of, the same on the whole page.

    Options that follow the budget (`WITH_BUDGET`) are left out where every spec of the line states them and
    each has a budget of its own; else they tell the specs apart, and stand in their names.
    """
    short = {spec: policy(spec, WITH_BUDGET.get(family(spec), ())) for spec in _planned(group)}
    lines: dict[str, list[str]] = {}
    for spec, name in short.items():
        lines.setdefault(name, []).append(spec)
    return {
        spec: name if _is_one_line(specs) else policy(spec) for name, specs in lines.items() for spec in specs
    }


def _planned(group: Group) -> list[str]:
    return list(dict.fromkeys([str(cell["architecture"]) for cell in group.run.cells] + group.architectures))


def _is_one_line(specs: list[str]) -> bool:
    budgets = [[pair for pair in _stated(spec) if pair[0].startswith("budget")] for spec in specs]
    names = {frozenset(key for key, _ in _stated(spec) if not key.startswith("budget")) for spec in specs}
    return len(names) == 1 and len({tuple(budget) for budget in budgets}) == len(specs)


def in_bytes(spec: str) -> int | None:
    """The budget in bytes that a spec states."""
    stated = options_of(spec).get("budget_bytes")
    return None if stated is None else int(stated)


def budget_of(group: Group, spec: str) -> int | None:
    """The budget in tokens, also of a budget in bytes where the run says how many these are."""
    known = (group.run.manifest.get("architectures") or {}).get(spec) or {}
    stated = known.get("budget") or options_of(spec).get("budget")
    return None if stated is None else int(stated)


@once
def policies(group: Group) -> dict[str, list[str]]:
    """Policy -> its specs with a budget in tokens, ascending."""
    found: dict[str, list[str]] = {}
    names = policy_names(group)
    for spec in group.architectures:
        if budget_of(group, spec) is not None and in_bytes(spec) is None:
            found.setdefault(names[spec], []).append(spec)
    return {
        name: sorted(specs, key=lambda spec: budget_of(group, spec) or 0) for name, specs in found.items()
    }


def whole(group: Group) -> list[str]:
    """Architectures without a budget."""
    return [s for s in group.architectures if budget_of(group, s) is None and in_bytes(s) is None]


def is_crowded(group: Group) -> bool:
    return any(len(specs) >= CROWD for specs in policies(group).values())


@once
def target(group: Group) -> float:
    """1/8 of the longest prompt that was asked about, else of the longest context of any kind."""
    asked = _asked(group)
    longest = (asked if len(asked) else group.rows)["context"].max()
    return max(longest, 1.0) / SHARE if longest != NO_CONTEXT else math.nan


def _asked(group: Group) -> pd.DataFrame:
    """Rows of suites that ask something at the end of a prompt."""
    return group.rows[group.rows["suite_name"].isin(["needle", "recall", "ruler"])]


@once
def near(group: Group) -> Group:
    """The group with one budget of each policy; the group itself where there is no crowd.

    Of a family's policies only those at the budget that is nearest for the family: what stands side by side
    keeps as much as it can, and a variant at another budget would win or lose by that budget alone.
    """
    if not is_crowded(group):
        return group
    chosen = {*whole(group)}
    families: dict[str, list[str]] = {}
    for name, specs in policies(group).items():
        families.setdefault(family(name), []).append(min(specs, key=lambda spec: _distance(group, spec)))
    for specs in families.values():
        least = min(_distance(group, spec) for spec in specs)
        chosen |= {spec for spec in specs if math.isclose(_distance(group, spec), least, abs_tol=1e-9)}
    return only(group, [spec for spec in group.architectures if spec in chosen])


def _distance(group: Group, spec: str) -> float:
    """How far a budget is from what is wanted, as a logarithm; 0 where nobody knows what is wanted."""
    wanted = target(group)
    return 0.0 if math.isnan(wanted) else abs(math.log((budget_of(group, spec) or 1) / wanted))


@once
def rest(group: Group) -> Group | None:
    """Whatever `near` leaves out, with the architectures without a budget to compare it with."""
    shown = {*near(group).architectures} - {*whole(group)}
    others = [spec for spec in group.architectures if spec not in shown]
    return None if len(others) == len(whole(group)) else only(group, others)


@once
def slices(group: Group) -> list[tuple[str, Group]]:
    """(what it is, group) for each budget that `near` does not show whole, ascending; those in bytes last."""
    shown, base = {*near(group).architectures}, whole(group)
    budgets = sorted({budget_of(group, s) or 0 for specs in policies(group).values() for s in specs})
    found = []
    for budget in budgets:
        own = [s for specs in policies(group).values() for s in specs if budget_of(group, s) == budget]
        if not shown.issuperset(own):
            found.append((f"Budgets of {budget:,} tokens", only(group, [*base, *own])))
    if own := [spec for spec in group.architectures if in_bytes(spec) is not None]:
        found.append(("Budgets in bytes", only(group, [*base, *own])))
    return found


def only(group: Group, specs: list[str]) -> Group:
    """The rows of some architectures; colours are dealt among these."""
    kept = [spec for spec in group.architectures if spec in set(specs)]
    return replace(
        group, rows=group.rows[group.rows["architecture"].isin(kept)], architectures=kept, dealt=tuple(kept)
    )


def said(group: Group) -> str:
    """Which budgets stand where, on the page and in a terminal; empty where there is no crowd."""
    if not is_crowded(group):
        return ""
    shown = Counter(b for s in near(group).architectures if (b := budget_of(group, s)) is not None)
    usual, longest = shown.most_common(1)[0][0], "prompt" if len(_asked(group)) else "context"
    return (
        f"Each policy at one budget, the nearest to 1/{SHARE} of the longest {longest} ({usual:,} tokens "
        "where it has that); other budgets, and variants whose nearest is farther than that of another of "
        "their family, are in folded tables of the report, and every one is a point of its charts by budget."
    )


def absent_alerts(group: Group) -> list[str]:
    """Which variants of a family are not shown, because another's budget is nearer."""
    shown, found = {*near(group).architectures}, []
    for name, specs in policies(group).items():
        if shown.isdisjoint(specs):
            nearest = min(specs, key=lambda spec: _distance(group, spec))
            others = [s for own in policies(group).values() for s in own if family(s) == family(name)]
            instead = ", ".join(spec for spec in others if spec in shown)
            found.append(
                f"Not shown in the verdict and the report's maps: {name}, whose nearest budget is "
                f"{budget_of(group, nearest):,} tokens; {instead} stands for its family."
            )
    return found
