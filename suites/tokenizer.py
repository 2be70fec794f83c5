"""Bytes as tokens: the embedded default, so that every number here is per byte of real text.

    id 0..255   one UTF-8 byte
    256 bos     first token of every sequence, in training as in evaluation
    257 eos     never trained; kept so that a stop token exists
    258 pad     filler of ragged batches; masked, never attended
    259         reserved, which makes the vocabulary a multiple of four

A suite asks for nothing but the `Tokenizer` protocol, so that a checkpoint may bring its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Tokenizer(Protocol):
    """What a suite may ask of a tokenizer."""

    name: str
    bos: int
    eos: int
    pad: int
    vocab_size: int

    def encode(self, text: str | bytes) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class ByteTokenizer:
    """One token per UTF-8 byte; adds no special by itself."""

    name = "bytes"
    bos = 256
    eos = 257
    pad = 258
    vocab_size = 260

    def encode(self, text: str | bytes) -> list[int]:
        """Ids 0..255 of the text's UTF-8 bytes; bytes are taken as they are."""
        return list(text.encode("utf-8") if isinstance(text, str) else text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids: specials are dropped, a cut character becomes U+FFFD.

        Raises ValueError when an id is outside the vocabulary.
        """
        ids = list(ids)
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary 0..{self.vocab_size - 1}")
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")
