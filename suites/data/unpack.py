"""Packed files of others, read in pieces: gzip, xz and zip, with limits that hold while reading.

What a header says about sizes is never believed. A file may unpack to LARGEST bytes, and from FREE bytes on
to no more than RATIO times its size on disk (text packs to a third or a quarter of its size; rows of
NarrativeQA repeat a book some thirty times, which xz finds out). Archives are refused as a whole if one
member would leave the folder, is a link, is there twice or is encrypted, though no member is ever written
under its own name. What `convert` makes of tables and of others' rows is held to the same limits (`bounded`).
"""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from .faults import DataError, unreadable

LARGEST = 4 << 30
FREE = 16 << 20
RATIO = 500
PIECE = 1 << 20
MOST_MEMBERS = 10_000
#: What a damaged or unknown packing can raise while it is read.
BROKEN = (
    OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error, NotImplementedError,
    RuntimeError, ValueError, IndexError, OverflowError,
)  # fmt: skip
_OPEN: dict[str, Callable[[Path], IO[bytes]]] = {
    "": partial(open, mode="rb"),
    ".gz": partial(gzip.open, mode="rb"),
    ".xz": partial(lzma.open, mode="rb"),
}
SUFFIXES = tuple(_OPEN)


def pieces(path: Path, largest: int = LARGEST) -> Iterator[bytes]:
    """The bytes of a plain, .gz or .xz file, unpacked, in order. Raises DataError."""
    with ExitStack() as stack:
        try:
            size = path.stat().st_size
            stream = stack.enter_context(_OPEN.get(path.suffix, _OPEN[""])(path))
        except BROKEN as error:
            raise unreadable(path.name, error) from None
        yield from bounded(_read(stream, path.name), path.name, size, largest)


def member_pieces(path: Path, ending: str, largest: int = LARGEST) -> Iterator[bytes]:
    """The bytes of the one member of a zip whose path ends so. Raises DataError."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            name = _member(archive, path.name, ending)
            stream = stack.enter_context(archive.open(name))
        except BROKEN as error:
            raise error if isinstance(error, DataError) else unreadable(path.name, error) from None
        yield from bounded(_read(stream, path.name), path.name, path.stat().st_size, largest)


def member_names(path: Path) -> list[str]:
    """Paths inside a zip, if all of them are sound. Raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _sound(archive, path.name)
    except BROKEN as error:
        raise error if isinstance(error, DataError) else unreadable(path.name, error) from None


def bounded(parts: Iterable[bytes], name: str, packed: int, largest: int = LARGEST) -> Iterator[bytes]:
    """The same pieces. Raises DataError as soon as more came than a file of `packed` bytes may hold."""
    done = 0
    for piece in parts:
        done += len(piece)
        refuse_bomb(done, name, packed, largest)
        yield piece


def refuse_bomb(unpacked: int, name: str, packed: int, largest: int = LARGEST) -> None:
    """Raise DataError for more bytes than a file of `packed` bytes may hold."""
    if unpacked > largest:
        raise DataError(f"{name} unpacks to more than {largest:,} bytes; it was not taken.")
    if unpacked > max(FREE, RATIO * packed):
        raise DataError(f"{name} unpacks to more than {RATIO} times its size; it was not taken.")


def _read(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """All pieces of a stream. Raises DataError."""
    while True:
        try:
            piece = stream.read(PIECE)
        except BROKEN as error:
            raise unreadable(name, error) from None
        if not piece:
            return
        yield piece


def _member(archive: zipfile.ZipFile, archive_name: str, ending: str) -> str:
    names = [n for n in _sound(archive, archive_name) if f"/{n}".endswith(f"/{ending}")]
    names = [n for n in names if not n.startswith("__MACOSX/")]
    if len(names) != 1:
        many = "no" if not names else f"{len(names)} files named"
        raise DataError(f"{archive_name} holds {many} {ending}; exactly one is needed.")
    return names[0]


def _sound(archive: zipfile.ZipFile, archive_name: str) -> list[str]:
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{archive_name} holds {len(members):,} members, more than any set that is known.")
    seen = set()
    for member in members:
        # orig_filename is what the archive says; zipfile has already changed some of it in filename.
        name = member.orig_filename
        if wrong := _wrong(member, name) or ("is there twice" if name in seen else None):
            raise DataError(f"{archive_name} was not taken: its member {name[:80]!r} {wrong}.")
        seen.add(name)
    return [member.filename for member in members]


def _wrong(member: zipfile.ZipInfo, name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        return "leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    return "is encrypted" if member.flag_bits & 0x1 else None
