"""Suites of many small questions: several needles at once, RULER's tasks, associative recall.

Each case has shares of right answers (or nats of the right one); a table shows their mean with its interval
and n. Where every case is right or wrong the interval is Wilson's, else it is resampled over the cases. Cases
that share one prompt (the queries of a trial of recall) are no independent samples: whole trials are
resampled, and where all are alike Wilson's interval counts trials.
"""

from __future__ import annotations

import math
import re

import pandas as pd

from ..metrics import NOTHING, format_number, format_share
from .grid import Grid, Key, grid, lay_out, notes
from .groups import CONTEXT_AXES, Group
from .html import Entry, Table
from .remarks import weights_told
from .scored import RECALL, RULER, SEVERAL, suites_with
from .section import Section
from .statistics import NO_INTERVAL, bootstrap, wilson

LEAD = (
    "Means over the cases; small print: 95 % intervals, the number of cases, and in what share of the "
    "requests the policy acted."
)


def task_sections(group: Group) -> list[Section]:
    """One part per kind, a table per suite (and measure); nothing where there are none."""
    kinds = (
        ("Several needles at once", SEVERAL, _several),
        ("RULER-style tasks", RULER, _measures),
        ("Associative recall", RECALL, _measures),
    )
    sections = []
    for title, names, tables in kinds:
        if suites := suites_with(group.ok, [*names][:1]):
            found = [table for suite in suites for table in tables(group, suite, names)]
            folded = (
                [part for suite in suites for part in _by_depth(group, suite)] if names is SEVERAL else []
            )
            notes_ = weights_told(group)
            sections.append(Section(title, LEAD, tables=found, folded=folded, notes=notes_))
    return sections


def task_tables(group: Group) -> list[Table]:
    """The tables of all those parts."""
    return [table for section in task_sections(group) for table in section.tables]


def _several(group: Group, suite: str, names: dict[str, str]) -> list[Table]:
    """Measures across; lengths down, all depths together."""
    found = grid(group, suite, "", pooled=("depth",))
    entries: dict[Key, Entry] = {}
    for (architecture, down, _), entry in found.failures.items():
        entries |= {(architecture, down, name): entry for name in names}
    for name in names:
        entries |= {(a, d, name): entry for (a, d, _), entry in means(found, name).items()}
    return [lay_out(group, found, entries, names, f"{suite}, all depths together.")]


def _by_depth(group: Group, suite: str) -> list[tuple[str, Table]]:
    """A folded table per measure: depths across, lengths down."""
    found, tables = grid(group, suite, "depth"), []
    headers = {depth: f"depth {depth}" for depth in sorted(found.headers, key=_place)}
    for name, what in SEVERAL.items():
        entries = found.failures | means(found, name)
        caption = f"{suite}: {what}, by the depth of the first."
        tables.append(
            (
                f"{what.capitalize()} by length and depth: {suite}",
                lay_out(group, found, entries, headers, caption),
            )
        )
    return tables


def _place(depth: str) -> float:
    return float(depth) if depth != NOTHING else math.inf


def _measures(group: Group, suite: str, names: dict[str, str]) -> list[Table]:
    """A table per measure; tasks across, or whatever the suite varies."""
    across = _across(group, suite)
    found = grid(group, suite, across)
    tables = []
    for name, what in names.items():
        if entries := means(found, name):
            unit = "" if across in ("", "task") else f"{across} "
            headers = {column: unit + header for column, header in found.headers.items()}
            caption = f"{suite}: {what}."
            tables.append(lay_out(group, found, found.failures | entries, headers, caption))
    return tables


def _across(group: Group, suite: str) -> str:
    """The axis that goes across: the task, else the first that is no length, else the length."""
    cells = [cell.get("axes") or {} for cell in group.run.cells if cell["suite"] == suite]
    names = dict.fromkeys(name for axes in cells for name in axes)
    return min(names, key=lambda name: (name != "task", name in CONTEXT_AXES), default="")


def means(found: Grid, name: str) -> dict[Key, Entry]:
    """Mean over the cases of each place, with interval and n."""
    rows = found.ok[(found.ok["metric"] == name) & found.ok["case"].notna()]
    keys, entries = ["architecture", "down", "across"], {}
    cases = by_trial(rows, keys)
    for (architecture, down, across), part in cases.groupby(keys, sort=False):
        acted = found.acted(architecture, down, across)
        values, trials = part["value"], part["trial"]
        count = f"n = {len(part)}" + f" in {trials.nunique()} trials" * (trials.nunique() < len(part))
        text = notes(_interval(values, trials, name), count, acted)
        mean = format_number(values.mean()) if name.endswith("_nats") else format_share(values.mean())
        entries[architecture, down, across] = Entry(mean, text)
    return entries


def by_trial(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One line per case with its `value` and the `trial` whose prompt it shares: recall's ids end in the
    number of the query (the needles' `query=all` stands before the trial, and is no such number)."""
    cases = rows.groupby([*keys, "case"], sort=False)["value"].mean().reset_index()
    trial = {case: re.sub(r"/query=\d+$", "", case) for case in cases["case"].unique()}
    return cases.assign(trial=cases["case"].map(trial))


def ends(cases: pd.Series, trials: pd.Series, bounded: bool = True) -> tuple[float, float]:
    """95 % interval of a mean over cases, whole trials at a time; `bounded`: of shares from 0 to 1.

    (nan, nan) where there is nothing to resample.
    """
    sums_NK = cases.groupby(trials).agg(["sum", "count"]).to_numpy(float)
    means_N, n = sums_NK[:, 0] / sums_NK[:, 1], len(sums_NK)
    if set(means_N) <= {0.0, 1.0} and bounded and (n == len(cases) or len(set(means_N)) == 1):
        return wilson(means_N.sum(), n)
    if n < 2 or (means_N == means_N[0]).all():
        return NO_INTERVAL
    return bootstrap(sums_NK, lambda sums: sums[0] / sums[1])


def _interval(cases: pd.Series, trials: pd.Series, name: str) -> str:
    nats = name.endswith("_nats")
    low, high = ends(cases, trials, bounded=not nats)
    if math.isnan(low):
        return ""
    return f"{low:.3f} to {high:.3f}" if nats else f"{100 * low:.0f}–{100 * high:.0f} %"
