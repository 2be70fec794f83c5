"""What a suite may ask of a tokenizer, and the embedded one: bytes as tokens.

    id 0..255   one UTF-8 byte
    256 bos     first token of every sequence, in training as in evaluation
    257 eos     never trained; kept so that a stop token exists
    258 pad     filler of ragged batches; masked, never attended
    259         reserved, which makes the vocabulary a multiple of four

A suite asks for nothing but the `Tokenizer` protocol, so that a checkpoint brings its own
(`suites.tokenizers`). With bytes every number is per byte of real text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back, for one vocabulary.

    `bos` stands first in every prompt; it is None where the model was trained without (Qwen).
    Any token of `eos` ends a generation. `pad` is any id of the vocabulary: padding is masked.
    `plain_ids` are the ids that stand for text, `fingerprint` is the hash of the vocabulary's file.
    """

    name: str
    fingerprint: str
    bos: int | None
    eos: tuple[int, ...]
    pad: int
    vocab_size: int
    plain_ids: Sequence[int]

    def encode(self, text: str) -> list[int]:
        """Ids of the text, all of it and nothing but it: no special token is added or recognised."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without specials: `decode(encode(text))` is the text."""
        ...


class ByteTokenizer:
    """One token per UTF-8 byte; adds no special by itself."""

    name = fingerprint = "bytes"
    bos = 256
    eos = (257,)
    pad = 258
    vocab_size = 260
    plain_ids = range(256)

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


def start_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What every prompt begins with: BOS, or nothing."""
    return () if tokenizer.bos is None else (tokenizer.bos,)
