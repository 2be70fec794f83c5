"""Rows of SCROLLS (id, pid, input, output): schema, references, and whether they are those of the task.

Rows do not name their task, so a file is refused as another's only on evidence: QuALITY's inputs hold four
options and its outputs are one of them; ContractNLI has three labels; QMSum's ids are SCROLLS's numbers;
tasks that ask have a query before the first blank line, and those that summarize have none; answers to
questions are not a hundred words long. A task that is not listed here is held to the schema alone.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from typing import Any

from .faults import DataError
from .rows import objects

FIELDS = ("id", "pid", "input", "output")
TASKS = (
    "gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli", "squality",
)  # fmt: skip
_ASKING = ("qmsum", "qasper", "narrative_qa", "quality", "contract_nli", "squality")
_LABELS = ("Entailment", "Contradiction", "Not mentioned")
_OPTIONS = re.compile(r" *\(A\)(.+?)\n *\(B\)(.+?)\n *\(C\)(.+?)\n *\(D\)(.+?)\n\n", re.DOTALL)
_QMSUM_ID = re.compile(r"(tr|va|te)-[sg]q-\d+")


def guess(row: dict[str, Any]) -> str | None:
    """The SCROLLS task that a row cannot but belong to, if there is one."""
    options = _OPTIONS.search(str(row["input"]), 0, 4096)
    if options and str(row["output"]).strip() in (option.strip() for option in options.groups()):
        return "quality"
    if row["output"] in _LABELS:
        return "contract_nli"
    return "qmsum" if _QMSUM_ID.fullmatch(str(row["id"])) else None


def check_scrolls(pieces: Iterable[bytes], task: str, name: str) -> int:
    """Count the rows of a task. Raises DataError for the first fault."""
    pids: set[str] = set()
    referenced: dict[str, bool] = {}
    guesses, queries, words = [], [], []
    for where, row in objects(pieces, name):
        for field in FIELDS:
            if not isinstance(row.get(field), str):
                none = field == "output" and row.get(field) is None
                said = "has no output, the reference" if none else f"has no {field} that is a string"
                raise DataError(f"{where} {said}; SCROLLS rows have {', '.join(FIELDS)}.")
        if row["pid"] in pids:
            raise DataError(f"{where} has the pid of an earlier line.")
        pids.add(row["pid"])
        referenced[row["id"]] = referenced.get(row["id"], False) or bool(row["output"].strip())
        guesses.append(guess(row))
        if task in ("quality", "contract_nli") and guesses[-1] != task:
            raise DataError(f"{where} is not a row of {task}.")
        query, blank, _ = row["input"].partition("\n\n")
        if task in _ASKING and not (query.strip() and blank):
            raise DataError(f"{where} has no query before a blank line, as rows of {task} have.")
        queries.append(blank and query.rstrip().endswith("?") and len(query.split()) <= 60)
        words.append(len(row["output"].split()))
    without = [id for id, has in referenced.items() if not has]
    if len(without) == len(referenced):
        raise DataError(f"{name} has no references: SCROLLS has them for train and validation only.")
    if without:
        raise DataError(f"{without[0]} in {name} has no reference: its output is empty.")
    if other := _other(task, guesses, queries, words):
        raise DataError(f"{name} holds rows of {other}, not of {task}.")
    return len(pids)


def _other(task: str, guesses: list[str | None], queries: list[Any], words: list[int]) -> str | None:
    """Whose rows these are, where they are evidently not the task's."""
    if task not in TASKS:
        return None
    first = guesses[0]
    if first and first != task and set(guesses) == {first}:
        return first
    if task not in _ASKING and sum(map(bool, queries)) > 0.9 * len(queries):
        return "a task with questions"
    if task in ("qasper", "narrative_qa") and statistics.median(words) > 100:
        return "a task with summaries"
    return None
