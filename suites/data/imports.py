"""What the user has -> the cache folder: recognised, checked, and only then put in place.

A file with the SHA-256 of one in the catalogue is that set as published. Of any other, the name of the file
or of its folder tells the task, else its rows do (`recognise`). Everything that was named is made ready
first; if one thing is wrong nothing is put in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..documents import book_files, decode_text, stem
from .book_index import entries, known_books, put_together
from .faults import DataError
from .pg19_books import official
from .recognise import Found, recognise
from .rows import lines
from .store import Record, check_rows, claim, hashes, install, place, write
from .unpack import pieces

#: The largest book of PG-19 has some 15 MB.
LARGEST_BOOK = 256 << 20


def import_all(root: Path, paths: Iterable[Path], named: str | None = None) -> list[tuple[Record, int]]:
    """Import what lies at the paths; each record with its number of rows, books or texts.

    `named` says the set where neither name nor rows can. Raises TextError; then nothing was put in place.
    """
    found = [one for path in paths for one in recognise(path, named)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{name} is there twice in what was named; import one of them.")
    with claim(root, names) as work:
        ready = [_ready(root, work, one) for one in found]
        records = install(root, work, *(record for record, _ in ready))
        return list(zip(records, (count for _, count in ready), strict=True))


def _ready(root: Path, work: Path, found: Found) -> tuple[Record, int]:
    if found.pieces is None:
        return (_books if found.name.startswith("pg19/") else _texts)(root, work, found)
    file = place(work, found.name)
    write(file, found.pieces())
    if found.published:
        count = sum(1 for _ in lines(pieces(file), file.name))
    else:
        count = check_rows(found.name, file, found.path.name)
    return Record(found.name, found.path.name, found.published, hashes(work, found.name)), count


def _texts(root: Path, work: Path, found: Found) -> tuple[Record, int]:
    """One text, or all of a folder; a name that is taken is replaced."""
    files = [found.path] if found.path.is_file() else book_files(found.path)
    for file in files:
        write(place(work, found.name) / f"{stem(file)}.txt", [_text(file)])
    return Record(found.name, found.path.name, False, hashes(work, found.name)), len(files)


def _books(root: Path, work: Path, found: Found) -> tuple[Record, int]:
    """Books of one split, each held to PG-19's checksum, or to that of the index beside the split."""
    split, ready = found.name.removeprefix("pg19/"), place(work, found.name)
    index = found.path.parent / "index.jsonl"
    known = known_books(index, split)
    files = book_files(found.path)
    for file in files:
        _refuse_stranger(stem(file), split, file)
        write(ready / f"{stem(file)}.txt", [_text(file)])
    fresh = {Path(path).stem: sha256 for path, sha256 in hashes(work, found.name).items()}
    for id, sha256 in fresh.items():
        if known.get(id, sha256) != sha256:
            raise DataError(
                f"Book {id} of {found.name} differs from its checksum: sha256 {sha256[:12]} came, "
                f"{known[id][:12]} is stated."
            )
    titles = {id: str(entry["title"]) for id, entry in entries(index, split).items() if "title" in entry}
    source = found.path.name
    return put_together(root, work, found.name, source, known, titles, official(split)), len(files)


def _refuse_stranger(id: str, split: str, file: Path) -> None:
    """Raise DataError for what is not called by an id, or is known to be of another split."""
    if not id.isdigit():
        raise DataError(f"{file.name} is not called by the number of a book, as books of PG-19 are.")
    for other in ("test", "validation"):
        if (other == split) != (id in official(other)) and (split in (other, "train")):
            said = "none" if other == split else "one"
            raise DataError(f"Book {id} is {said} of PG-19's {other} books, so it cannot be in {split}.")


def _text(file: Path) -> bytes:
    """The bytes of a text, which must be UTF-8. Raises TextError."""
    raw = b"".join(pieces(file, LARGEST_BOOK))
    if not decode_text(raw, file.name).strip():
        raise DataError(f"{file.name} is empty.")
    return raw
