"""Data of others on this machine: where it lies, how its rows are read, and the hash that names it.

    1  $KVMARK_DATA            a folder of the user's; never written to
    2  the cache folder        what `kvmark data fetch` and `kvmark data import` put there:
                               $KVMARK_CACHE, else $XDG_CACHE_HOME/kvmark, else ~/.cache/kvmark

Both are laid out alike:

    pg19/{train,validation,test}/ID.txt[.gz], pg19/index.jsonl
    scrolls/TASK/validation.jsonl[.gz|.xz]
    lm_eval/TASK.jsonl[.gz|.xz]
    text/NAME/*.txt                        only in the cache folder, for `--text NAME`

What there is and where it is published stands in `catalogue`; `download` gets a file, `fetch` a set,
`imports` takes what the user has, `store` puts both in place, `verify` looks whether it is still what it was.

Nothing of it is in the repository. Rows of results hold a label such as `scrolls:qmsum@1f0c…`: two numbers
are comparable only where the labels are equal. Labels hash what was unpacked, so compression does not count.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .faults import DataError
from .rows import parsed
from .unpack import SUFFIXES, pieces

DATA_VARIABLE, CACHE_VARIABLE = "KVMARK_DATA", "KVMARK_CACHE"

__all__ = [
    "DataError", "cache_folder", "find", "find_in", "folders", "json_rows", "label",
    "label_of_hashes", "read",
]  # fmt: skip


def cache_folder() -> Path:
    """Where fetched and imported data lies; it need not exist. Raises DataError for a user without a home."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "kvmark"
    try:
        return Path.home() / ".cache" / "kvmark"
    except RuntimeError:
        raise DataError(f"This user has no home folder; name one for data in {CACHE_VARIABLE}.") from None


def folders() -> list[Path]:
    """Where data is looked for, in this order."""
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named)] if named else []), cache_folder()]


def find(relative: str) -> Path | None:
    """The file `relative` of the first folder that has it, plain or compressed."""
    found = (find_in(folder, relative) for folder in folders())
    return next((path for path in found if path), None)


def find_in(folder: Path, relative: str) -> Path | None:
    """The file `relative` of one folder, plain or compressed."""
    paths = (folder / f"{relative}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read(path: Path) -> bytes:
    """The file's bytes, unpacked. Raises DataError."""
    return b"".join(pieces(path))


def json_rows(raw: bytes, name: str, fields: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows of JSON lines; empty lines are passed over. Raises DataError naming the line.

    Every row must be an object that has the given fields.
    """
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        row = parsed(line, f"line {number} of {name}")
        missing = [field for field in fields if not isinstance(row, dict) or field not in row]
        if missing or not isinstance(row, dict):
            raise DataError(f"line {number} of {name} is not an object with {', '.join(fields)}.")
        rows.append(row)
    if not rows:
        raise DataError(f"{name} has no rows.")
    return rows


def label(name: str, *contents: bytes) -> str:
    """`name` and twelve digits of the hash over the contents, each of them by its own hash."""
    return label_of_hashes(name, (hashlib.sha256(content).hexdigest() for content in contents))


def label_of_hashes(name: str, hashes: Iterable[str]) -> str:
    """The same from the SHA-256 of each content."""
    lines = "".join(f"{sha256}\n" for sha256 in hashes)
    return f"{name}@{hashlib.sha256(lines.encode()).hexdigest()[:12]}"
