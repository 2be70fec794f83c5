"""Was it still held? Of each trial that watched what it hid: what the cache had when the answer was produced.

From rows `watched_held_share` (one per case, layer and watched span; see harness.held) and the score of the
same case:

    kept        every head of every layer whose slots have positions held all of every watched span
    evicted     the policy took tokens in this trial, and some head of some such layer lost part of a span
    by window   the policy took nothing, but a layer's own sliding window has moved on: still kept, if any
                state holds the spans whole (YOCO's shared cache, a model's global layers), else lost

So a miss is either *lost* (one way or the other) or *kept but not used*, and a hit may be one *although
lost*: other heads, other layers, or later tokens that had read the span, sufficed. One token of one head is a
loss by this rule, so the mean share that a layer held is told beside it. States without positions give no
rows: that is not known.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from .groups import CONTEXT_AXES, Group, is_keyed, needle_judge
from .once import once

#: Scores of one case that say whether it was a hit (1) or not, the first that a suite has.
JUDGES = ("accuracy_strict", "accuracy_all", "ruler_all", "recall_accuracy")
#: The state that belongs to no layer.
SHARED = "shared"
WHOLE = 1 - 1e-9


@dataclass(frozen=True)
class Trial:
    """One case: whether it was answered, and which states had lost part of what it watched."""

    depth: float
    hit: bool
    states: tuple[str, ...]  # whose slots have positions; none: nothing is known
    lost: tuple[str, ...]  # when the answer had been produced
    lost_before: tuple[str, ...]  # when the prompt ended
    acted: bool
    shares: dict[str, float] = field(default_factory=dict)  # state -> mean share that it still held

    @property
    def kept(self) -> bool:
        """Whether what was watched was there to be used (see the module's text)."""
        return not self.lost or (not self.acted and len(self.lost) < len(self.states))


@dataclass(frozen=True)
class Finding:
    """The trials of one architecture at one context, and of one kind of cell where a suite has several."""

    architecture: str
    context: float
    kind: str = ""
    trials: list[Trial] = field(default_factory=list)

    @property
    def states(self) -> list[str]:
        """States with positions: layers in order, then the shared one."""
        return sorted({s for trial in self.trials for s in trial.states}, key=state_order)

    @property
    def depths(self) -> list[float]:
        """Depths of the trials that have one, ascending."""
        return sorted({trial.depth for trial in self.trials if not math.isnan(trial.depth)})

    @property
    def evicted(self) -> Counter[str]:
        """State -> trials in which the policy took part of what was watched from it."""
        return Counter(state for trial in self.trials if trial.acted for state in trial.lost)

    @property
    def windowed(self) -> Counter[str]:
        """State -> trials in which its own window had left what was watched, and the policy did nothing."""
        return Counter(state for trial in self.trials if not trial.acted for state in trial.lost)

    def count(self, *, hit: bool, kept: bool) -> int:
        """Trials of one of the four kinds."""
        return sum(trial.hit == hit and trial.kept == kept for trial in self.trials)

    def held(self, state: str | None = None, depth: float | None = None) -> float | None:
        """Mean share that a state (or all of them) held in the trials (of a depth); None without trials."""
        trials = [trial for trial in self.trials if depth is None or trial.depth == depth]
        shares = [share for t in trials for s, share in t.shares.items() if state in (None, s)]
        return sum(shares) / len(shares) if shares else None


def state_order(state: str) -> tuple[bool, int]:
    """Layers by number, then what belongs to no layer."""
    return (state == SHARED, 0 if state == SHARED else int(state))


def watched_suites(group: Group) -> list[str]:
    """Spec strings of suites that watched what they hid, those with keyed needles first."""
    suites = dict.fromkeys(group.ok.loc[group.ok["metric"] == "watched_held_share", "suite"])
    return sorted(suites, key=lambda suite: not is_keyed(suite))


@once
def findings(group: Group, suite: str) -> list[Finding]:
    """One per kind of cell, context and architecture that scored watched cases, in that order."""
    rows = group.ok[(group.ok["suite"] == suite) & group.ok["case"].notna()]
    judges = (needle_judge(suite)[0], *JUDGES)
    judge = next((name for name in judges if (rows["metric"] == name).any()), None)
    if judge is None:
        return []
    keys = ["architecture", "cell", "case"]
    held, kind = _watched(rows), kinds(group, suite)
    lost, share = _lost(held, keys), _shares(held, keys)
    watched = set(held["case"])
    gone = rows[rows["metric"] == "evicted_tokens"].groupby(keys)["value"].max()
    found: dict[tuple[str, float, str], Finding] = {}
    for case in rows[(rows["metric"] == judge) & rows["case"].isin(watched)].itertuples():
        key = (case.architecture, case.cell, case.case)
        states, now, before = lost.get(key, ((), (), ()))
        own = {state: share[key, state] for state in states}
        # Unknown counts as acted: a loss that nobody explains is not put down to a window.
        trial = Trial(case.depth, case.value >= WHOLE, states, now, before, gone.get(key, 1.0) > 0, own)
        place = (case.architecture, case.context, kind.get(case.cell, ""))
        found.setdefault(place, Finding(*place)).trials.append(trial)
    order = group.architectures.index
    told = list(dict.fromkeys(kind.values()))
    return sorted(
        found.values(), key=lambda one: (told.index(one.kind), one.context, order(one.architecture))
    )


def kinds(group: Group, suite: str) -> dict[str, str]:
    """Cell -> what tells it from others of its suite besides length and depth: its task, its axes."""
    cells = [cell for cell in group.run.cells if cell["suite"] == suite]
    names = dict.fromkeys(name for cell in cells for name in cell.get("axes") or {})
    names = [name for name in names if name not in (*CONTEXT_AXES, "depth")]
    names = [name for name in names if len({str(cell["axes"].get(name)) for cell in cells}) > 1]

    def told(name: str, value: object) -> str:
        return str(value) if name == "task" else f"{name} {value}"

    return {cell["key"]: ", ".join(told(n, cell["axes"].get(n)) for n in names) for cell in cells}


def _watched(rows: pd.DataFrame) -> pd.DataFrame:
    """What was held, with the name of its `state`, and whether that was `before` the answer."""
    rows = rows[rows["metric"] == "watched_held_share"]
    layer = rows["layer"].map(lambda layer: SHARED if pd.isna(layer) else str(int(layer)))
    return rows.assign(state=layer, before=rows["phase"] == "prefill")


def _shares(rows: pd.DataFrame, keys: list[str]) -> dict[tuple[tuple, str], float]:
    """(case, state) -> mean over the spans of what was held when the answer had been produced."""
    means = rows[~rows["before"]].groupby([*keys, "state"], sort=False)["value"].mean()
    return {(tuple(key), state): float(share) for (*key, state), share in means.items()}


def _lost(rows: pd.DataFrame, keys: list[str]) -> dict[tuple, tuple[tuple[str, ...], ...]]:
    """Case -> states with positions, those that lost part of a span, and those that had before the answer."""
    found: dict[tuple, tuple[list[str], list[str], list[str]]] = {}
    least = rows.groupby([*keys, "before", "state"], sort=False)["value"].min()
    for (*key, before, state), share in least.items():
        states, now, earlier = found.setdefault(tuple(key), ([], [], []))
        if not before:
            states.append(state)
        if share < WHOLE:
            (earlier if before else now).append(state)
    return {key: tuple(map(_ordered, parts)) for key, parts in found.items()}


def _ordered(states: list[str]) -> tuple[str, ...]:
    return tuple(sorted(states, key=state_order))
