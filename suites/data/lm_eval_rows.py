"""Rows of lm-eval's tasks: their fields, and the types that these have in the hub's tables.

lm-eval compares answers by type: with {"label": "0"} it scores every row of piqa 0 and says nothing. Files of
publishers differ from the tables (BoolQ says true and false, HellaSwag has numbers), so an answer gets the
table's type whenever rows are read, and what has no such meaning is refused. Files are kept as they came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .faults import DataError
from .rows import objects

Row = dict[str, Any]
#: The last field holds the answer, a number in tables of _NUMBERED and a string in others.
LM_EVAL_FIELDS = {
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"),
    "arc_easy": ("question", "choices", "answerKey"),
    "arc_challenge": ("question", "choices", "answerKey"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "boolq": ("question", "passage", "label"),
    "lambada_openai": ("text",),
}
_NUMBERED = ("piqa", "boolq")
_LISTS = {"endings": "are a list of strings", "choices": "are two lists of strings, text and label"}


def fitting(row: Row) -> list[str]:
    """Tasks of lm-eval that a row may belong to by its fields."""
    return [task for task, fields in LM_EVAL_FIELDS.items() if set(fields) <= row.keys()]


def check_lm_eval(pieces: Iterable[bytes], task: str, name: str) -> int:
    """Count the rows of a task. Raises DataError for the first fault."""
    if task not in LM_EVAL_FIELDS:
        raise DataError(f"{name}: there is no lm-eval set '{task}'; known: {', '.join(LM_EVAL_FIELDS)}.")
    fields, count = LM_EVAL_FIELDS[task], 0
    for count, (where, row) in enumerate(objects(pieces, name), 1):  # noqa: B007
        if missing := [field for field in fields if field not in row]:
            raise DataError(f"{where} has no {missing[0]}; rows of {task} have {', '.join(fields)}.")
        typed(row, task, where)
    return count


def typed(row: Row, task: str, where: str) -> Row:
    """The row, its answer in the type of the hub's table; a field that is not there is not missed.

    Raises DataError for a text that is none, and for an answer that is not one of the choices.
    """
    *texts, last = LM_EVAL_FIELDS[task]
    for field in texts:
        if field in row and not _holds_text(field, row[field]):
            raise DataError(f"{where} has no {field} that {_LISTS.get(field, 'is a string')}.")
    answer, choices = row[last], _choices(row, task)
    if task in _NUMBERED and isinstance(answer, bool):
        answer = int(answer)
    if str(answer) not in choices:
        raise DataError(f"{where} has no {last} that answers it; the test split has none.")
    return row | {last: choices[str(answer)]}


def _holds_text(field: str, value: Any) -> bool:
    if field == "choices":
        return isinstance(value, dict) and all(_strings(value.get(part)) for part in ("text", "label"))
    return _strings(value) if field == "endings" else isinstance(value, str)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _choices(row: Row, task: str) -> dict[str, int | str]:
    """{how an answer may be written: how the table has it}; empty for a row that cannot be answered."""
    if task in _NUMBERED:
        return {"0": 0, "1": 1}
    if task == "hellaswag":
        return {str(number): str(number) for number in range(len(row["endings"]))}
    if task == "winogrande":
        return {"1": "1", "2": "2"} if "_" in row["sentence"] else {}
    if task == "lambada_openai":
        text = row["text"]
        return {text: text} if isinstance(text, str) and " " in text.strip() else {}
    texts, labels = row["choices"]["text"], row["choices"]["label"]
    return {label: label for label in labels} if len(texts) == len(labels) else {}
