"""Runs with many budgets of one policy: which line a spec belongs to, and which budgets are shown first.

A run is *crowded* where some policy has three budgets or more: then maps, forensics and the verdict show each
policy at one budget, the nearest to 1/8 of the longest prompt (`near`), other budgets are folded tables
(`slices`, `rest`), and every budget is a point of “Quality by budget”. Other runs are shown whole.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from .groups import NO_CONTEXT, Group

#: So many budgets of one policy are too many to stand side by side.
CROWD = 3
#: What a budget is compared with where one of many is shown: this part of the longest prompt.
SHARE = 8


def options_of(spec: str) -> dict[str, str]:
    """`"tova:budget=64,select=head"` -> `{"budget": "64", "select": "head"}`."""
    parts = [part for part in spec.partition(":")[2].split(",") if part]
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}


def policy(spec: str) -> str:
    """The spec without its budget: what is one line over budgets."""
    own = [f"{key}={value}" for key, value in options_of(spec).items() if not key.startswith("budget")]
    return spec.partition(":")[0] + (":" + ",".join(own) if own else "")


def in_bytes(spec: str) -> int | None:
    """The budget in bytes that a spec states."""
    stated = options_of(spec).get("budget_bytes")
    return None if stated is None else int(stated)


def budget_of(group: Group, spec: str) -> int | None:
    """The budget in tokens, also of a budget in bytes where the run says how many these are."""
    known = (group.run.manifest.get("architectures") or {}).get(spec) or {}
    stated = known.get("budget") or options_of(spec).get("budget")
    return None if stated is None else int(stated)


def policies(group: Group) -> dict[str, list[str]]:
    """Policy -> its specs with a budget in tokens, ascending."""
    found: dict[str, list[str]] = {}
    for spec in group.architectures:
        if budget_of(group, spec) is not None and in_bytes(spec) is None:
            found.setdefault(policy(spec), []).append(spec)
    return {
        name: sorted(specs, key=lambda spec: budget_of(group, spec) or 0) for name, specs in found.items()
    }


def whole(group: Group) -> list[str]:
    """Architectures without a budget."""
    return [s for s in group.architectures if budget_of(group, s) is None and in_bytes(s) is None]


def is_crowded(group: Group) -> bool:
    return any(len(specs) >= CROWD for specs in policies(group).values())


def target(group: Group) -> float:
    """1/8 of the longest prompt that was asked about, else of the longest context of any kind."""
    asked = group.rows[group.rows["suite_name"].isin(["needle", "recall", "ruler"])]
    longest = (asked if len(asked) else group.rows)["context"].max()
    return max(longest, 1.0) / SHARE if longest != NO_CONTEXT else math.nan


def near(group: Group) -> Group:
    """The group with one budget of each policy; the group itself where there is no crowd."""
    if not is_crowded(group):
        return group
    wanted = target(group)

    def far(spec: str) -> float:
        return 0.0 if math.isnan(wanted) else abs(math.log((budget_of(group, spec) or 1) / wanted))

    chosen = {min(specs, key=far) for specs in policies(group).values()} | {*whole(group)}
    return only(group, [spec for spec in group.architectures if spec in chosen])


def rest(group: Group) -> Group | None:
    """Whatever `near` leaves out, with the architectures without a budget to compare it with."""
    shown = {*near(group).architectures} - {*whole(group)}
    others = [spec for spec in group.architectures if spec not in shown]
    return None if len(others) == len(whole(group)) else only(group, others)


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
    """Which budgets stand where, for a lead; empty where there is no crowd."""
    if not is_crowded(group):
        return ""
    shown = Counter(b for s in near(group).architectures if (b := budget_of(group, s)) is not None)
    usual = shown.most_common(1)[0][0]
    return (
        f"Each policy at one budget here, the nearest to 1/{SHARE} of the longest prompt ({usual:,} tokens "
        "where it has that); other budgets are folded below, and every one is a point of “Quality by budget”."
    )
