"""Books as tokens to be scored: each token once, and its bytes and words counted where it is scored.

    read(tokenizer, document, start, num_bytes)   -> Reading: what is given, what is scored, and its text
    pieces(tokenizer, reading, size)              -> Pieces of `size` scored tokens; 0: the whole reading

The scored tokens of the pieces are those of the reading, cut, never overlapping. Every piece is scored from
an empty cache: after BOS, or, in a model that has none, after the one token that stands before it (the first
piece: after the book's first token, which nobody can score).

A cut between tokens may fall into a character or a word. The character then belongs to the piece in which it
ends and the word to the one in which it begins, so that sums over the pieces are the reading's own.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .data.pg19_books import official
from .documents import Document, TextError
from .text import Text
from .tokenizer import Tokenizer, start_of

#: Words of a split as PG-19's authors publish them (arXiv 1911.05507).
OFFICIAL_WORDS = {"validation": 3_007_061, "test": 6_966_499}


@dataclass(frozen=True)
class Reading:
    """Part of a book: `given` tokens, then `scored` ones, which are the `text`."""

    start: tuple[int, ...]  # BOS, or nothing
    given: list[int]
    scored: list[int]
    text: str


@dataclass(frozen=True)
class Piece:
    """What one fresh cache is asked: `forced` after `prompt`."""

    prompt: tuple[int, ...]
    forced: tuple[int, ...]
    num_bytes: int
    num_words: int


def excerpt(document: Document, start: int, num_bytes: int) -> str:
    """So many bytes of a document from byte `start` (0: all), without characters cut at either end.

    Raises TextError when the document ends before `start`.
    """
    stop = start + num_bytes if num_bytes else None
    text = document.text.encode("utf-8")[start:stop].decode("utf-8", errors="ignore")
    if not text:
        raise TextError(f"Document {document.id} has no byte {start} to start at.")
    return text


def read(tokenizer: Tokenizer, document: Document, start: int, num_bytes: int) -> Reading:
    """The excerpt in tokens. Raises TextError when tokens lose text, or nothing is left to score."""
    text = excerpt(document, start, num_bytes)
    ids, first = tokenizer.encode(text), start_of(tokenizer)
    whole = tokenizer.decode(ids)
    # Some tokenizers compose accents (NFC); whatever else is lost would be scored as if it were there.
    if unicodedata.normalize("NFC", whole) != unicodedata.normalize("NFC", text):
        raise TextError(
            f"Tokenizer {tokenizer.name} does not give document {document.id} back as it was: "
            "bits per byte would be those of another text."
        )
    given = 0
    if not first:  # the first token, or as many as the first character has
        given = next(n for n in range(1, len(ids) + 1) if whole.startswith(tokenizer.decode(ids[:n])))
    if given == len(ids):
        raise TextError(f"Document {document.id} is too short: nothing is left to score.")
    scored = whole[len(tokenizer.decode(ids[:given])) :] if given else whole
    return Reading(first, ids[:given], ids[given:], scored)


def pieces(tokenizer: Tokenizer, reading: Reading, size: int = 0) -> Iterator[Piece]:
    """The reading in pieces of `size` tokens, the last one with what is left; 0: in one piece."""
    ids = reading.scored
    cuts = [*range(0, len(ids), size or len(ids)), len(ids)]
    places = _places(tokenizer, reading, cuts)
    for (start, stop), (begin, end) in zip(pairwise(cuts), pairwise(places), strict=True):
        before = reading.given if start == 0 else ids[start - 1 : start]
        text = reading.text[begin:end]
        goes_on = begin > 0 and text[:1].strip() != "" != reading.text[begin - 1].strip()
        yield Piece(
            prompt=reading.start or tuple(before),
            forced=tuple(ids[start:stop]),
            num_bytes=len(text.encode("utf-8")),
            num_words=len(text.split()) - goes_on,
        )


def _places(tokenizer: Tokenizer, reading: Reading, cuts: list[int]) -> list[int]:
    """Where in the text each cut between tokens lies, a character that it divides behind it."""
    text, places = reading.text, [0]
    # Decoding goes on behind the last token that is text by itself, so that a book is decoded about once;
    # with that token in front, since decoders treat the begin of a text in their own way.
    front, base, at = reading.given, 0, 0
    for cut in cuts[1:-1]:
        part = tokenizer.decode([*front, *reading.scored[base:cut]])[len(tokenizer.decode(front)) :]
        place = max(at + _common(part, text, at), places[-1])
        places.append(place)
        last = reading.scored[cut - 1 : cut]
        if "\ufffd" not in tokenizer.decode(last):
            front, base, at = last, cut, place
    return [*places, len(text)]


def _common(part: str, text: str, at: int) -> int:
    """How many characters of `part` stand in `text` from `at` on."""
    if text.startswith(part, at):
        return len(part)
    return len(os.path.commonprefix([part, text[at : at + len(part)]]))


def official_words(text: Text) -> int | None:
    """The published word count of the split that `text` is, if all of its books are there, byte for byte."""
    found = {document.id: document.sha256 for document in text.documents}
    return next((words for split, words in OFFICIAL_WORDS.items() if found == official(split)), None)
