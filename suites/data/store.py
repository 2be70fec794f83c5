"""The cache folder: sets appear in it whole, one process at a time, with a record of what they hash to.

    records/NAME.json     what was put there, from where, when, and the SHA-256 of every file
    .work/NAME/           where a set is made ready; emptied before and after
    .partial/             what downloads have so far (`download`)
    .locks/               one process per set; the books of PG-19 share an index and so a lock

A set is one file (scrolls/qmsum/validation.jsonl, lm_eval/piqa.jsonl) or a folder (pg19/test, text/NAME). It
is made ready elsewhere in the cache folder and then renamed, so a set that is seen is one that was checked;
what it takes the place of is kept until all is done (`swap`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ..documents import stem
from . import json_rows
from .faults import DataError, Unavailable, writing
from .lm_eval_rows import check_lm_eval
from .scrolls_rows import check_scrolls
from .swap import put
from .unpack import pieces


@dataclass(frozen=True)
class Record:
    """What was put in place: `files` maps paths below the cache folder to the SHA-256 of their bytes.

    `pinned`: each was checked against a checksum that its publisher states (or came out of a file that was).
    `titles` are those of books; `unknown` are books for which nobody states a checksum.
    """

    name: str
    source: str
    pinned: bool
    files: dict[str, str]
    when: str = ""
    titles: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def place(root: Path, name: str) -> Path:
    """Where a set lies below the root: one file of rows, or a folder of books."""
    kind, _, _ = name.partition("/")
    return root / (name + {"lm_eval": ".jsonl", "scrolls": "/validation.jsonl"}.get(kind, ""))


@contextlib.contextmanager
def claim(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Keep others from these sets, and give a folder to make them ready in. Raises Unavailable."""
    with contextlib.ExitStack() as stack:
        with writing(root):
            (root / ".locks").mkdir(parents=True, exist_ok=True)
        names = sorted(names)
        for lock in sorted({"pg19" if name.startswith("pg19/") else name for name in names}):
            path = root / ".locks" / lock.replace("/", "-")
            with writing(path):
                file = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unavailable(f"Another kvmark is at work on {lock} in {root}; wait for it.") from None
        work = root / ".work" / names[0].replace("/", "-")
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        with writing(work):
            work.mkdir(parents=True)
        yield work


def install(root: Path, work: Path, *records: Record) -> list[Record]:
    """Put sets that lie ready at the same places below `work` where they belong, all of them or none.

    Raises DataError. Whatever stops it, also Ctrl-C, finds everything as it was before.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    noted = [replace(record, when=when) for record in records]
    with writing(root), contextlib.ExitStack() as undo:
        for record in noted:
            put(place(work, record.name), place(root, record.name), work, undo)
            if record.name.startswith("pg19/"):
                _put_text(_index(root, record), root / "pg19" / "index.jsonl", work, undo)
            text = json.dumps(asdict(record), indent=1)
            _put_text(text, _record_file(root, record.name), work, undo)
        undo.pop_all()  # nothing to undo any more
    return noted


def record_of(root: Path, name: str) -> Record | None:
    """What was noted about a set, if it was. Raises DataError for a damaged note."""
    file = _record_file(root, name)
    if not file.is_file():
        return None
    try:
        noted = json.loads(file.read_text(encoding="utf-8"))
        return Record(**noted | {"unknown": tuple(noted["unknown"])})
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError(f"{file} is damaged; fetch or import {name} anew.") from None


def recorded(root: Path) -> list[str]:
    """Names of all sets with a record."""
    return sorted(_name_of(file) for file in (root / "records").glob("*/*.json"))


def write(path: Path, content: Iterable[bytes]) -> None:
    """All pieces into a file. Raises Unavailable where the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        for piece in content:
            with writing(path):
                file.write(piece)
                file.flush()


def check_rows(name: str, file: Path, said: str) -> int:
    """Count the rows of a set that lies ready, a file that messages call `said`. Raises DataError."""
    kind, task = name.split("/")
    return (check_scrolls if kind == "scrolls" else check_lm_eval)(pieces(file), task, said)


def hashes(root: Path, name: str) -> dict[str, str]:
    """{path below the root: SHA-256} of all files of a set. Raises DataError."""
    where = place(root, name)
    files = sorted(file for file in where.rglob("*") if file.is_file()) if where.is_dir() else [where]
    return {file.relative_to(root).as_posix(): sha256_of(file) for file in files}


def sha256_of(path: Path) -> str:
    """Over what is unpacked. Raises DataError."""
    digest = hashlib.sha256()
    for piece in pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def _record_file(root: Path, name: str) -> Path:
    return root / "records" / f"{name}.json"


def _name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def _index(root: Path, record: Record) -> str:
    """Book by book, what `suites.text` reads titles and checksums from; unknown ones stay out of it."""
    file = root / "pg19" / "index.jsonl"
    split = record.name.removeprefix("pg19/")
    old = json_rows(file.read_bytes(), str(file), ("id",)) if file.is_file() and file.stat().st_size else []
    entries = [entry for entry in old if entry.get("split") != split]
    for path, sha256 in record.files.items():
        if (id := stem(Path(path))) not in record.unknown:
            title = record.titles.get(id, id)
            entries.append({"id": id, "split": split, "title": title, "sha256": sha256})
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def _put_text(text: str, target: Path, work: Path, undo: contextlib.ExitStack) -> None:
    with writing(target):
        new = Path(tempfile.mkdtemp(dir=work)) / target.name
        new.write_text(text, encoding="utf-8")
    put(new, target, work, undo)
