"""What runs have in common but for the seed of their weights: the numbers of `seeds.py`. Curves of trainings
(`training.py`) are spread over seeds by the same rule (`but_seed`).

same training   card for card: architecture, parameters, tokens, longest sequence, recipe, and data where
                the card has it; all but the seed
same figure     suite, text, number type, way of reading the prompt, and the very same cases
trained alike   two architectures whose trainings differ in nothing but themselves, or one of which adds
                something trained to the other's network
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pandas as pd

from .groups import Group, groups
from .load import Run
from .measured import measures

#: What decides the weights, besides `recipe` and `data`.
DECIDES = ("architecture", "parameters", "tokens", "trained_length")


@dataclass(frozen=True)
class Training:
    """What an architecture runs on: `recipe` names it seed apart, `alike` also architecture apart."""

    recipe: str
    alike: frozenset[str]
    seed: str
    tokens: str
    commits: frozenset[str]


class Subject(NamedTuple):
    """What was measured: figures of one subject compare."""

    title: str
    suite: str
    metric: str
    text: str
    dtype: str


class Place(NamedTuple):
    """Where: a line of the table."""

    context: float
    kind: str
    cases: frozenset[tuple[str, str]]


@dataclass
class Line:
    """An architecture at one place: a value for each seed, in the runs' order."""

    architecture: str
    training: Training
    values: dict[str, float] = field(default_factory=dict)
    idle: bool = False

    @property
    def range(self) -> float:
        return max(self.values.values()) - min(self.values.values())


@dataclass
class Found:
    """Everything that two seeds or more have measured; `seeds` by architecture and recipe, in runs' order."""

    group: Group  # the first run's part
    seeds: dict[tuple[str, str], list[str]]
    commits: set[str]
    lines: dict[Subject, dict[Place, list[Line]]]


def seeded(runs: list[Run]) -> Found | None:
    """None unless two of these runs differ by the seed of their weights."""
    parts = [(group, trainings(group)) for run in runs for group in groups(run) if group.axis == "quality"]
    seeds: dict[tuple[str, str], list[str]] = {}
    commits: dict[tuple[str, str], set[str]] = {}
    for _, trained in parts:
        for architecture, one in trained.items():
            told = seeds.setdefault((architecture, one.recipe), [])
            told += [one.seed] * (one.seed not in told)
            commits.setdefault((architecture, one.recipe), set()).update(one.commits)
    seeds = {key: told for key, told in seeds.items() if len(told) > 1}
    if not seeds:
        return None
    lines: dict[Subject, dict[Place, dict[tuple[str, ...], Line]]] = {}
    used = []
    for group, trained in parts:
        again = [a for a, one in trained.items() if (a, one.recipe) in seeds]
        rows = group.rows[group.rows["architecture"].isin(again)]
        used.append(replace(group, rows=rows, architectures=again))
        for subject, place, mode, name, value, idle in _figures(used[-1]):
            own = lines.setdefault(subject, {}).setdefault(place, {})
            line = own.setdefault((name, trained[name].recipe, mode), Line(name, trained[name]))
            line.values.setdefault(trained[name].seed, value)  # the same seed again is no further sample
            line.idle |= idle
    order = list(dict.fromkeys(name for part in used for name in part.architectures))
    kept = {subject: _several(places, order) for subject, places in lines.items()}
    first = next(part for part in used if part.architectures)
    told = {commit for key in seeds for commit in commits[key]}
    return Found(first, seeds, told, {subject: places for subject, places in kept.items() if places})


def _several(places: dict[Place, dict[tuple[str, ...], Line]], order: list[str]) -> dict[Place, list[Line]]:
    """Lines with two values or more, in the order of architectures; places ascending."""
    found = {
        place: sorted(
            (line for line in lines.values() if len(line.values) > 1),
            key=lambda line: order.index(line.architecture),
        )
        for place, lines in sorted(places.items(), key=lambda item: item[0][:2])
    }
    return {place: lines for place, lines in found.items() if lines}


def trainings(group: Group) -> dict[str, Training]:
    """Architecture -> how its weights were trained; only those all of whose cards say so."""
    cards, found = group.run.manifest.get("weights") or {}, {}
    labels = group.rows.groupby("architecture")["weights"].unique()
    for architecture in group.architectures:
        known = [str(label) for label in labels[architecture] if pd.notna(label)]
        names = [part.partition("@")[0] for part in known[0].split("+")] if len(known) == 1 else []
        own = [cards.get(name) or {} for name in names]
        if own and all(card.get("recipe") and card.get("seed") is not None for card in own):
            found[architecture] = _training(own)
    return found


def but_seed(card: dict[str, Any]) -> dict[str, Any]:
    """Whatever decided the weights of a card, all but the seed."""
    recipe = card.get("recipe") or {}
    recipe = {key: value for key, value in recipe.items() if key not in ("seed", "log_every_s")}
    data = {key: value for key, value in (card.get("data") or {}).items() if key != "seed"}
    return {name: card.get(name) for name in DECIDES} | {"recipe": recipe, "data": data}


def _training(cards: list[dict[str, Any]]) -> Training:
    told = [but_seed(card) for card in cards]
    apart = [
        {key: value for key, value in card.items() if key not in ("architecture", "parameters")}
        for card in told
    ]
    seeds = list(dict.fromkeys(str(card["seed"]) for card in cards))
    return Training(
        recipe=json.dumps(told, sort_keys=True),
        alike=frozenset(json.dumps(card, sort_keys=True) for card in apart),
        seed="+".join(seeds),
        tokens=" + ".join(f"{card.get('tokens') or 0:,}" for card in cards),
        commits=frozenset(str(card.get("commit") or "unknown")[:12] for card in cards),
    )


def _figures(group: Group) -> Iterator[tuple[Subject, Place, str, str, float, bool]]:
    """(what, where, how the prompt was read, architecture, value, whether the policy had nothing to do)."""
    keys = ["suite", "architecture", "context", "metric"]
    scored = dict(list(group.ok[group.ok["case"].notna()].groupby(keys)))
    for measure in measures(group):
        counted = "nll_nats" if measure.metric == "bits_per_byte" else measure.metric
        for row in measure.frame.itertuples():
            rows = scored[measure.suite, row.architecture, row.context, counted]
            text, dtype, mode = (
                ", ".join(sorted(map(str, rows[name].dropna().unique())))
                for name in ("text", "dtype", "prompt_mode")
            )
            cases = frozenset(zip(rows["case"].astype(str), rows["axes"].astype(str), strict=True))
            subject = Subject(measure.title, measure.suite, measure.metric, text, dtype)
            yield subject, Place(row.context, row.kind, cases), mode, row.architecture, row.value, row.idle
