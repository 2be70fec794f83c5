"""Which sets lie at a path.

SCROLLS   qmsum.zip · qmsum.jsonl[.gz|.xz] · scrolls/TASK/validation.jsonl[.gz|.xz] · a folder of these
PG-19     a folder like KVMARK_DATA's or the bucket's: {train,validation,test}/ID.txt[.gz]
lm-eval   piqa.jsonl[.gz|.xz] · piqa.parquet · a folder lm_eval/ · one with valid.jsonl, valid-labels.lst
text      anything.txt[.gz] · a folder of these; `--text NAME` reads it
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..documents import book_files, stem
from .catalogue import CATALOGUE, SPLITS
from .convert import converted, table_lines
from .download import sha256
from .faults import DataError
from .lm_eval_rows import LM_EVAL_FIELDS, fitting
from .rows import objects
from .scrolls_rows import FIELDS, TASKS, guess
from .unpack import SUFFIXES, member_names, member_pieces, pieces

MEMBER = "validation.jsonl"
ROWS = tuple(f".jsonl{suffix}" for suffix in SUFFIXES)
TEXTS = (".txt", ".txt.gz")
#: Where rows lie in a folder that is not itself one task's.
PLACES = (
    "*/validation.jsonl*", "scrolls/*/validation.jsonl*", "scrolls/*.jsonl*", "scrolls/*.zip",
    "lm_eval/*.jsonl*", "lm_eval/*.parquet", "*.jsonl*", "*.zip", "*.parquet",
)  # fmt: skip
#: Sets that are made of published files alone; of PG-19 the catalogue has its titles only, and no book.
_MADE = {name: known.files for name, known in CATALOGUE.items() if not name.startswith("pg19/")}
_PUBLISHED = {files[0].sha256: name for name, files in _MADE.items() if len(files) == 1}


@dataclass(frozen=True)
class Found:
    """A set that lies at `path`: `pieces` are the bytes of its one file of rows; books and texts have none.

    `published`: it has the checksum of the catalogue.
    """

    name: str
    path: Path
    pieces: Callable[[], Iterable[bytes]] | None = None
    published: bool = False


def recognise(path: Path, named: str | None = None) -> list[Found]:
    """The sets at a path; `named` if the user says which. Raises DataError if there is none."""
    if named and named not in CATALOGUE and not re.fullmatch(r"text/\w[\w.-]*|scrolls/\w+", named):
        raise DataError(f"There is no set '{named}'; known: {', '.join(CATALOGUE)}, text/NAME.")
    path = path.absolute()  # "." has no name
    if path.is_file():
        return [_file(path, named)]
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}.")
    several = _several(path, named)
    used = {path / Path(remote.url).name for one in several for remote in _MADE[one.name]}
    rows = [file for file in _row_files(path) if file not in used]
    found = [*_splits(path, named), *several, *(_file(file, named) for file in rows)]
    if not found and book_files(path):
        found = [Found(named or f"text/{_plain(path.name)}", path)]
    if not found:
        raise DataError(f"{path} holds neither books of PG-19, nor rows, nor *.txt files.")
    return found


def _splits(path: Path, named: str | None) -> list[Found]:
    """Splits of PG-19: below pg19/, beside each other, or the one that this folder is."""
    for base in (path / "pg19", path):
        if found := [Found(f"pg19/{split}", base / split) for split in SPLITS if _numbered(base / split)]:
            return found
    own = named or f"pg19/{path.name}"
    return [Found(own, path)] if own.startswith("pg19/") and own in CATALOGUE and _numbered(path) else []


def _several(path: Path, named: str | None) -> list[Found]:
    """Sets whose several published files lie in the folder under their own names."""
    found = []
    for name, remotes in _MADE.items():
        files = [path / Path(remote.url).name for remote in remotes]
        if len(files) > 1 and named in (None, name) and all(file.is_file() for file in files):
            published = [sha256(file) for file in files] == [remote.sha256 for remote in remotes]
            found.append(Found(name, path, partial(converted, name, files), published))
    return found


def _numbered(folder: Path) -> bool:
    return any(stem(file).isdigit() for file in book_files(folder))


def _row_files(path: Path) -> list[Path]:
    files = sorted(path.glob(f"{MEMBER}*")) or [f for place in PLACES for f in sorted(path.glob(place))]
    files = [file for file in files if file.is_file() and file.name.endswith((*ROWS, ".zip", ".parquet"))]
    return [file for file in dict.fromkeys(files) if file.name != "index.jsonl"]


def _file(path: Path, named: str | None) -> Found:
    if path.name.endswith(TEXTS):
        return Found(named or f"text/{_plain(stem(path))}", path)
    if published := _PUBLISHED.get(sha256(path)):
        return Found(published, path, lambda: converted(published, [path]), True)
    if path.suffix == ".zip":
        inner = [_task_in(name) for name in member_names(path) if f"/{name}".endswith(f"/{MEMBER}")]
        opened: Callable[[], Iterable[bytes]] = lambda: member_pieces(path, MEMBER)  # noqa: E731
        name = named or _name(path, opened)
        if inner and inner[0] and name.startswith("scrolls/") and f"scrolls/{inner[0]}" != name:
            raise DataError(f"{path.name} holds {inner[0]}, not {name.removeprefix('scrolls/')}.")
        return Found(name, path, opened)
    if path.suffix == ".parquet":
        opened = lambda: table_lines(path)  # noqa: E731
    elif path.name.endswith(ROWS):
        opened = lambda: pieces(path)  # noqa: E731
    else:
        raise DataError(f"{path.name} is none of {', '.join((*ROWS, '.zip', '.parquet', *TEXTS))}.")
    return Found(named or _name(path, opened), path, opened)


def _name(path: Path, opened: Callable[[], Iterable[bytes]]) -> str:
    """The set that a file's own name, its folder's or its rows tell. Raises DataError if none does."""
    folder = path.parent
    if path.name.startswith(MEMBER) and folder.parent.name == "scrolls":
        return f"scrolls/{folder.name}"
    for said in (path.name, folder.name):
        if task := _task_in(said):
            return f"scrolls/{task}" if task in TASKS else f"lm_eval/{task}"
    where, row = next(objects(opened(), path.name))
    if set(FIELDS) <= row.keys() and (task := guess(row)):
        return f"scrolls/{task}"
    fits = [task for task in fitting(row) if task != "lambada_openai"]  # its one field says nothing
    if len(fits) == 1:
        return f"lm_eval/{fits[0]}"
    if fits or set(FIELDS) <= row.keys():
        raise DataError(f"Neither name nor rows of {path.name} tell the task; say it with --as KIND/TASK.")
    raise DataError(
        f"{where} has neither SCROLLS's fields ({', '.join(FIELDS)}) nor those of an lm-eval task."
    )


def _task_in(said: str) -> str | None:
    """The task that a name holds as a word, e.g. qmsum in qmsum_validation.jsonl."""
    tasks = sorted((*TASKS, *LM_EVAL_FIELDS), key=len, reverse=True)
    return next(
        (task for task in tasks if re.search(rf"(?<![a-z0-9]){task}(?![a-z0-9])", said.lower())), None
    )


def _plain(name: str) -> str:
    """A name for a folder: letters, digits, dots, dashes."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "text"
