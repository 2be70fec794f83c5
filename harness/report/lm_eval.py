"""lm-eval's own numbers, task by task: metric, standard error, and whether the policy had anything to do."""

from __future__ import annotations

from ..metrics import METRICS, format_number, format_share
from .grid import Key, grid, lay_out, notes
from .groups import Group
from .html import Entry, Table
from .remarks import weights_told
from .scored import LM_EVAL, of_lm_eval
from .section import Section

STDERR = "_stderr"
#: Metrics that are shares, whatever a filter appended to their names.
SHARES = ("acc", "acc_norm", "exact_match", "f1", "em")
#: Counts that stand in small print: documents of a task, requests that were cut.
DOCUMENTS, TRUNCATED = "sample_len", "truncated_requests"

LEAD = (
    "Numbers and standard errors are lm-eval's own; contexts went through the policy and continuations were "
    "scored through its cache. Short questions fit into any budget: where the policy took nothing the number "
    "is marked as not exercised."
)


def lm_eval_suites(group: Group) -> list[str]:
    """Spec strings of lm-eval suites, in plan order."""
    return list(dict.fromkeys(group.rows.loc[group.rows["suite_name"] == LM_EVAL, "suite"]))


def lm_eval_sections(group: Group) -> list[Section]:
    """One part per suite; nothing where there is none."""
    suites = lm_eval_suites(group)
    return [
        Section(
            "lm-eval" + (f": {suite}" if len(suites) > 1 else ""),
            LEAD,
            tables=[lm_eval_table(group, suite)],
            notes=weights_told(group),
        )
        for suite in suites
    ]


def lm_eval_table(group: Group, suite: str) -> Table:
    """Architectures down, task and metric across."""
    found = grid(group, suite, "task")
    rows = found.ok[of_lm_eval(found.ok)]
    keys = ["architecture", "down", "across", "metric"]
    values = rows.groupby(keys, sort=False)["value"].mean().to_dict()
    entries: dict[Key, Entry] = {}
    headers: dict[str, str] = {}
    for (architecture, down, task, name), value in values.items():
        if name.endswith(STDERR) or name in (DOCUMENTS, TRUNCATED):
            continue
        column = f"{task}\n{name}"
        headers[column] = f"{found.headers[task]}\n{name}"  # as lm-eval calls it
        told = [
            _error(name, values.get((architecture, down, task, name + STDERR))),
            _count("n = {:,.0f}", values.get((architecture, down, task, DOCUMENTS))),
            found.acted(architecture, down, task),
            _count("{:,.0f} requests cut", values.get((architecture, down, task, TRUNCATED)) or None),
        ]
        entries[architecture, down, column] = Entry(_text(name, value), notes(*told))
    order = {task: number for number, task in enumerate(found.headers)}
    headers = dict(sorted(headers.items(), key=lambda item: order[item[0].partition("\n")[0]]))
    for (architecture, down, task), entry in found.failures.items():
        columns = [column for column in headers if column.partition("\n")[0] == task]
        if not columns:
            headers[task] = task
        entries |= {(architecture, down, column): entry for column in columns or [task]}
    return lay_out(group, found, entries, headers, f"{suite}: lm-eval's numbers, ± standard error.")


def _text(name: str, value: float) -> str:
    if name.partition(",")[0] in SHARES:
        return format_share(value)
    return METRICS[name].format(value) if name in METRICS else format_number(value)


def _error(name: str, value: float | None) -> str:
    return "" if value is None else f"± {_text(name, value)}"


def _count(text: str, value: float | None) -> str:
    return "" if value is None else text.format(value)
