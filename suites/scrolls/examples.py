"""The tasks' files on this machine -> Examples with all their references, and the label that names the files.

One row per reference: rows with the same id are one example, whose input is that of the first row. The
validation split is read, for it alone has references and is not for training. Files go by in pieces (a
book of NarrativeQA is there once for every question, 2 GB in all) and of an input only the beginning is kept:
a prompt is at most so long.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import DataError, find, label_of_hashes
from ..data.rows import lines
from ..data.scrolls_rows import check_scrolls
from ..data.unpack import pieces
from ..suite import seed_of
from .tasks import OFFICIAL, TASKS

_LAST_OPTION = re.compile(r"\n *\(D\).+?(?=\n\n)", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """One question and all its references. The query ends at `query_end` of the input (0: there is none).

    `input` is its beginning; `length` counts the characters of all of it.
    """

    id: str
    input: str
    length: int
    query_end: int
    references: tuple[str, ...]

    @property
    def query(self) -> str:
        return self.input[: self.query_end]

    @property
    def document_start(self) -> int:
        return self.query_end + 2 if self.query_end else 0


@dataclass(frozen=True)
class Files:
    """What was read: a label over all files and one of each, how many examples each has, those drawn."""

    label: str
    labels: dict[str, str]
    counts: dict[str, int]
    examples: dict[str, list[Example]]


def load(tasks: Sequence[str], characters: int, most: int, seed: int) -> Files:
    """Of each task at most `most` examples (0: all), with so many characters of their documents.

    Raises DataError for a file that is missing, damaged or evidently another task's.
    """
    hashes, counts, drawn = {}, {}, {}
    for task in tasks:
        path, digest = file_of(task), hashlib.sha256()
        check_scrolls(pieces(path), task, f"scrolls/{task}")
        rows = (json.loads(line) for line in lines(_hashed(pieces(path), digest), path.name))
        examples = examples_of(rows, task, characters)
        hashes[task], counts[task] = digest.hexdigest(), len(examples)
        drawn[task] = draw(examples, most, f"scrolls/seed={seed}/{task}")
    labels = {task: label_of_hashes(f"scrolls:{task}", [hashes[task]]) for task in tasks}
    return Files(label_of_hashes(f"scrolls:{'+'.join(tasks)}", hashes.values()), labels, counts, drawn)


def file_of(task: str) -> Path:
    """Raises DataError where this machine has none."""
    if path := find(f"scrolls/{task}/validation.jsonl"):
        return path
    here = "+".join(name for name in OFFICIAL if find(f"scrolls/{name}/validation.jsonl"))
    raise DataError(
        f"There is no scrolls/{task}/validation.jsonl on this machine; `kvmark data fetch scrolls` or "
        f"`kvmark data import` brings it{f', or ask for what is there: tasks={here}' if here else ''}."
    )


def examples_of(rows: Iterable[dict[str, Any]], task: str, characters: int) -> list[Example]:
    """Rows that were checked, by id, in the order of the first of each."""
    first: dict[str, tuple[str, int, int]] = {}
    references: dict[str, list[str]] = {}
    for row in rows:
        id, input = row["id"], row["input"]
        references.setdefault(id, []).append(row["output"])
        if id not in first:
            end = 0
            if TASKS[task].asked:  # the query ends with the first blank line, and options belong to it
                options = _LAST_OPTION.search(input) if task == "quality" else None
                end = options.end() if options else input.find("\n\n")
            first[id] = (input[: end + 2 + characters], len(input), end)
    return [Example(id, *first[id], tuple(outputs)) for id, outputs in references.items()]


def draw(examples: Sequence[Example], most: int, name: str) -> list[Example]:
    """At most so many, in their order; whether one is drawn depends on the ids alone, and more hold fewer."""
    ranked = sorted(examples, key=lambda example: seed_of(f"{name}/{example.id}"))
    drawn = {example.id for example in ranked[: most or None]}
    return [example for example in examples if example.id in drawn]


def _hashed(parts: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for part in parts:
        digest.update(part)
        yield part
