"""What can go wrong with data, each in one sentence: the data itself, or the network, a server, this disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from ..documents import TextError


class DataError(TextError):
    """Data cannot be had, or is not what it should be; the message is one sentence."""


class Unavailable(DataError):
    """The network, a server or this disk refuses: nothing is wrong with what was asked."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a disk that is full or not ours into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable(f"The disk that holds {path} is full.") from None
        raise Unavailable(f"{error.filename or path} cannot be written ({error.strerror}).") from None


def amount(count: float) -> str:
    """Bytes with three digits, e.g. "27.3 MB"."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while round(count) >= 1000 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def unreadable(name: str, error: BaseException) -> DataError:
    """A file that is damaged, or not what its name says."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return DataError(f"{name} cannot be read ({' '.join(reason.split()).rstrip('.')}).")
