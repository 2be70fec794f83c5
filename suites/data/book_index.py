"""pg19/index.jsonl: what is known of each book, and the record of a split whose books were put together.

An entry has id, split, title and sha256. Of test and validation books PG-19's own checksum counts, whatever
an index says; of others that of the index beside them. A book that nobody states a checksum of stays out of
the index, and `suites.text` then labels the split "unverified".
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ..documents import book_files, stem
from . import json_rows
from .faults import writing
from .pg19_books import official
from .store import Record, hashes, place
from .unpack import pieces

INDEX = Path("pg19") / "index.jsonl"


def entries(file: Path, split: str) -> dict[str, dict[str, Any]]:
    """{id: entry} of a split; empty without an index. Raises DataError."""
    if not file.is_file():
        return {}
    rows = json_rows(b"".join(pieces(file)), file.name, ("id",))
    return {str(row["id"]): row for row in rows if row.get("split", split) == split}


def known_books(file: Path, split: str) -> dict[str, str]:
    """{id: SHA-256} of a split: what PG-19 states, and for other books what the index does."""
    stated = {id: str(entry["sha256"]) for id, entry in entries(file, split).items() if "sha256" in entry}
    return stated | official(split)


def put_together(
    root: Path, work: Path, name: str, source: str, known: dict[str, str], titles: dict[str, str],
    published: dict[str, str],
) -> Record:  # fmt: skip
    """The record of the books that lie ready, joined by those of the split that are here already.

    `known` are checksums of the fresh ones; `published` those that PG-19 itself states.
    """
    split, ready = name.removeprefix("pg19/"), place(work, name)
    fresh = {stem(file) for file in book_files(ready)}
    old = [file for file in book_files(place(root, name)) if stem(file) not in fresh]
    with writing(ready):
        for file in old:
            try:
                os.link(file, ready / file.name)
            except OSError:  # no hard links here
                shutil.copy2(file, ready / file.name)
    here = entries(root / INDEX, split)
    known = known_books(root / INDEX, split) | known
    titles = {id: str(entry.get("title", id)) for id, entry in here.items()} | titles
    files = hashes(work, name)
    ids = {stem(Path(path)): sha256 for path, sha256 in files.items()}
    unknown = tuple(id for id, sha256 in ids.items() if known.get(id) != sha256)
    pinned = all(published.get(id) == sha256 for id, sha256 in ids.items())
    return Record(name, source, pinned, files, "", {id: titles.get(id, id) for id in ids}, unknown)
