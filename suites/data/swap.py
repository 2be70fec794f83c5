"""A file or folder takes the place of another in one step, which can be undone."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from .faults import DataError, writing


def put(new: Path, target: Path, work: Path, undo: contextlib.ExitStack) -> None:
    """Move `new` to `target`; what was there is kept below `work`, and `undo` brings it back.

    Raises DataError, before anything moved, where a folder would take the place of a file or a file that of
    a folder: those are not two versions of one thing.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        existed = target.exists()
        if existed and target.is_dir() != new.is_dir():
            here, comes = ("folder", "file") if target.is_dir() else ("file", "folder")
            raise DataError(f"{target} is a {here} where a {comes} belongs; move it away first.")
        before = Path(tempfile.mkdtemp(dir=work)) / target.name
        undo.callback(_put_back, target, before, existed)  # first: it may be needed after any of the steps
        if existed:
            _keep(target, before)
        new.replace(target)


def _keep(target: Path, before: Path) -> None:
    """A file stays where it is until the new one replaces it, under a second name."""
    if target.is_file():
        with contextlib.suppress(OSError):  # a disk without links
            return os.link(target, before)
    target.rename(before)


def _put_back(target: Path, before: Path, existed: bool) -> None:
    """As it was, however far `put` came."""
    if before.exists():
        if target.is_dir():
            shutil.rmtree(target)
        before.replace(target)
    elif not existed and target.is_dir():
        shutil.rmtree(target)
    elif not existed:
        target.unlink(missing_ok=True)
