"""Was it still held? Of each trial that watched what it hid: what the cache had when the answer was produced.

From rows `watched_held_share` (one per case, layer and watched span; see harness.held) and the score of the
same case:

    kept        every layer whose slots have positions held all of every watched span
    evicted     the policy took tokens in this trial, and some such layer lost part of a span
    by window   the policy took nothing, but a layer's own sliding window has moved on: still kept, if any
                state holds the spans whole (YOCO's shared cache, a model's global layers), else lost

So a miss is either *evicted* or *kept but not used*, and a hit may be one *although evicted*: other layers,
or later tokens that had read the span, sufficed. States without positions give no rows: that is not known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from .groups import CONTEXT_AXES, Group

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

    def held(self, state: str, depth: float | None = None) -> float | None:
        """Share of the trials (of a depth) in which a state held everything; None without trials."""
        there = [t for t in self.trials if state in t.states and (depth is None or t.depth == depth)]
        return sum(state not in trial.lost for trial in there) / len(there) if there else None


def state_order(state: str) -> tuple[bool, int]:
    """Layers by number, then what belongs to no layer."""
    return (state == SHARED, 0 if state == SHARED else int(state))


def watched_suites(group: Group) -> list[str]:
    """Spec strings of suites that watched what they hid, in plan order."""
    return list(dict.fromkeys(group.ok.loc[group.ok["metric"] == "watched_held_share", "suite"]))


def findings(group: Group, suite: str) -> list[Finding]:
    """One per kind of cell, context and architecture that scored watched cases, in that order."""
    rows = group.ok[(group.ok["suite"] == suite) & group.ok["case"].notna()]
    judge = next((name for name in JUDGES if (rows["metric"] == name).any()), None)
    if judge is None:
        return []
    keys = ["architecture", "cell", "case"]
    lost, kind = _lost(rows, keys), _kinds(group, suite)
    watched = set(rows.loc[rows["metric"] == "watched_held_share", "case"])
    gone = rows[rows["metric"] == "evicted_tokens"].groupby(keys)["value"].max()
    found: dict[tuple[str, float, str], Finding] = {}
    for case in rows[(rows["metric"] == judge) & rows["case"].isin(watched)].itertuples():
        key = (case.architecture, case.cell, case.case)
        states, now, before = lost.get(key, ((), (), ()))
        # Unknown counts as acted: a loss that nobody explains is not put down to a window.
        trial = Trial(case.depth, case.value >= WHOLE, states, now, before, gone.get(key, 1.0) > 0)
        place = (case.architecture, case.context, kind.get(case.cell, ""))
        found.setdefault(place, Finding(*place)).trials.append(trial)
    order = group.architectures.index
    kinds = list(dict.fromkeys(kind.values()))
    return sorted(
        found.values(), key=lambda one: (kinds.index(one.kind), one.context, order(one.architecture))
    )


def _kinds(group: Group, suite: str) -> dict[str, str]:
    """Cell -> what tells it from others of its suite besides length and depth: its task, its axes."""
    cells = [cell for cell in group.run.cells if cell["suite"] == suite]
    names = dict.fromkeys(name for cell in cells for name in cell.get("axes") or {})
    names = [name for name in names if name not in (*CONTEXT_AXES, "depth")]
    names = [name for name in names if len({str(cell["axes"].get(name)) for cell in cells}) > 1]

    def told(name: str, value: object) -> str:
        return str(value) if name == "task" else f"{name} {value}"

    return {cell["key"]: ", ".join(told(n, cell["axes"].get(n)) for n in names) for cell in cells}


def _lost(rows: pd.DataFrame, keys: list[str]) -> dict[tuple, tuple[tuple[str, ...], ...]]:
    """Case -> states with positions, those that lost part of a span, and those that had before the answer."""
    rows = rows[rows["metric"] == "watched_held_share"]
    layer = rows["layer"].map(lambda layer: SHARED if pd.isna(layer) else str(int(layer)))
    rows = rows.assign(state=layer, before=rows["phase"] == "prefill")
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
