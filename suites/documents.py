"""Documents and the files that they are read from: strict UTF-8, CRLF -> LF, checked against a hash.

The hash is taken over the file's bytes (unzipped, before CRLF -> LF), so that it equals the checksum
that PG-19 publishes. A file whose hash is known beforehand is read when it is first used and
checked then; any other is read, and refused if it is not UTF-8, at once.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path


class TextError(ValueError):
    """The text that was asked for cannot be used; the message is one sentence."""


class Document:
    """One text with a stable id. `text` may be given or read from its file when first asked for."""

    def __init__(self, id: str, title: str, text: str | Callable[[], str], sha256: str | None = None) -> None:
        self.id = id
        self.title = title
        self._text = text
        self.sha256 = sha256 or hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def text(self) -> str:
        """The document with LF line ends. Raises TextError if its file changed or is not UTF-8."""
        if not isinstance(self._text, str):
            self._text = self._text()
        return self._text

    def __repr__(self) -> str:
        return f"Document({self.id!r}, {self.title!r}, sha256={self.sha256[:12]})"


def decode_text(raw: bytes, name: str) -> str:
    """Strict UTF-8, CRLF -> LF. Raises TextError naming the first bad byte."""
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise TextError(f"{name} is not UTF-8: byte 0x{byte:02x} at offset {error.start}.") from None


def book_files(folder: Path) -> list[Path]:
    """*.txt and *.txt.gz: numbers (Gutenberg ids) in numeric order, then names."""
    if not folder.is_dir():
        return []
    files = [file for pattern in ("*.txt", "*.txt.gz") for file in folder.glob(pattern) if file.is_file()]
    return sorted(_without_twins(files), key=lambda file: (not stem(file).isdigit(), _sort_key(stem(file))))


def _without_twins(files: Iterable[Path]) -> list[Path]:
    """X.txt hides X.txt.gz, so that no book counts twice."""
    gz_first = sorted(files, key=lambda file: file.suffix != ".gz")
    return list({stem(file): file for file in gz_first}.values())


def _sort_key(stem: str) -> tuple[int, str]:
    return (int(stem) if stem.isdigit() else 0, stem)


def stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".txt")


def document_of(file: Path, title: str | None = None, sha256: str | None = None) -> Document:
    """A document of a file; without a known hash the file is read (and checked) now."""
    if sha256 is None:
        raw = _read_bytes(file)
        decode_text(raw, file.name)
        sha256 = hashlib.sha256(raw).hexdigest()

    return Document(stem(file), title or stem(file), lambda: _read_checked(file, sha256), sha256)


def _read_checked(file: Path, sha256: str) -> str:
    raw = _read_bytes(file)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise TextError(f"{file.name} differs from its checksum {sha256[:12]}.")
    return decode_text(raw, file.name)


def _read_bytes(file: Path) -> bytes:
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{file.name} cannot be read: {error}.") from None
    if not raw:
        raise TextError(f"{file.name} is empty.")
    return raw
