"""llama2.c's tokenizer file: scored pieces, merged greedily (karpathy/llama2.c, tokenizer.py and run.c).

    int32 longest piece, then per id: float32 score, int32 length, bytes     all little-endian
    0 <unk>, 1 BOS, 2 EOS, 3..258 the single bytes <0x00>..<0xFF>, then pieces of text

Encoding puts a space before the text, looks up every character (unknown: its bytes), and then merges,
again and again, the adjacent pair whose joined piece has the best score, the leftmost among equals.
Where no piece has a space but at its front, words cannot influence each other, so each different word
is merged once. Decoding strips the leading space again.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from . import TokenizerError, read

BOS, EOS, FIRST_BYTE, FIRST_PIECE = 1, 2, 3, 259


class Llama2cTokenizer:
    """The `Tokenizer` protocol over a tok*.bin file."""

    bos, eos, pad = BOS, (EOS,), EOS

    def __init__(self, file: Path) -> None:
        """Raises TokenizerError for a file that is not of this format."""
        raw, entries = _entries(file)
        bytes_there = [piece for piece, _ in entries[FIRST_BYTE:FIRST_PIECE]]
        if bytes_there != [b"<0x%02X>" % byte for byte in range(256)]:
            raise TokenizerError(f"{file} is not a llama2.c tokenizer: ids 3 to 258 are not the bytes.")
        self.name, self.fingerprint = file.name, hashlib.sha256(raw).hexdigest()
        self.vocab_size = len(entries)
        self.plain_ids = range(FIRST_BYTE, self.vocab_size)
        self._bytes = [b""] * FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        self._bytes += [piece for piece, _ in entries[FIRST_PIECE:]]
        self._scores = [score for _, score in entries]
        self._ids = {piece: id for id, piece in enumerate(self._bytes) if id >= FIRST_PIECE}
        apart = not any(b" " in piece[1:] for piece in self._ids)
        self._words = re.compile(r" [^ ]*|[^ ]+" if apart else r"(?s).+")
        self._merged: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of the text, the space before it included; nothing for no text."""
        ids: list[int] = []
        for word in self._words.findall(f" {text}" if text else ""):
            if word not in self._merged:
                self._merged[word] = self._merge(word)
            ids += self._merged[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without specials and without the space in front."""
        text = b"".join(self._bytes[id] for id in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ")

    def _merge(self, word: str) -> list[int]:
        """A heap of candidate pairs over a linked list: the best pair is always the next to be joined."""
        ids: list[int] = []
        for character in word:
            piece = character.encode("utf-8")
            ids += [self._ids[piece]] if piece in self._ids else [FIRST_BYTE + byte for byte in piece]
        following, before = list(range(1, len(ids) + 1)), list(range(-1, len(ids) - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            right = following[left] if left >= 0 else len(ids)
            # Bytes of unknown characters are never merged, whatever they would spell.
            if right < len(ids) and min(ids[left], ids[right]) >= FIRST_PIECE:
                joined = self._ids.get(self._bytes[ids[left]] + self._bytes[ids[right]])
                if joined is not None:
                    heapq.heappush(heap, (-self._scores[joined], left, ids[left], ids[right], joined))

        for left in range(len(ids)):
            offer(left)
        while heap:
            _, left, first, second, joined = heapq.heappop(heap)
            right = following[left]
            if ids[left] != first or right == len(ids) or ids[right] != second:
                continue  # one of the two was merged with its other neighbour meanwhile
            ids[left], ids[right] = joined, -1
            following[left] = following[right]
            if following[left] < len(ids):
                before[following[left]] = left
            offer(before[left])
            offer(left)
        return [id for id in ids if id >= 0]


def num_entries(file: Path) -> int | None:
    """How many ids a tokenizer file has; None where it is no such file."""
    try:
        return len(_entries(file)[1])
    except TokenizerError:
        return None


def _entries(file: Path) -> tuple[bytes, list[tuple[bytes, float]]]:
    """The file and its (piece, score) by id. Raises TokenizerError."""
    raw = read(file)
    entries, offset = [], 4
    try:
        while offset < len(raw):
            score, length = struct.unpack_from("<fi", raw, offset)
            piece = raw[offset + 8 : offset + 8 + length]
            if length < 0 or len(piece) != length:
                raise struct.error
            entries.append((piece, score))
            offset += 8 + length
    except struct.error:
        raise TokenizerError(f"{file} is not a llama2.c tokenizer: it ends within an entry.") from None
    return raw, entries
