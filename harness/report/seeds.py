"""“Spread over seeds”: runs of one page that measured the same on networks that differ by their seed alone.

What counts as the same is in `seeded.py`. A difference of two architectures is taken seed by seed. It is
called *beyond the spread* where there are at least three seeds, all of which agree on its sign, and its mean
is larger than what the seeds move either of the two, lowest to highest. Two of equal worth, with independent
normal errors, meet this by chance (400,000 simulated cases)

    seeds                                              2        3        4        5
    both vary alike                               21.5 %    4.8 %    1.0 %    0.2 %
    one varies by a tenth of the other            29.1 %    8.1 %    2.2 %    0.6 %

so that two seeds tell nothing. The spread is of trainings: how far texts differ is another question, and
`books.py` answers it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from statistics import mean

from ..metrics import METRICS
from .books import signed
from .groups import Group, context_name
from .html import Entry, Table, table_of
from .load import Run
from .remarks import beyond_name, weights_told
from .section import Section
from .seeded import Found, Line, Place, Subject, seeded

TITLE = "Spread over seeds"
#: Seeds below which a difference is no finding; architectures beyond which only the first is compared with.
FEW_SEEDS, MOST_PAIRED = 3, 6
LEAD = (
    "The same networks trained again from other seeds, on the same cases. Differences are taken seed by "
    "seed. One is beyond the spread where at least three seeds agree on its sign and its mean is larger than "
    "either architecture's own range, lowest to highest. Two that are equally good would be called different "
    "by chance, with three seeds, about once in 20 lines where both vary alike, and up to once in 12 where "
    "one hardly varies."
)


def seed_section(runs: list[Run]) -> list[Section]:
    """Means and ranges, and the differences of each two; nothing unless two runs differ by their seed."""
    found = seeded(runs)
    if found is None or not found.lines:
        return []
    part = Section(TITLE, LEAD)
    for subject, places in found.lines.items():
        part.tables += [_values(found, subject, places), *_differences(found.group, subject, places)]
    part.notes = [f"Runs: {', '.join(run.name for run in runs)}."]
    if len(found.commits) > 1:
        part.notes.append(f"Trained at several commits of the code: {', '.join(sorted(found.commits))}.")
    part.notes += weights_told(found.group)
    return [part]


def _values(found: Found, subject: Subject, places: dict[Place, list[Line]]) -> Table:
    text, rows = METRICS[subject.metric].format, []
    for place, lines in places.items():
        for line in lines:
            values = list(line.values.values())
            asked = found.seeds[line.architecture, line.training.recipe]
            lacking = ", ".join(seed for seed in asked if seed not in line.values)
            each = " · ".join(f"{seed}: {text(value)}" for seed, value in line.values.items())
            rows.append(
                [
                    Entry(line.architecture, f"{line.training.tokens} tokens of training"),
                    _where(place, found.group),
                    Entry(", ".join(line.values), f"not the same cases with {lacking}" * bool(lacking)),
                    Entry(text(mean(values)), "not exercised" * line.idle),
                    f"{text(min(values))} to {text(max(values))}",
                    _size(subject.metric, line.range),
                    each,
                ]
            )
    columns = ["architecture", "context", "seeds", f"{METRICS[subject.metric].label}\nmean"]
    columns += ["lowest to highest", "range", "by seed"]
    read = f", on {subject.text.partition('@')[0]}" * bool(subject.text)
    return table_of(columns, rows, f"{subject.title}: {subject.suite}{read}, {subject.dtype}.")


def _differences(group: Group, subject: Subject, places: dict[Place, list[Line]]) -> list[Table]:
    rows, crowded = [], False
    for place, lines in places.items():
        crowded |= len(lines) > MOST_PAIRED
        firsts = lines[:1] if len(lines) > MOST_PAIRED else lines
        for first, second in combinations(lines, 2):
            if first in firsts and (row := _difference(subject.metric, first, second)):
                rows.append([row[0], _where(place, group), *row[1:]])
    if not rows:
        return []
    columns = ["difference", "context", "seeds", "mean", "lowest to highest", "larger range\nof the two"]
    table = table_of([*columns, "finding"], rows, f"{subject.title}: differences, seed by seed.")
    note = f"More than {MOST_PAIRED} architectures: only the first is compared with the others."
    return [replace(table, notes=[note] * crowded)]


def _difference(metric: str, first: Line, second: Line) -> list[str | Entry] | None:
    """One line; None for two that do not compare."""
    one, other = first.training.alike, second.training.alike
    both = [seed for seed in first.values if seed in second.values]
    if first.architecture == second.architecture or not (one <= other or other <= one) or len(both) < 2:
        return None
    apart = [second.values[seed] - first.values[seed] for seed in both]
    spread = max(first.range, second.range)
    better = second if (mean(apart) < 0) == (METRICS[metric].better == "low") else first
    each = [_signed(metric, value) for value in (min(apart), max(apart))]
    row = [f"{second.architecture} − {first.architecture}", ", ".join(both), _signed(metric, mean(apart))]
    finding = "does not differ beyond the spread"
    if is_beyond(apart, spread):
        finding = f"differs beyond the spread: {better.architecture} is better"
    if len(both) < FEW_SEEDS:
        finding = "two seeds tell nothing"
    return [*row, " to ".join(each), _size(metric, spread), finding]


def is_beyond(differences: list[float], spread: float) -> bool:
    """Whether differences of at least three seeds have one sign, and a mean larger than `spread`."""
    if len(differences) < FEW_SEEDS or not (max(differences) < 0 or min(differences) > 0):
        return False
    return abs(mean(differences)) > spread


def _where(place: Place, group: Group) -> str:
    kind = f", {place.kind}" if place.kind else ""
    return context_name(place.context) + kind + beyond_name(group, place.context)


def _signed(metric: str, value: float) -> str:
    if METRICS[metric].unit == "share":
        return f"{100 * value:+.1f} pp".replace("-", "−")
    return signed(value)


def _size(metric: str, value: float) -> str:
    return _signed(metric, abs(value)).removeprefix("+")
