"""SCROLLS: the official metric of each task and the gold answer's likelihood, from the rows of examples.

    ROUGE tasks   100 · √³(mean ROUGE-1 · mean ROUGE-2 · mean ROUGE-L), the geometric mean of the means
    token F1, exact match   100 · mean over the examples
    SCROLLS       the plain mean of its seven tasks, and only where all seven are there
    gold          Σ nats of the first reference / Σ of its bytes, through the cache; tells caches apart
                  where a model is too weak to answer

Intervals are resampled over examples; of a share of right answers it is Wilson's. Where all examples
score alike nothing can be resampled and no interval is given.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .grid import Grid, Key, grid, lay_out, notes
from .groups import Group, axis_text
from .html import Entry, Table
from .language import NOT_FINITE, transformer_of
from .remarks import weights_told
from .scored import GOLD, SCROLLS, suites_with
from .section import Section
from .statistics import FEW_CASES, bootstrap, wilson

#: Tasks whose plain mean is SCROLLS's score (Shaham et al. 2022); SQuALITY and surrogates are in no mean.
SEVEN = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")
MEAN = "mean of the seven"

LEAD = (
    "The official metric of each task, times 100, and below it the likelihood of the gold answer through the "
    "cache. Small print: 95 % intervals over the examples, their number, and in what share of the requests "
    "the policy acted."
)


def scrolls_suites(group: Group) -> list[str]:
    """Spec strings of suites that score gold answers in bytes, in plan order."""
    return suites_with(group.ok, ("gold_bytes",))


def scrolls_sections(group: Group) -> list[Section]:
    """One part per suite; nothing where there is none."""
    suites = scrolls_suites(group)
    return [
        Section(
            "Long documents: SCROLLS" + (f": {suite}" if len(suites) > 1 else ""),
            LEAD,
            tables=scrolls_tables(group, suite),
            notes=_few(group, suite) + weights_told(group),
        )
        for suite in suites
    ]


def _few(group: Group, suite: str) -> list[str]:
    """Said once for all tasks of a suite in which no more examples than this were asked."""
    rows = group.ok[(group.ok["suite"] == suite) & group.ok["metric"].isin([*SCROLLS, *GOLD])]
    rows = rows.assign(task=rows["axes"].map(lambda axes: axis_text(axes, "task") or ""))
    examples = rows.groupby("task")["case"].nunique()
    few = examples[examples < FEW_CASES]
    tasks = "" if len(few) == len(examples) else f" of {', '.join(few.index)}"
    return [
        f"Fewer than {FEW_CASES} examples{tasks}: an interval over so few means little; it cannot leave "
        "what it has seen."
    ] * bool(len(few))


def scrolls_tables(group: Group, suite: str) -> list[Table]:
    """Official scores, scores of tasks that are in no mean, and gold answers."""
    found = grid(group, suite, "task")
    entries, metrics = _scores(found)
    official = [task for task in SEVEN if task in found.headers]
    others = [task for task in found.headers if task not in SEVEN]
    tables = []
    if official:
        headers = {task: f"{found.headers[task]}\n{metrics.get(task, '')}".strip() for task in official}
        if any(key[2] == MEAN for key in entries):
            headers[MEAN] = MEAN
        tables.append(lay_out(group, found, entries, headers, f"{suite}: official metrics, times 100."))
    if others:
        headers = {task: f"{found.headers[task]}\n{metrics.get(task, '')}".strip() for task in others}
        tables.append(lay_out(group, found, entries, headers, "Not of the seven, and in no mean."))
    gold = _gold(group, found)
    headers = {task: found.headers[task] for task in [*official, *others]}
    caption = "Gold answer, bits per byte (lower is better), and the difference to the transformer."
    return [table for table in [*tables, lay_out(group, found, gold, headers, caption)] if table.rows]


def per_example(found: Grid, names: tuple[str, ...]) -> pd.DataFrame:
    """One line per architecture, place and example with its numbers; replicates averaged."""
    rows = found.ok[found.ok["metric"].isin(names) & found.ok["case"].notna()]
    keys = ["architecture", "down", "across", "case", "metric"]
    numbers = rows.groupby(keys, sort=False)["value"].mean().unstack("metric")
    return numbers.reindex(columns=list(names)).reset_index()


def task_score(examples_NK: np.ndarray) -> float:
    """100 times the geometric mean over metrics of the means over examples."""
    return float(100 * np.prod(examples_NK.mean(0)) ** (1 / examples_NK.shape[1]))


def _scores(found: Grid) -> tuple[dict[Key, Entry], dict[str, str]]:
    """Entries by place, the mean of the seven among them, and what each task is scored by."""
    entries, metrics, seven = found.failures, {}, {}
    cases = per_example(found, tuple(SCROLLS))
    for (architecture, down, task), part in cases.groupby(["architecture", "down", "across"], sort=False):
        names = [name for name in SCROLLS if part[name].notna().any()]
        examples_NK = part[names].dropna().to_numpy(float)
        if not len(examples_NK):
            continue
        metrics[task] = SCROLLS[names[0]]
        score, n = task_score(examples_NK), len(examples_NK)
        acted = found.acted(architecture, down, task)
        text = notes(_score_interval(examples_NK, names), f"n = {n}", acted)
        entries[architecture, down, task] = Entry(f"{score:.1f}", text)
        seven.setdefault((architecture, down), {})[task] = score
    for (architecture, down), scores in seven.items():
        if all(task in scores for task in SEVEN):
            mean = sum(scores[task] for task in SEVEN) / len(SEVEN)
            entries[architecture, down, MEAN] = Entry(f"{mean:.1f}", found.acted(architecture, down))
    return entries, metrics


def _score_interval(examples_NK: np.ndarray, names: list[str]) -> str:
    n = len(examples_NK)
    if names == ["exact_match"]:
        low, high = (100 * end for end in wilson(examples_NK.sum(), n))
    elif n < 2 or (examples_NK == examples_NK[0]).all():
        return ""
    else:
        low, high = bootstrap(examples_NK, lambda sums: 100 * np.prod(sums / n, 0) ** (1 / len(sums)))
    return f"{low:.1f} to {high:.1f}" if high > low else ""


def _gold(group: Group, found: Grid) -> dict[Key, Entry]:
    entries, base = found.failures, transformer_of(group.architectures)
    asked = per_example(found, GOLD).dropna(subset=["gold_bytes"])
    keys = ["architecture", "down", "across"]
    finite = np.isfinite(asked["gold_nll_nats"])
    spoilt = asked[~finite].groupby(keys).size()
    entries |= {key: Entry(NOT_FINITE, f"n = {number}", failed=True) for key, number in spoilt.items()}
    parts = {key: part for key, part in asked[finite].groupby(keys, sort=False)}
    for (architecture, down, task), part in parts.items():
        number_of = part["gold_bytes"].sum()
        if not number_of:
            continue
        bits = part["gold_nll_nats"].sum() / math.log(2) / number_of
        left_out = spoilt.get((architecture, down, task), 0)
        told = [f"n = {len(part)}", f"{left_out} {NOT_FINITE}" * bool(left_out)]
        told.append(found.acted(architecture, down, task))
        if architecture != base and (base, down, task) in parts:
            told = [_difference(part, parts[base, down, task]), *told]
        entries[architecture, down, task] = Entry(f"{bits:.3f}", notes(*told))
    return entries


def _difference(part: pd.DataFrame, base: pd.DataFrame) -> str:
    """Bits per byte minus the transformer's over the examples that both have, and its interval."""
    both = part.merge(base, on="case", suffixes=("", "_base"))
    if not both["gold_bytes"].sum():
        return ""
    columns = both[["gold_nll_nats", "gold_nll_nats_base", "gold_bytes"]].to_numpy(float)

    def difference(sums: np.ndarray) -> np.ndarray:
        return (sums[0] - sums[1]) / math.log(2) / sums[2]

    low, high = bootstrap(columns, difference)
    interval = "" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
    return notes(f"{difference(columns.sum(0)):+.3f}", interval).replace("-", "−")
