"""Data of others on this machine: where it lies, how its rows are read, and the hash that names it.

    1  $KVMARK_DATA            a folder of the user's; never written to
    2  the cache folder        what `kvmark data fetch` and `kvmark data import` put there:
                               $KVMARK_CACHE, else $XDG_CACHE_HOME/kvmark, else ~/.cache/kvmark

Both are laid out alike:

    pg19/{train,validation,test}/ID.txt[.gz], pg19/index.jsonl
    scrolls/TASK/validation.jsonl[.gz|.xz]
    lm_eval/TASK.jsonl[.gz|.xz]

Nothing of it is in the repository. Rows of results hold a label such as `scrolls:qmsum@1f0c…`: two numbers
are comparable only where the labels are equal. Labels hash what was unpacked, so compression does not count.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..documents import TextError

DATA_VARIABLE, CACHE_VARIABLE = "KVMARK_DATA", "KVMARK_CACHE"
_OPEN: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".xz": lzma.decompress}


class DataError(TextError):
    """Data cannot be had, or is not what it should be; the message is one sentence."""


def cache_folder() -> Path:
    """Where fetched and imported data lies; it need not exist."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvmark"


def folders() -> list[Path]:
    """Where data is looked for, in this order."""
    named = os.environ.get(DATA_VARIABLE)
    return [*([Path(named)] if named else []), cache_folder()]


def find(relative: str) -> Path | None:
    """The file `relative` of the first folder that has it, plain or compressed."""
    for folder in folders():
        for suffix in _OPEN:
            if (path := folder / f"{relative}{suffix}").is_file():
                return path
    return None


def read(path: Path) -> bytes:
    """The file's bytes, unpacked. Raises DataError."""
    try:
        raw = path.read_bytes()
        return _OPEN.get(path.suffix, bytes)(raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from None


def json_rows(raw: bytes, name: str, fields: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Rows of JSON lines; empty lines are passed over. Raises DataError naming the line.

    Every row must be an object that has the given fields.
    """
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"line {number} of {name} is not JSON.") from None
        missing = [field for field in fields if not isinstance(row, dict) or field not in row]
        if missing or not isinstance(row, dict):
            raise DataError(f"line {number} of {name} is not an object with {', '.join(fields)}.")
        rows.append(row)
    if not rows:
        raise DataError(f"{name} has no rows.")
    return rows


def label(name: str, *contents: bytes) -> str:
    """`name` and twelve digits of the hash over the contents, each of them by its own hash."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}\n" for content in contents)
    return f"{name}@{hashlib.sha256(lines.encode()).hexdigest()[:12]}"
