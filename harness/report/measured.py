"""Every score of a run as numbers with intervals: what charts over budgets and over bytes are drawn from.

One `Measure` per suite and score: needles by what judges them, several needles by the mean share that was
found, recall and RULER by the share answered, language in bits per byte over all texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from .doubt import objects, score_doubts
from .forensics import kinds
from .groups import Group, needle, needle_judge, needle_suites, not_exercised, told_apart
from .language import bits_interval, language, language_cases, language_sources
from .scored import suites_with
from .statistics import complete, wilson
from .tasks import by_trial, ends

#: Scores of cases, and what to call them.
SHARES = {
    "accuracy_mean": "Several needles, mean share found",
    "recall_accuracy": "Recall, share of queries answered",
    "ruler_part": "RULER, share of the answers",
}
#: `n`: trials, cases or texts.
COLUMNS = ["architecture", "context", "kind", "value", "low", "high", "n"]


@dataclass(frozen=True)
class Measure:
    """A score of a suite; `frame` has COLUMNS, `idle` (the policy did nothing) and `doubt`, depths pooled.

    `kind` tells cells apart that differ in more than length and depth ("" where none do). Whoever was scored
    on fewer cases than another at the same place has no line: without its worst depth a pooled score is
    another number.
    """

    suite: str
    title: str
    metric: str
    frame: pd.DataFrame

    @property
    def places(self) -> list[tuple[float, str]]:
        """(context, kind) of everything that was scored, ascending."""
        return sorted({*zip(self.frame["context"], self.frame["kind"], strict=True)})

    def at(self, context: float, kind: str) -> pd.DataFrame:
        return self.frame[(self.frame["context"] == context) & (self.frame["kind"] == kind)]


def measures(group: Group) -> list[Measure]:
    """In the order of the page: needles (the one that leads first), other tasks, language."""
    found = [*_needles(group), *_shares(group), *_language(group)]
    return [_marked(group, measure) for measure in found if len(measure.frame)]


def _needles(group: Group) -> Iterator[Measure]:
    for suite, own in told_apart(needle_suites(group)).items():
        judge, name = needle_judge(suite)
        sums = needle(group, suite).groupby(["architecture", "context"])[["hits", "trials"]].sum()
        sums = sums[sums["trials"] > 0].reset_index()
        lines = [
            (row.architecture, row.context, "", row.hits / row.trials)
            + (*wilson(row.hits, row.trials), row.trials)
            for row in sums.itertuples()
        ]
        title = f"Needle, {name}{_told(own)}"
        yield Measure(suite, title, judge, pd.DataFrame(lines, columns=COLUMNS))


def _shares(group: Group) -> Iterator[Measure]:
    for metric, title in SHARES.items():
        for suite, own in told_apart(suites_with(group.ok, [metric])).items():
            rows = group.ok[(group.ok["suite"] == suite) & (group.ok["metric"] == metric)]
            rows = rows[rows["case"].notna()]
            rows = rows.assign(kind=rows["cell"].map(kinds(group, suite)).fillna(""))
            keys = ["architecture", "context", "kind"]
            lines = [
                (*place, part["value"].mean(), *ends(part["value"], part["trial"]), len(part))
                for place, part in by_trial(rows, keys).groupby(keys)
            ]
            name = f"{title}{_told(own)}"
            yield Measure(suite, name, metric, pd.DataFrame(lines, columns=COLUMNS))


def _language(group: Group) -> Iterator[Measure]:
    for source in language_sources(group):
        totals = language(group, source)
        totals = totals[totals["spoilt"] == ""].dropna(subset=["bits_per_byte"])
        cases = language_cases(group, source).groupby(["architecture", "context"])
        lines = [
            (row.architecture, row.context, "", row.bits_per_byte)
            + (*bits_interval(cases.get_group((row.architecture, row.context))), row.texts)
            for row in totals.itertuples()
        ]
        title = f"Bits/byte on {source.name}"
        yield Measure(source.suite, title, "bits_per_byte", pd.DataFrame(lines, columns=COLUMNS))


def _told(own: str) -> str:
    """What tells a suite from others in a title; its lengths and depths stand beside every number."""
    kept = [option for option in own.split(", ") if not option.startswith(("lengths=", "depths=", "trials="))]
    return "".join(f", {option}" for option in kept if option)


def _marked(group: Group, measure: Measure) -> Measure:
    unused = not_exercised(group.ok[group.ok["suite"] == measure.suite])
    frame = measure.frame[complete(measure.frame, ["context", "kind"])]
    places = list(zip(frame["architecture"], frame["context"], strict=True))
    metric = "nll_nats" if measure.metric == "bits_per_byte" else measure.metric
    doubtful = score_doubts(group, measure.suite, (metric,))
    more = {"idle": [place in unused for place in places], "doubt": objects(map(doubtful.get, places))}
    return Measure(measure.suite, measure.title, measure.metric, frame.assign(**more))
