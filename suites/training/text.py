"""Plain text as training batches, in any checkpoint's tokens: LoCoCo's data (documents not masked).

    every document: BOS (where the tokenizer has one), then its tokens; all documents end to end, cut into
    sequences of equal length; an epoch draws every sequence once, in an order that the seed decides

Each sequence is read with one token more, the first of the next: the target of its last logits. What
does not fill a sequence at the end is dropped. Batches are a function of (seed, step), so that a
training can resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..tokenizer import Tokenizer, start_of


@dataclass(frozen=True)
class TextBatch:
    """`tokens_BT1[:, :-1]` are the inputs. `bytes_per_token` of the whole text makes nats bits per byte."""

    tokens_BT1: np.ndarray  # int64
    bytes_per_token: float


class TrainingText:
    """Draws batches of `sequences` sequences of `length` tokens from documents (UTF-8 text).

    Raises ValueError where all of the text is shorter than one sequence.
    """

    def __init__(
        self, documents: Iterable[str], tokenizer: Tokenizer, length: int, sequences: int, seed: int = 0
    ) -> None:
        self.length, self.sequences, self.seed, self.tokenizer = length, sequences, seed, tokenizer
        start, ids, num_bytes = start_of(tokenizer), [], 0
        for text in documents:
            ids.append(np.array([*start, *tokenizer.encode(text)], dtype=np.int64))
            num_bytes += len(text.encode("utf-8"))
        self.ids = np.concatenate(ids)
        self.bytes_per_token = num_bytes / len(self.ids)
        self.available = (len(self.ids) - 1) // length
        if self.available < 1:
            raise ValueError(f"The training text has {len(self.ids):,} tokens, a sequence {length:,}.")

    def batch(self, step: int) -> TextBatch:
        """The batch of one step: the same for the same seed and step, whatever was drawn before."""
        rows = []
        for number in range(step * self.sequences, (step + 1) * self.sequences):
            epoch, place = divmod(number, self.available)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.available)
            start = order[place] * self.length
            rows.append(self.ids[start : start + self.length + 1])
        return TextBatch(np.stack(rows), self.bytes_per_token)

    def card(self) -> dict[str, object]:
        """What a weights card has to say about the data, documents apart."""
        return {
            "seed": self.seed,
            "tokenizer": self.tokenizer.name,
            "tokenizer_sha256": self.tokenizer.fingerprint,
            "sequence_tokens": self.length,
            "sequences_per_step": self.sequences,
            "text_tokens": len(self.ids),
            "bytes_per_token": round(self.bytes_per_token, 6),
        }
