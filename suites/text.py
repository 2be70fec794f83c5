"""Where real text comes from, and the hash that says which text it was.

    1  --text FILE | FOLDER | NAME     the user's own (*.txt, *.txt.gz; a PG-19 folder is recognised), or the
                                       name under which `kvmark data import` took a text
    2  $KVMARK_DATA/pg19/<split>/      a folder of the user's, with pg19/index.jsonl
    3  <cache>/pg19/<split>/           books fetched or imported (`suites.data`)
    4  pydoc_data.topics               the English prose that every CPython carries

The repository holds no text of others. Whatever was read is named in every result row by
`Text.label`, e.g. `pg19:test@1f0c…` or `bundled:pydoc_data.topics@9ab2…`; two numbers are
comparable only where the labels are equal. Text is strict UTF-8 and CRLF becomes LF (what
`datasets.load_dataset("pg19")` yields); hashes are taken over the files' bytes before that, so that
they equal PG-19's official checksums. Books are read when used, and checked against their hash then: of test
and validation books PG-19's own, of others the index's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .data import DATA_VARIABLE, cache_folder
from .data.catalogue import BUCKET, Remote
from .data.download import Patience, download
from .data.fetch import refuse_offline
from .data.pg19_books import official
from .data.store import Record, claim, hashes, install, place
from .documents import Document, TextError, book_files, document_of, stem

SPLITS = ("train", "validation", "test")
#: Bundled topics are joined up to this size: a haystack needs room, a single topic often has none.
BUNDLED_BYTES = 32 * 1024
#: Where PG-19 publishes its test books as plain files, and three of them: (id, title, sha256 of the file).
PG19_TEST_URL = f"{BUCKET}/test/{{id}}.txt"
OFFERED_BOOKS = (
    (
        "2544",
        "From Sand Hill to Pine by Bret Harte",
        "0c79ceaf5bcc208b8c924037613c2c7fb1606de21ec8d99d5c446a516c4af787",
    ),
    (
        "3129",
        "The Story of Pocahantas by Charles Dudley Warner",
        "7e561c6b6d4fa20f508b9484f56a9703a88d469e7c2d7a47d91e74431e4c6ff0",
    ),
    (
        "3340",
        "The Wandering Jew Book 2 by Eugene Sue",
        "0d3bea08577a6bde3265827ddf5e688d8aa8ce1ab4ff4243075358c19709d788",
    ),
)


@dataclass(frozen=True)
class Text:
    """Documents in a fixed order, and where they came from.

    `source` is for people ("pg19:test (68 books)"), `label` for rows; neither holds a path.
    """

    kind: str  # "pg19" | "file" | "folder" | "bundled"
    source: str
    documents: list[Document]

    @property
    def sha256(self) -> str:
        """Hash over the id and the hash of every document, in order."""
        lines = "".join(f"{document.id} {document.sha256}\n" for document in self.documents)
        return hashlib.sha256(lines.encode("utf-8")).hexdigest()

    @property
    def label(self) -> str:
        """`source` without its remark, and twelve digits of the hash: equal labels mean equal text."""
        return f"{self.source.split(' (')[0]}@{self.sha256[:12]}"


def resolve(text_option: str | None, split: str = "test", data_dir: Path | None = None) -> Text:
    """The text to use, by the order of the module docstring.

    `data_dir` is the cache folder, if it is to be looked at. Raises TextError when a named file or folder is
    missing, empty, damaged or not UTF-8; a place that somebody named never gives way to the bundled prose.
    """
    if split not in SPLITS:
        raise TextError(f"Unknown split '{split}'; valid: {', '.join(SPLITS)}.")
    if text_option:
        return _explicit(Path(text_option), split)
    named = os.environ.get(DATA_VARIABLE)
    for folder in (Path(named) if named else None, data_dir):
        if folder is not None and book_files(folder / "pg19" / split):
            return _pg19(folder / "pg19", split)
    if named:
        raise TextError(f"{DATA_VARIABLE} names {named}, which has no pg19/{split}/*.txt.gz.")
    return bundled()


def load_books(folder: str | Path, split: str = "train") -> tuple[list[tuple[str, bytes]], dict[str, str]]:
    """((id, UTF-8 bytes with LF) of every book, {id: sha256 of the file}) of a folder, for training.

    `folder` may be laid out like KVMARK_DATA, be its pg19 folder, or simply hold *.txt[.gz] files.
    Raises TextError as `resolve` does.
    """
    documents = resolve(str(folder), split).documents
    books = [(document.id, document.text.encode("utf-8")) for document in documents]
    return books, {document.id: document.sha256 for document in documents}


def bundled() -> Text:
    """Python's documentation topics, sorted by key and joined to documents of about 32 KiB."""
    if importlib.util.find_spec("pydoc_data.topics") is None:
        raise TextError("This Python lacks pydoc_data.topics; name a text with --text FILE.")
    from pydoc_data.topics import topics

    documents: list[Document] = []
    keys: list[str] = []
    parts: list[str] = []
    remaining = sum(len(text.encode()) for text in topics.values())
    for key in sorted(topics):
        keys.append(key)
        parts.append(topics[key].replace("\r\n", "\n"))
        remaining -= len(topics[key].encode())
        full = sum(len(part.encode()) for part in parts) >= BUNDLED_BYTES
        # A last remnant too small for a document of its own stays with the one before it.
        if remaining == 0 or (full and remaining >= BUNDLED_BYTES):
            documents.append(Document(keys[0], f"{keys[0]} to {keys[-1]}", "\n".join(parts)))
            keys, parts = [], []
    version = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    return Text("bundled", f"bundled:pydoc_data.topics ({version})", documents)


def offer_books(
    data_dir: Path,
    timeout_s: float = 10.0,
    announce: Callable[[str], None] = print,
    url: str = PG19_TEST_URL,
) -> bool:
    """Fetch three PG-19 test books (0.8 MB) into the data folder; True when they are there.

    Announced in one line before and one after. Each file must have PG-19's official checksum; a failure (no
    network, no room, a changed file) leaves no book behind. Never raises for those: it returns False.
    """
    name = "pg19/test"
    if book_files(place(data_dir, name)):
        return True
    announce(f"Fetching three PG-19 test books (0.8 MB) from {url.split('{')[0]}")
    patience = Patience(tries=2, connect_s=timeout_s, read_s=timeout_s, deadline=time.monotonic() + timeout_s)
    try:
        refuse_offline()
        with claim(data_dir, [name]) as work:
            for id, _, sha256 in OFFERED_BOOKS:
                remote = Remote(url.format(id=id), sha256)
                download(remote, place(work, name) / f"{id}.txt", patience=patience)
            titles = {id: title for id, title, _ in OFFERED_BOOKS}
            source = url.split("{")[0]
            install(data_dir, work, Record(name, source, True, hashes(work, name), titles=titles))
    except TextError as error:
        announce(f"No books fetched ({str(error).rstrip('.')}); going on with other text.")
        return False
    announce(f"Fetched {len(OFFERED_BOOKS)} books.")
    return True


def _explicit(path: Path, split: str) -> Text:
    if not path.exists() and len(path.parts) == 1 and (cache_folder() / "text" / path).is_dir():
        path = cache_folder() / "text" / path
    if path.is_file():
        return Text("file", f"file:{path.name}", [document_of(path)])
    if not path.is_dir():
        raise TextError(f"There is no file or folder {path}.")
    for root in (path / "pg19", path):
        # Without an index, `test/` alone might be any folder; below a folder named pg19 it is meant.
        meant = root.name == "pg19" or (root / "index.jsonl").is_file()
        if meant and any((root / name).is_dir() for name in SPLITS):
            return _pg19(root, split)
    files = book_files(path)
    if not files:
        raise TextError(f"{path} holds no *.txt or *.txt.gz file.")
    return Text("folder", f"folder:{path.resolve().name}", [document_of(file) for file in files])


def _pg19(root: Path, split: str) -> Text:
    """Books of one split. Those in index.jsonl are read lazily, since their hash is known."""
    files = book_files(root / split)
    if not files:
        raise TextError(f"{root} has no {split}/*.txt or *.txt.gz book.")
    index: dict[str, dict] = {}
    if split == "test":
        index = {id: {"title": title, "sha256": sha256} for id, title, sha256 in OFFERED_BOOKS}
    index |= _read_index(root / "index.jsonl")
    index |= {id: {**index.get(id, {}), "sha256": sha256} for id, sha256 in official(split).items()}
    documents = []
    for file in files:
        entry = index.get(stem(file), {})
        documents.append(document_of(file, entry.get("title"), entry.get("sha256")))
    source = f"pg19:{split} ({len(files)} books)"
    if unknown := sum(document.id not in index for document in documents):
        # The layout claims PG-19; without a checksum nobody knows, and the label says so.
        source = f"pg19:{split}-unverified ({len(files)} books, {unknown} without a known checksum)"
    return Text("pg19", source, documents)


def _read_index(file: Path) -> dict[str, dict]:
    if not file.is_file():
        return {}
    index = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            index[str(entry["id"])] = entry
        except (ValueError, KeyError, TypeError):
            raise TextError(f"line {number} of {file} is not a JSON object with an id.") from None
    return index
