"""Finished batches of a cell that is not finished: a line of JSON each, so that a killed cell goes on.

A cell's file lies in `unfinished/` of the run folder and is named by the cell's key, which holds everything
that determines its numbers: model, weights, policy and budget, dtype, text, settings, sources. Another
budget has another key, and so never finds these answers. Each line begins with the hash of its JSON: one
that was cut off, or is not as it was written, is as good as none, and its batch is measured again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suites.suite import Answer, Case

from .retained import Retained
from .store import Row


@dataclass
class Batch:
    """What one batch of cases left behind."""

    base: Row  # what its rows share
    answers: list[Answer]
    evicted: list[int]
    rows: list[Row] = field(default_factory=list)
    retained: list[Retained] = field(default_factory=list)


class Journal:
    """Batches by what was asked. Reads the file when made; `put` appends and waits for the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: dict[str, Batch] = {}
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        for line in lines:
            stated, _, text = line.partition(b" ")
            if stated == _sha256(text):
                record = json.loads(text)
                self.batches[record["asked"]] = _batch(record)

    def get(self, cases: Sequence[Case]) -> Batch | None:
        return self.batches.get(_asked(cases))

    def put(self, cases: Sequence[Case], batch: Batch) -> None:
        """Raises OSError."""
        record = {"asked": _asked(cases)} | dataclasses.asdict(batch)
        text = json.dumps(record).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            # A line that was cut off before must not swallow this one.
            file.write(b"\n" + _sha256(text) + b" " + text + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """The cell is finished: its own file has everything."""
        self.path.unlink(missing_ok=True)


def _asked(cases: Sequence[Case]) -> str:
    """A hash over all that a batch of cases asks."""
    parts = [(c.id, c.prompt, c.forced, c.max_new_tokens, c.stop, c.seed) for c in cases]
    return _sha256(json.dumps(parts).encode()).decode()


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _batch(record: dict) -> Batch:
    return Batch(
        Row(**record["base"]),
        [_answer(**fields) for fields in record["answers"]],
        list(record["evicted"]),
        [Row(**row) for row in record["rows"]],
        [Retained(r["layer"], r["recent"], r["first"], tuple(r["ages"])) for r in record["retained"]],
    )


def _answer(tokens: list, logprobs: list, text: str, likeliest: list | None) -> Answer:
    return Answer(tuple(tokens), tuple(logprobs), text, None if likeliest is None else tuple(likeliest))
