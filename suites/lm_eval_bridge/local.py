"""Rows and preparation for the YAML files in local_tasks/: what they name with `!function`.

Rows come from memory, not from `datasets.load_dataset`: nothing is written to a cache, no network is asked,
and what is scored is what the label of a run was taken over. Answers have the types of the hub's tables, as
lm-eval expects them, also where a file on this machine has others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..data import DataError, find, json_rows, read
from ..data.lm_eval_rows import typed

if TYPE_CHECKING:
    from datasets import Dataset

#: The fields that each task's YAML looks at.
FIELDS = {
    "arc_challenge": ("question", "choices", "answerKey"),
    "arc_easy": ("question", "choices", "answerKey"),
    "boolq": ("passage", "question", "label"),
    "hellaswag": ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
    "lambada_openai": ("text",),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
}


def rows(task: str, **metadata: Any) -> dict[str, Dataset]:
    """All rows of a task as its one split; lm-eval adds the YAML's metadata. Raises DataError."""
    from datasets import Dataset

    path, name = find(f"lm_eval/{task}.jsonl"), f"lm_eval/{task}.jsonl"
    if path is None:
        raise DataError(
            f"Task {task} has no rows here: {name} is neither in the folder that KVMARK_DATA names nor in "
            "the cache folder (kvmark data list)."
        )
    found = [
        typed(row, task, f"row {number} of {name}")
        for number, row in enumerate(json_rows(read(path), name, FIELDS[task]), 1)
    ]
    try:
        return {"rows": Dataset.from_list(found)}
    except (TypeError, ValueError) as error:  # of Arrow: a column has one type
        raise DataError(f"{name} has rows of different kinds ({str(error).splitlines()[0]}).") from None


def hellaswag(dataset: Dataset) -> Dataset:
    """Adds `query` (activity and context) and `choices`, both without the marks of WikiHow."""
    return type(dataset).from_list([row | _scene(row) for row in dataset])


def _scene(row: dict[str, Any]) -> dict[str, Any]:
    query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"query": _plain(query), "choices": [_plain(ending) for ending in row["endings"]]}


def _plain(text: str) -> str:
    """A title becomes a sentence of its own, other bracketed marks go, and the gaps that they leave."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
