"""Small examples of every kind of data, and a folder that must not change when something is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from suites.data.imports import import_all
from suites.documents import TextError

Rows = list[dict[str, Any]]
STORY = "Once there was a house.\nNobody lived in it, said the neighbours.\n\nThen somebody came."
MEETING = "Chair: Shall we begin?\nDesigner: Yes.\nChair: Then the buttons."
OPTIONS = " (A) a cat\n (B) a dog\n (C) an owl\n (D) nobody"
REPORT = "The agency reviewed its spending in three years and found it wanting."


def row(id: str, input: str, output: str, number: int = 0) -> dict[str, Any]:
    return {"id": id, "pid": f"{id}_{number}", "input": input, "output": output}


SCROLLS: dict[str, Rows] = {
    "gov_report": [row("crs-1", REPORT, "Spending was reviewed.")],
    "summ_screen_fd": [row("fd-1", MEETING, "They begin.")],
    "qmsum": [row(f"va-sq-{n}", f"What about item {n}?\n\n{MEETING}", "Buttons.") for n in range(3)],
    "qasper": [
        row("a" * 40, f"What is it?\n\n{STORY}", "A house."),
        row("a" * 40, f"What is it?\n\n{STORY}", "An empty house.", 1),
    ],
    "narrative_qa": [row("n1", f"Who came?\n\n{STORY}", "Somebody.")],
    "quality": [row("q1", f"Who lived there?\n\n{OPTIONS}\n\n{STORY}", "nobody")],
    "contract_nli": [row("3_nda-11", f"It may be shared.\n\n{STORY}", "Not mentioned")],
    "squality": [row("63833_1", f"What is the plot?\n\n{STORY}", "A house is empty until it is not.")],
}
CHOICES = {"text": ["soil", "water"], "label": ["A", "B"]}
LM_EVAL: dict[str, Rows] = {
    "hellaswag": [
        {
            "ind": 1, "activity_label": "Washing", "ctx_a": "A man.", "ctx_b": "he", "ctx": "A man. he",
            "endings": ["sings", "washes", "leaves", "flies"], "label": "1",
        }
    ],
    "arc_easy": [{"id": "e1", "question": "What do plants drink?", "choices": CHOICES, "answerKey": "B"}],
    "arc_challenge": [{"id": "c1", "question": "What holds roots?", "choices": CHOICES, "answerKey": "A"}],
    "winogrande": [{"sentence": "The _ ran.", "option1": "dog", "option2": "stone", "answer": "1"}],
    "piqa": [{"goal": "Open it.", "sol1": "Turn the key.", "sol2": "Eat the key.", "label": 0}],
    "boolq": [{"question": "is it blue", "passage": "Sky -- It is blue.", "idx": 0, "label": 1}],
    "lambada_openai": [{"text": "It was cold, and he asked for more coffee"}],
}  # fmt: skip


def jsonl(rows: Rows) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(name, raw)
    return path


def scrolls_zip(path: Path, task: str, rows: Rows | None = None) -> Path:
    """As SCROLLS has them: three splits in a folder called like the task."""
    raw = jsonl(SCROLLS[task] if rows is None else rows)
    return zipped(path, {f"{task}/{split}.jsonl": raw for split in ("train", "validation", "test")})


def pg19(root: Path, split: str, books: dict[str, bytes], index: bool = True) -> Path:
    """A folder like KVMARK_DATA's, whose index states the books' checksums."""
    folder = root / "pg19" / split
    folder.mkdir(parents=True)
    for id, raw in books.items():
        (folder / f"{id}.txt.gz").write_bytes(gzip.compress(raw))
        entry = {"id": id, "split": split, "title": f"Book {id}", "sha256": hashlib.sha256(raw).hexdigest()}
        if index:
            with (root / "pg19" / "index.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """What a user would notice: every file but locks and records of work in progress."""
    files = [file for file in folder.rglob("*") if file.is_file() and ".locks" not in file.parts]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def refused(root: Path, *paths: Path, named: str | None = None) -> str:
    """The one sentence of an import that changed nothing."""
    before = tree(root)
    with pytest.raises(TextError) as caught:
        import_all(root, paths, named)
    assert tree(root) == before
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 400, sentence
    assert "Traceback" not in sentence
    return sentence
