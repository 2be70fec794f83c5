"""Books of PG-19: one file each in a public bucket, each held to its published checksum.

Those of the test and validation books are in `pg19_books`; those of the training books are in the index that
the datasets library had (4 MB), which is fetched with them. Books that are here and unchanged are kept.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import requests

from .book_index import put_together
from .catalogue import BUCKET, Remote
from .faults import DataError, writing
from .pg19_books import official
from .store import Record, place, sha256_of


def fetch_books(
    root: Path, work: Path, name: str, files: list[Path], get: Callable[..., Path], most: int | None
) -> Record:
    """Make a split ready: its first books by id, or all, and those that are here. Raises DataError.

    `files` are metadata.csv and, for train, the index; `get(remote, bytes before it)` fetches.
    """
    split = name.removeprefix("pg19/")
    known = official(split) or _indexed(files[1], split)
    titles = _titles(files[0])
    ids = sorted(known, key=int)[:most]
    done = sum(file.stat().st_size for file in files)
    fresh = []
    with requests.Session() as session:  # thousands of files: one connection
        for id in ids:
            here = place(root, name) / f"{id}.txt"
            if here.is_file() and sha256_of(here) == known[id]:
                done += here.stat().st_size
                continue
            fresh.append(get(Remote(f"{BUCKET}/{split}/{id}.txt", known[id]), done, get=session.get))
            done += fresh[-1].stat().st_size
    ready = place(work, name)
    with writing(ready):
        ready.mkdir(parents=True)
        for file in fresh:
            file.replace(ready / file.name)
    return put_together(root, work, name, f"{BUCKET}/{split}", known, titles, known)


def _titles(file: Path) -> dict[str, str]:
    """{id: title} of PG-19's metadata.csv, which has no head."""
    with file.open(encoding="utf-8", newline="") as stream:
        return {row[0]: row[1] for row in csv.reader(stream) if len(row) > 1}


def _indexed(file: Path, split: str) -> dict[str, str]:
    """{id: SHA-256} of the index of the datasets library."""
    try:
        sums = json.loads(file.read_text(encoding="utf-8"))["default"]["download_checksums"]
        found = {url: re.search(rf"/{split}/(\d+)\.txt$", url) for url in sums}
        return {match[1]: sums[url]["checksum"] for url, match in found.items() if match}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{file.name} is not the index of PG-19 that was published.") from None
