"""Training batches: prose, hidden sentences and dense recall, a pure function of the seed and the step.

One step has one length T (of `lengths`, with its probability) and `tokens_per_step // T` sequences. Each
sequence is BOS and T bytes, of one of three sources by `shares`:

    prose    consecutive bytes of one book at a random offset
    needle   prose with up to 32 hidden sentences, and questions at its end (`needles.py`, `sentences.py`)
    recall   a repeated string, a list of keys and values shuffled, letters (`recall.py`)

loss = sum(loss_weight * cross entropy), where every byte has one of the four kinds of `parts.py`.

Sequences start with BOS, because prompts do at evaluation. Seeds cannot collide with evaluation: cases draw
from SHA-256 of their id, this from (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tokenizer import ByteTokenizer
from ..words import NEEDLE, QUESTION, training_words
from .needles import hidden_sentences
from .parts import ANSWER, DENSE, ORDINARY, Part
from .recall import dense_recall
from .sentences import FIXED_SHARE, kept_from_training

#: The fixed template with a word of 7 letters and a number of 5 digits, stated and asked for.
MIN_LENGTH = 128
ANSWER_WEIGHT = DENSE_WEIGHT = 0.5


@dataclass(frozen=True)
class TrainingBatch:
    """`tokens_BT1[:, :-1]` are the inputs, `tokens_BT1[:, 1:]` the targets of the other arrays."""

    tokens_BT1: np.ndarray  # int64
    loss_weight_BT: np.ndarray  # float32; loss = (loss_weight_BT * cross_entropy_BT).sum()
    answer_mask_BT: np.ndarray  # bool, digits of needle answers (for a running accuracy)
    dense_mask_BT: np.ndarray  # bool, answers of dense recall


class TrainingMix:
    """Draws batches from books (UTF-8 bytes with LF, see `suites.text.load_books`).

    Raises ValueError when a length is too short for a needle, no book is as long as the longest
    length, or the books have too few key words.
    """

    def __init__(
        self,
        books: Sequence[bytes],
        seed: int = 0,
        tokens_per_step: int = 2048,
        lengths: Sequence[int] = (256, 512, 1024, 2048),
        length_probabilities: Sequence[float] = (0.4, 0.3, 0.2, 0.1),
        shares: Sequence[float] = (0.72, 0.20, 0.08),
    ) -> None:
        if min(lengths) < MIN_LENGTH:
            raise ValueError(f"Training length {min(lengths)} is below {MIN_LENGTH}, too short for a needle.")
        if len(lengths) != len(length_probabilities):
            raise ValueError(
                f"{len(lengths)} lengths need as many probabilities, not {len(length_probabilities)}."
            )
        self.books = [book for book in books if len(book) >= max(lengths)]
        if not self.books:
            raise ValueError(f"No training text is as long as the longest length, {max(lengths)} bytes.")
        self.seed = seed
        self.tokens_per_step = tokens_per_step
        self.lengths = tuple(lengths)
        self.length_probabilities = tuple(length_probabilities)
        self.shares = tuple(shares)
        self.words = training_words(books)
        kept = kept_from_training()
        self.template_words = [word for word in self.words if word not in kept]
        book_bytes = np.array([len(book) for book in self.books], dtype=np.float64)
        self._book_probabilities = book_bytes / book_bytes.sum()

    def batch(self, step: int) -> TrainingBatch:
        """The batch of one step: the same for the same seed and step, whatever was drawn before."""
        rng = np.random.default_rng((self.seed, step))
        length = self.lengths[rng.choice(len(self.lengths), p=self.length_probabilities)]
        sources = (self._prose, self._needles, self._recall)
        rows = max(1, self.tokens_per_step // length)
        sequences = [sources[rng.choice(3, p=self.shares)](rng, length) for _ in range(rows)]

        tokens_BT1 = np.full((rows, length + 1), ByteTokenizer.bos, dtype=np.int64)
        kind_BT = np.empty((rows, length), dtype=np.int8)
        for row, parts in enumerate(sequences):
            tokens_BT1[row, 1:] = np.frombuffer(b"".join(part for part, _ in parts), np.uint8, count=length)
            kinds = np.repeat([kind for _, kind in parts], [len(part) for part, _ in parts])
            kind_BT[row] = kinds[:length]
        answer_mask_BT, dense_mask_BT = kind_BT == ANSWER, kind_BT == DENSE
        loss_weight_BT = (kind_BT == ORDINARY).astype(np.float32) / kind_BT.size
        loss_weight_BT[answer_mask_BT] = ANSWER_WEIGHT / max(1, answer_mask_BT.sum())
        loss_weight_BT[dense_mask_BT] = DENSE_WEIGHT / max(1, dense_mask_BT.sum())
        return TrainingBatch(tokens_BT1, loss_weight_BT, answer_mask_BT, dense_mask_BT)

    def card(self) -> dict[str, object]:
        """What a weights card has to say about the data, books apart."""
        return {
            "seed": self.seed,
            "tokens_per_step": self.tokens_per_step,
            "lengths": list(self.lengths),
            "length_probabilities": list(self.length_probabilities),
            "shares": dict(zip(("prose", "needle", "recall"), self.shares, strict=True)),
            "books": len(self.books),
            "book_bytes": sum(map(len, self.books)),
            "key_words": len(self.words),
            "fixed_template": NEEDLE + "…" + QUESTION,
            "fixed_template_share": FIXED_SHARE,
        }

    def _prose(self, rng: np.random.Generator, length: int) -> list[Part]:
        return [(self._book_bytes(rng, length), ORDINARY)]

    def _book_bytes(self, rng: np.random.Generator, length: int) -> bytes:
        """Consecutive bytes; every book as often as it is long."""
        book = self.books[rng.choice(len(self.books), p=self._book_probabilities)]
        start = int(rng.integers(len(book) - length + 1))
        return book[start : start + length]

    def _needles(self, rng: np.random.Generator, length: int) -> list[Part]:
        return hidden_sentences(rng, length, self.words, self.template_words, self._book_bytes)

    def _recall(self, rng: np.random.Generator, length: int) -> list[Part]:
        return dense_recall(rng, length, self.words)
