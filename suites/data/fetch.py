"""Sets of the catalogue -> the cache folder: download, turn into the suites' layout, put in place whole.

What has a published checksum is taken as it is; what has none is held to its schema and task first. A fetch
that was interrupted goes on where it was, file by file and byte by byte. PG-19 is in `fetch_books`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from .answers import NoServer
from .catalogue import Dataset, Remote
from .convert import converted
from .download import PATIENCE, Hear, Patience, download, sha256, size_of
from .faults import DataError, Unavailable, amount
from .store import Record, check_rows, claim, hashes, install, place, write

#: (set, bytes done, bytes in all if known)
HearSet = Callable[[str, int, int | None], None]


def refuse_offline() -> None:
    """Raise Unavailable where HF_HUB_OFFLINE asks for no network at all."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise Unavailable("HF_HUB_OFFLINE is set; unset it to fetch, or use `kvmark data import`.")


@contextlib.contextmanager
def _advised(dataset: Dataset) -> Iterator[None]:
    """Say what to do on a machine without network."""
    try:
        yield
    except NoServer as error:
        raise Unavailable(
            f"{str(error).rstrip('.')}: get {dataset.importable} on another machine and use "
            "`kvmark data import`."
        ) from None


def sized(dataset: Dataset, patience: Patience = PATIENCE) -> Dataset:
    """The set with its bytes, asked of the server where the catalogue does not know them."""
    if dataset.bytes is not None:
        return dataset
    with _advised(dataset):
        sizes = [size_of(file, patience) if file.bytes is None else file.bytes for file in dataset.files]
    return replace(dataset, bytes=None if None in sizes else sum(sizes))


def refuse_without_room(root: Path, datasets: list[Dataset]) -> None:
    """Raise Unavailable if the downloads alone do not fit."""
    folder = next(path for path in (root, *root.absolute().parents) if path.exists())
    need, free = sum(dataset.bytes or 0 for dataset in datasets), shutil.disk_usage(folder).free
    if need > free:
        raise Unavailable(f"{amount(need)} are to be fetched; {root} has room for {amount(free)}.")


def fetch(
    root: Path,
    dataset: Dataset,
    hear: HearSet = lambda name, done, total: None,
    books: int | None = None,
    patience: Patience = PATIENCE,
) -> Record:
    """Get one set; of PG-19 the first `books` by id, or all. Raises DataError and leaves no half a set."""
    refuse_offline()
    partial = root / ".partial" / dataset.name

    def get(remote: Remote, before: int, **connection) -> Path:
        """One file, unless an earlier try has left it whole."""
        file = partial / Path(remote.url).name
        if not (remote.sha256 and file.is_file() and sha256(file) == remote.sha256):
            heard: Hear = lambda done, total: hear(dataset.name, before + done, dataset.bytes or total)  # noqa: E731
            download(remote, file, heard, patience, **connection)
        return file

    with claim(root, [dataset.name]) as work, _advised(dataset):
        files: list[Path] = []
        for remote in dataset.files:
            files.append(get(remote, sum(file.stat().st_size for file in files)))
        if dataset.name.startswith("pg19/"):
            from .fetch_books import fetch_books  # requests takes a while to load

            record = fetch_books(root, work, dataset.name, files, get, books)
        else:
            record = _rows(work, dataset, files)
        (record,) = install(root, work, record)
        shutil.rmtree(partial, ignore_errors=True)
        return record


def _rows(work: Path, dataset: Dataset, files: list[Path]) -> Record:
    """Make the set's one file ready."""
    name, ready = dataset.name, place(work, dataset.name)
    try:
        write(ready, converted(name, files))
        if not dataset.pinned:
            check_rows(name, ready, files[0].name)
    except DataError as error:
        if not isinstance(error, Unavailable):  # what came is to blame, and must not be found here again
            for file in files:
                file.unlink(missing_ok=True)
        raise
    source = " ".join(remote.url for remote in dataset.files)
    return Record(name, source, dataset.pinned, hashes(work, name))
