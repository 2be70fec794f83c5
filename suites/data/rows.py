"""Rows of others, looked at line by line: strict JSON lines; fields and answers of lm-eval's tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from .faults import DataError

#: Fields of lm-eval's tasks; the last holds the answer.
LM_EVAL_FIELDS = {
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "ctx", "endings", "label"),
    "arc_easy": ("question", "choices", "answerKey"),
    "arc_challenge": ("question", "choices", "answerKey"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "boolq": ("question", "passage", "label"),
    "lambada_openai": ("text",),
}
LONGEST_LINE = 256 << 20


def lines(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Lines without their ends; a last line without an end counts. Raises DataError for an endless one."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{name} has a line of more than {LONGEST_LINE >> 20} MiB.")
    if rest:
        yield rest


def objects(pieces: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line N of NAME", row) of JSON lines, strictly: UTF-8, no empty line, an object in each."""
    where = None
    for number, line in enumerate(lines(pieces, name), 1):
        where = f"line {number} of {name}"
        try:
            text = line.decode("utf-8")
            if not text.strip():
                raise DataError(f"{where} is empty; a row belongs there.")
            row = json.loads(text)
            if "\\u" in text:
                json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{where} is not UTF-8.") from None
        except UnicodeEncodeError:
            raise DataError(f"{where} holds half a surrogate pair, which is no text.") from None
        except DataError:
            raise
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object.")
        yield where, row
    if where is None:
        raise DataError(f"{name} has no rows.")


def fitting(row: dict[str, Any]) -> list[str]:
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
        if not _answered(row, task):
            raise DataError(f"{where} has no {fields[-1]} that answers it; the test split has none.")
    return count


def _answered(row: dict[str, Any], task: str) -> bool:
    """Whether the last field names one of the choices."""
    if task == "lambada_openai":
        return isinstance(row["text"], str) and " " in row["text"].strip()
    answer = row[LM_EVAL_FIELDS[task][-1]]
    if task.startswith("arc_"):
        choices = row["choices"] if isinstance(row["choices"], dict) else {}
        labels, texts = choices.get("label"), choices.get("text")
        lists = isinstance(labels, list) and isinstance(texts, list)
        return lists and len(labels) == len(texts) and answer in labels
    if task == "winogrande":
        return str(answer) in ("1", "2") and "_" in str(row["sentence"])
    choices = row["endings"] if task == "hellaswag" else ["", ""]
    most = len(choices) if isinstance(choices, list) else 0
    return str(int(answer) if isinstance(answer, bool) else answer) in map(str, range(most))
