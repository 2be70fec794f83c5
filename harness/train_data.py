"""Training text, and the rule that no evaluation book is ever trained on.

PG-19 states a checksum for each of its 150 test and validation books (`suites.data.pg19_books`). A text is
one of them if its bytes have such a checksum; if they have it with other line ends (what
`datasets.load_dataset("pg19")` yields has LF), with or without a byte order mark, with another number of
empty lines at the end; or if its file is named by such a book's Gutenberg id ("356", "pg356", "356-0"):
another edition of a book is still that book. A book that was changed, wrapped anew, cut, or put into a
longer file under another name is not recognised.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from suites.data.pg19_books import official
from suites.text import TextError, load_books

Books = list[tuple[str, bytes]]

EVALUATION_SPLITS = ("test", "validation")
BOM = b"\xef\xbb\xbf"


def training_books(folder: Path) -> tuple[Books, dict[str, str]]:
    """`suites.text.load_books` of a folder that holds no evaluation book. Raises TextError."""
    books, hashes = load_books(folder)
    for name, text in books:
        refuse_evaluation_book(name, text, hashes[name])
    return books, hashes


def refuse_evaluation_book(name: str, text: bytes, sha256: str) -> None:
    """Raise TextError if a text (UTF-8 with LF, hash of its file) is a PG-19 test or validation book."""
    seen = {sha256} | {hashlib.sha256(form).hexdigest() for form in _as_published(text)}
    named = re.fullmatch(r"(?:pg)?0*(\d+)(?:[-._].*)?", name)
    for split in EVALUATION_SPLITS:
        checksums = official(split)
        book = next((id for id, checksum in checksums.items() if checksum in seen), None)
        if book is None and named and named[1] in checksums:
            book = named[1]
        if book is not None:
            raise TextError(
                f"Text '{name}' is book {book} of PG-19's {split} split, which is for evaluation: "
                "train on other books (pg19/train)."
            )


def _as_published(text: bytes) -> Iterator[bytes]:
    """Files that a text may have been: CRLF, with or without a byte order mark, as it ends or trimmed."""
    lines = re.sub(rb"\r+\n?", b"\n", text.removeprefix(BOM))
    for ending in dict.fromkeys((lines, *(lines.rstrip() + b"\n" * more for more in range(3)))):
        for mark in (b"", BOM):
            yield mark + ending.replace(b"\n", b"\r\n")
