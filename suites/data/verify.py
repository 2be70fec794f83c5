"""What is here, what names it, and whether it still is what it was.

In the cache folder every set is held to the SHA-256 that was recorded when it was fetched or imported. In
$KVMARK_DATA files are held to a SHA256SUMS at its top, if there is one. Books of PG-19 are held to PG-19's
checksums, or to those of the index beside them, in both. Where nothing of that exists rows are held to their
schema, and the answer is "unknown": nobody can say whether they are what was published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..documents import TextError, book_files, decode_text, stem
from . import DATA_VARIABLE, cache_folder, find_in, folders, label_of_hashes
from .book_index import INDEX, known_books
from .catalogue import SPLITS
from .download import sha256
from .pg19_books import official
from .store import check_rows, hashes, record_of, recorded, sha256_of
from .unpack import SUFFIXES

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Verdict:
    """One set in one place. `status`: "ok", "differs" or "unknown"."""

    status: str
    name: str
    where: str
    detail: str


def place_name(root: Path) -> str:
    return "cache" if root == cache_folder() else DATA_VARIABLE


def names_in(root: Path) -> list[str]:
    """The sets that lie in a folder, by its layout."""
    names = [f"pg19/{split}" for split in SPLITS if book_files(root / "pg19" / split)]
    for suffix in SUFFIXES:
        names += [f"scrolls/{file.parent.name}" for file in root.glob(f"scrolls/*/validation.jsonl{suffix}")]
        ending = f".jsonl{suffix}"
        names += [f"lm_eval/{file.name.removesuffix(ending)}" for file in root.glob(f"lm_eval/*{ending}")]
    names += [f"text/{folder.name}" for folder in root.glob("text/*") if book_files(folder)]
    return sorted(set(names))


def here(name: str) -> Path | None:
    """The folder whose set the suites would read."""
    return next((root for root in folders() if name in names_in(root)), None)


def label_in(root: Path, name: str) -> str:
    """What tells this set from another version of it, or why nothing can.

    The label that rows of results would hold; of lm-eval's sets, whose rows have a label of their own (the
    library's version and the rows that were asked), the file's SHA-256.
    """
    from ..text import resolve

    kind, _, rest = name.partition("/")
    try:
        if kind == "pg19":
            return resolve(str(root / "pg19"), rest).label
        if kind == "text":
            return resolve(str(root / name)).label
        record = record_of(root, name) if root == cache_folder() else None
        found = record.files.values() if record else [sha256_of(_rows(root, name))]
        if kind == "lm_eval":
            return f"sha256 {next(iter(found))[:12]}"
        return label_of_hashes(f"{kind}:{rest}", found)
    except TextError as error:
        return str(error)


def verify() -> Iterator[Verdict]:
    """A verdict on every set of every folder, and on those that a record knows and nobody finds."""
    for root in folders():
        names = {*names_in(root), *(recorded(root) if root == cache_folder() else ())}
        for name in sorted(names):
            try:
                status, detail = _verdict(root, name)
            except TextError as error:
                status, detail = "differs", str(error)
            except OSError as error:
                status, detail = "differs", f"{error.filename} cannot be read ({error.strerror})."
            yield Verdict(status, name, place_name(root), detail)


def _verdict(root: Path, name: str) -> tuple[str, str]:
    record = record_of(root, name) if root == cache_folder() else None
    stated = {} if record else _sums(root, name)
    books = hashes(root, name) if name.startswith("pg19/") and name in names_in(root) else {}
    good: list[str] = []
    wrong: list[str] = []
    if record:
        found = books or (hashes(root, name) if name in names_in(root) else {})
        wrong += _differences(record.files, found)
        good += [f"as recorded on {record.when[:10]}", "pinned" if record.pinned else "not pinned"]
    elif stated:
        found = {path: sha256(root / path) for path in stated if (root / path).is_file()}
        wrong += _differences(stated, found)
        good += [f"as {SUMS} states"]
    if books:
        known = known_books(root / INDEX, name.removeprefix("pg19/"))
        ids = {path: stem(Path(path)) for path in books}
        wrong += [
            f"{path} differs from its checksum"
            for path, sha in books.items()
            if known.get(ids[path], sha) != sha
        ]
        held = sum(id in known for id in ids.values())
        whose = "PG-19's" if official(name.removeprefix("pg19/")) else "the index's"
        good.append(f"{held} of {len(books)} books have {whose} checksum")
        if not record and not stated and held < len(books):
            return ("differs" if wrong else "unknown"), _list(wrong) if wrong else "; ".join(good)
    elif not record and not stated:
        if name.startswith("text/"):
            return "unknown", "no checksum is known"
        return "unknown", f"{check_rows(name, _rows(root, name), name)} rows; no checksum is known"
    return ("differs", _list(wrong)) if wrong else ("ok", "; ".join(good))


def _list(wrong: list[str]) -> str:
    wrong = list(dict.fromkeys(wrong))
    return ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _differences(stated: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is wrong, file by file, in few words."""
    changed = [f"{path} differs" for path in stated if path in found and found[path] != stated[path]]
    missing = [f"{path} is missing" for path in stated if path not in found]
    return [*changed, *missing, *(f"{path} is new" for path in found if path not in stated)]


def _sums(root: Path, name: str) -> dict[str, str]:
    """{path: SHA-256} of a set's files in SHA256SUMS, the format of sha256sum."""
    file = root / SUMS
    lines = decode_text(file.read_bytes(), SUMS).splitlines() if file.is_file() else []
    parts = [line.split(maxsplit=1) for line in lines if line.strip()]
    parts = [part for part in parts if len(part) == 2]
    sums = {path.removeprefix("*").removeprefix("./"): digest.lower() for digest, path in parts}
    return {path: digest for path, digest in sums.items() if path.startswith((f"{name}/", f"{name}.jsonl"))}


def _rows(root: Path, name: str) -> Path:
    end = "/validation.jsonl" if name.startswith("scrolls/") else ".jsonl"
    path = find_in(root, f"{name}{end}")
    assert path is not None, "names_in has seen it"
    return path
