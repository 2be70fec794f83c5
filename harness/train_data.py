"""Training text, and the rule that no evaluation book is ever trained on.

PG-19 states a checksum for each of its 150 test and validation books (`suites.data.pg19_books`). A text is
one of them if its bytes have such a checksum, if they have it once their LF are CRLF again (what
`datasets.load_dataset("pg19")` yields has LF), or if its file is named by such a book's Gutenberg id:
another edition of a book is still that book. A book inside a longer file is not recognised.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from suites.data.pg19_books import official
from suites.text import TextError, load_books

Books = list[tuple[str, bytes]]

EVALUATION_SPLITS = ("test", "validation")


def training_books(folder: Path) -> tuple[Books, dict[str, str]]:
    """`suites.text.load_books` of a folder that holds no evaluation book. Raises TextError."""
    books, hashes = load_books(folder)
    for name, text in books:
        refuse_evaluation_book(name, text, hashes[name])
    return books, hashes


def refuse_evaluation_book(name: str, text: bytes, sha256: str) -> None:
    """Raise TextError if a text (UTF-8 with LF, hash of its file) is a PG-19 test or validation book."""
    seen = {sha256, hashlib.sha256(text.replace(b"\n", b"\r\n")).hexdigest()}
    for split in EVALUATION_SPLITS:
        checksums = official(split)
        book = next((id for id, checksum in checksums.items() if checksum in seen), None)
        if book is None and name in checksums:
            book = name
        if book is not None:
            raise TextError(
                f"Text '{name}' is book {book} of PG-19's {split} split, which is for evaluation: "
                "train on other books (pg19/train)."
            )
