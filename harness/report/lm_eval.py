"""lm-eval's own numbers, task by task: metric, standard error, and whether the policy had anything to do.

A group of tasks (MMLU) has numbers of its own where the run's manifest says how lm-eval makes them
(`Suite.notes`, key `groups`, JSON): a mean over its tasks, by their documents or plain. They are made here,
of rows, where every task of the group was measured; one without that metric is left out, as there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..metrics import METRICS, format_number, format_share
from .grid import Grid, Key, grid, lay_out, notes
from .groups import Group
from .html import Entry, Table
from .remarks import weights_told
from .scored import LM_EVAL, of_lm_eval
from .section import Section

STDERR = "_stderr"
#: Metrics that are shares where no value is above 1, whatever a filter appended to their names.
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em")
#: Counts that stand in small print: documents of a task, requests that were cut.
DOCUMENTS, TRUNCATED = "sample_len", "truncated_requests"

LEAD = (
    "Numbers and standard errors are lm-eval's own; contexts went through the policy and continuations were "
    "scored through its cache. Short questions fit into any budget: where the policy took nothing the number "
    "is marked as not exercised."
)
OF_GROUPS = " A group's number is made of its tasks' as lm-eval makes it, where all of them were measured."

#: Architecture, and values of the axes that go down.
Line = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Number:
    """One number of lm-eval's; None where it says nothing."""

    value: float
    stderr: float | None = None
    documents: float | None = None
    truncated: float | None = None


@dataclass(frozen=True)
class Column:
    """A metric of a task or a group; `tasks` are those that have to be measured for it."""

    header: str
    metric: str
    tasks: tuple[str, ...]
    numbers: dict[Line, Number]


def lm_eval_suites(group: Group) -> list[str]:
    """Spec strings of lm-eval suites, in plan order."""
    return list(dict.fromkeys(group.rows.loc[group.rows["suite_name"] == LM_EVAL, "suite"]))


def lm_eval_sections(group: Group) -> list[Section]:
    """One part per suite; nothing where there is none."""
    suites = lm_eval_suites(group)
    return [
        Section(
            "lm-eval" + (f": {suite}" if len(suites) > 1 else ""),
            LEAD + (OF_GROUPS if _told(group, suite) else ""),
            tables=[lm_eval_table(group, suite)],
            notes=weights_told(group),
        )
        for suite in suites
    ]


def lm_eval_table(group: Group, suite: str) -> Table:
    """Architectures down; task and metric across, a group's behind those of its tasks."""
    found = grid(group, suite, "task")
    failures = found.failures
    entries: dict[Key, Entry] = {}
    headers: dict[str, str] = {}
    for column in columns(found, _told(group, suite)):
        key = str(len(headers))
        headers[key] = column.header
        acted = _acted(found, column.tasks)
        shares = all(number.value <= 1 for number in column.numbers.values())
        for (architecture, down), number in column.numbers.items():
            told = [
                "" if number.stderr is None else f"± {_text(column.metric, number.stderr, shares)}",
                "" if number.documents is None else f"n = {number.documents:,.0f}",
                acted(architecture, down),
                f"{number.truncated:,.0f} requests cut" if number.truncated else "",
            ]
            text = _text(column.metric, number.value, shares)
            entries[architecture, down, key] = Entry(text, notes(*told))
        for (architecture, down, task), entry in failures.items():
            if task in column.tasks:
                entries[architecture, down, key] = entry
    return lay_out(group, found, entries, headers, f"{suite}: lm-eval's numbers, ± standard error.")


def columns(found: Grid, told: dict[str, Any]) -> list[Column]:
    """Every metric of every task and group, in the order of the tasks."""
    every = _of_tasks(found)
    told_of = {column.tasks[0] for column in every}
    every += [Column(head, "", (task,), {}) for task, head in found.headers.items() if task not in told_of]
    every += _of_groups(found, told, {(column.tasks[0], column.metric): column.numbers for column in every})
    place = {task: number for number, task in enumerate(found.headers)}
    return sorted(every, key=lambda column: (max(place.get(t, -1) for t in column.tasks), len(column.tasks)))


def _of_tasks(found: Grid) -> list[Column]:
    """A number that no architecture has (NaN) is a column that is empty."""
    rows = found.rows[(found.rows["status"] == "ok") & of_lm_eval(found.rows)]
    values = rows.groupby(["architecture", "down", "across", "metric"], sort=False)["value"].mean().to_dict()
    numbers: dict[tuple[str, str], dict[Line, Number]] = {}
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    for key in values:
        *place, task, name = key
        if name.endswith(STDERR) or name in (DOCUMENTS, TRUNCATED):
            continue
        own = numbers.setdefault((task, name), {})
        if key in known:
            small = [known.get((*place, task, other)) for other in (name + STDERR, DOCUMENTS, TRUNCATED)]
            own[place[0], place[1]] = Number(known[key], *small)
    return [
        Column(f"{found.headers[task]}\n{name}", name, (task,), own) for (task, name), own in numbers.items()
    ]


def _acted(found: Grid, tasks: tuple[str, ...]) -> Callable[[str, tuple[str, ...]], str]:
    """`Grid.acted` of a task, or of all requests of several."""
    if len(tasks) == 1:
        return lambda architecture, down: found.acted(architecture, down, tasks[0])
    return replace(found, rows=found.rows[found.rows["across"].isin(tasks)]).acted


def _of_groups(
    found: Grid, told: dict[str, Any], of: dict[tuple[str, str], dict[Line, Number]]
) -> Iterator[Column]:
    """`of`: the numbers of tasks by task and metric."""
    ok = found.rows[found.rows["status"] == "ok"]
    measured = set(zip(ok["architecture"], ok["down"], ok["across"], strict=True))
    for name, one in told.items():
        tasks = one["tasks"]
        whole = {(a, d) for a, d, _ in measured if all((a, d, task) in measured for task in tasks)}
        for asked in one["metrics"]:
            for metric in _metrics(asked, [metric for task, metric in of if task in tasks]):
                having = [task for task in tasks if (task, metric) in of]
                parts = [of[task, metric] for task in having]
                numbers = {
                    line: pooled([part[line] for part in parts], asked["weight_by_size"])
                    for line in whole
                    if all(line in part and part[line].documents for part in parts)
                }
                left, every = len(set(having)), len(set(tasks))
                of_which = f"{every} tasks" if left == every else f"{left} of {every} tasks"
                how = f"{of_which}, by size" if asked["weight_by_size"] else f"plain mean of {of_which}"
                if parts:
                    yield Column(f"{name}\n{metric}\n{how}", metric, tuple(tasks), numbers)


def _metrics(asked: dict[str, Any], there: list[str]) -> list[str]:
    """A group's metric under every filter that it names, or that its tasks have."""
    metric, filters = asked["metric"], asked["filter_list"]
    if filters is None:
        return sorted({name for name in there if name == metric or name.startswith(f"{metric},")})
    return [metric if filter == "none" else f"{metric},{filter}" for filter in filters]


def pooled(numbers: list[Number], weighted: bool) -> Number:
    """A group's number of its tasks', with the standard error that lm-eval 0.4.13 gives it."""
    sizes = [number.documents or 0.0 for number in numbers]
    weights = sizes if weighted else [1.0] * len(sizes)
    value = sum(w * number.value for w, number in zip(weights, numbers, strict=True)) / sum(weights)
    errors = [number.stderr for number in numbers if number.stderr is not None]
    stderr, total = None, sum(sizes)
    if len(errors) == len(numbers):
        if weighted:
            squares = sum((n - 1) * n * e * e for n, e in zip(sizes, errors, strict=True))
            stderr = math.sqrt(squares / (total - len(sizes)) / total)
        else:
            stderr = math.sqrt(sum(e * e for e in errors)) / len(errors)
    return Number(value, stderr, total, sum(number.truncated or 0.0 for number in numbers))


def _told(group: Group, suite: str) -> dict[str, Any]:
    """The groups of a suite that have numbers of their own, from the run's manifest."""
    said = (group.run.manifest.get("suites") or {}).get(suite) or {}
    return json.loads(said.get("groups", "{}"))


def _text(name: str, value: float, shares: bool) -> str:
    """`shares`: no value of the column is above 1. SQuAD's F1, of 100, is a plain number."""
    if name.partition(",")[0] in SHARES:
        return format_share(value) if shares else format_number(value)
    return METRICS[name].format(value) if name in METRICS else format_number(value)
