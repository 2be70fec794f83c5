"""Training batches: prose, needles and dense recall, a pure function of the seed and the step.

One step has one length T (256, 512, 1024 or 2048 with probabilities .4 .3 .2 .1) and
`tokens_per_step // T` sequences. Each sequence is BOS and T bytes, of which

    .65  prose    consecutive bytes of one book at a random offset
    .25  needle   prose with 1..8 needles at random places and 1..6 questions at its end
    .10  recall   1/4 a random string repeated, 3/4 a key-value list and then its items shuffled

Every byte has one of four kinds, which decide its share of  loss = sum(loss_weight * cross entropy):

    ORDINARY  1 / (all bytes of the batch)
    ANSWER    0.5 / (answer digits)      digits of a needle when asked for
    DENSE     0.5 / (dense answers)      what repeats in dense recall
    FREE      0                          could not be predicted: a needle's digits when first stated,
                                         the first copy of a random string, random keys

Deviations from the recipe that this follows (DECISIONS.md): sequences start with BOS, because
prompts do at evaluation; questions are fewer where the recipe's limits overflow the sequence
(T=512); the first three bytes of a repetition are FREE, since nothing tells yet that it began.
Seeds cannot collide with evaluation: cases draw from SHA-256 of their id, this from (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tokenizer import ByteTokenizer
from .words import NEEDLE, NUMBER_RANGE, QUESTION, training_words

ORDINARY, FREE, ANSWER, DENSE = range(4)
#: Longest sentence and longest question with its answer: a word of 7 letters, a number of 5.
NEEDLE_BYTES = len(NEEDLE.format(word="x" * 7, number="9" * 5))
QUESTION_BYTES = len(QUESTION.format(word="x" * 7)) + len("99999.")
MIN_LENGTH = 128
ANSWER_WEIGHT = DENSE_WEIGHT = 0.5
MAX_NEEDLES, BYTES_PER_NEEDLE = 8, 128
MAX_QUESTIONS, BYTES_PER_QUESTION = 6, 100
#: Bytes around key and value of one item of a key-value list.
ITEM_FORMATS = (
    ("", "=", "; "),
    ("", ": ", "\n"),
    ("", " ", ", "),
    ("(", ") ", " "),
    ("The secret number of ", " is ", ". "),
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Part = tuple[bytes, int]  # bytes of one kind


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
        shares: Sequence[float] = (0.65, 0.25, 0.10),
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
            "needle_template": NEEDLE + "…" + QUESTION,
        }

    def _prose(self, rng: np.random.Generator, length: int) -> list[Part]:
        """Consecutive bytes; every book as often as it is long."""
        book = self.books[rng.choice(len(self.books), p=self._book_probabilities)]
        start = int(rng.integers(len(book) - length + 1))
        return [(book[start : start + length], ORDINARY)]

    def _needles(self, rng: np.random.Generator, length: int) -> list[Part]:
        questions = int(rng.integers(1, max(1, min(MAX_QUESTIONS, length // BYTES_PER_QUESTION)) + 1))
        drawn = int(rng.integers(1, max(1, min(MAX_NEEDLES, length // BYTES_PER_NEEDLE)) + 1))
        while questions > 1 and max(drawn, questions) * NEEDLE_BYTES + questions * QUESTION_BYTES > length:
            questions -= 1
        needles = max(drawn, questions)
        words = self._draw_words(rng, needles)
        numbers = rng.integers(*NUMBER_RANGE, size=needles)
        statements = [_split(NEEDLE, *needle, FREE) for needle in zip(words, numbers, strict=True)]
        asked = rng.permutation(needles)[:questions]
        tails = [_split(QUESTION + "{number}.", words[index], numbers[index], ANSWER) for index in asked]
        room = length - _num_bytes(statements) - _num_bytes(tails)
        ((prose, _),) = self._prose(rng, room)
        parts: list[Part] = []
        before = 0
        for statement, place in zip(
            statements, np.sort(rng.integers(room + 1, size=len(statements))), strict=True
        ):
            parts += [(prose[before:place], ORDINARY), *statement]
            before = place
        parts.append((prose[before:], ORDINARY))
        return parts + [part for tail in tails for part in tail]

    def _recall(self, rng: np.random.Generator, length: int) -> list[Part]:
        return self._repetition(rng, length) if rng.random() < 0.25 else self._key_values(rng, length)

    def _repetition(self, rng: np.random.Generator, length: int) -> list[Part]:
        """A random string, its period uniform in T/8..T/2, repeated to the end."""
        period = int(rng.integers(length // 8, length // 2 + 1))
        if rng.random() < 0.5:
            unit = rng.integers(ord("a"), ord("z") + 1, size=period, dtype=np.uint8).tobytes()
        else:
            words = rng.choice(len(self.words), size=period // 4)  # each word takes five bytes or more
            unit = " ".join(self.words[index] for index in words).encode("ascii")[:period]
        first = min(len(unit) + 3, length)
        whole = (unit * (length // len(unit) + 1))[:length]
        return [(whole[:first], FREE), (whole[first:], DENSE)]

    def _key_values(self, rng: np.random.Generator, length: int) -> list[Part]:
        """A list filling 30-60 % of the sequence, then its items shuffled, again and again, to the end."""
        before, between, after = ITEM_FORMATS[rng.choice(len(ITEM_FORMATS))]
        target = length * rng.uniform(0.3, 0.6)
        most = int(target // (len(before + between + after) + 2 + 5)) + 1
        random_keys = rng.random() < 0.5
        keys = _draw_letters(rng, most) if random_keys else self._draw_words(rng, most)
        numbers = rng.integers(*NUMBER_RANGE, size=len(keys))
        items: list[tuple[Part, Part, Part, Part, Part]] = []
        num_bytes = 0
        for key, number in zip(keys, numbers, strict=True):
            items.append(
                (
                    (before.encode(), ORDINARY),
                    (key.encode(), FREE if random_keys else ORDINARY),
                    (between.encode(), ORDINARY),
                    (b"%d" % number, FREE),
                    (after.encode(), ORDINARY),
                )
            )
            num_bytes += sum(len(part) for part, _ in items[-1])
            if num_bytes >= target:
                break
        parts = [part for item in items for part in item]
        while num_bytes < length:
            for index in rng.permutation(len(items)):
                start, key, middle, (number, _), end = items[index]
                parts += [start, key, middle, (number, DENSE), end]
                num_bytes += sum(len(part) for part, _ in items[index])
        return parts

    def _draw_words(self, rng: np.random.Generator, count: int) -> list[str]:
        """Distinct training words."""
        count = min(count, len(self.words))
        return [self.words[index] for index in rng.choice(len(self.words), size=count, replace=False)]


def _draw_letters(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct keys of two or three letters; as many as asked for, at most 1352."""
    keys = []
    for number in rng.choice(2 * 26**2, size=min(count, 2 * 26**2), replace=False):
        first, second = divmod(int(number) % 26**2, 26)
        third = _LETTERS[int(rng.integers(26))] if number >= 26**2 else ""
        keys.append(_LETTERS[first] + _LETTERS[second] + third)
    return keys


def _split(template: str, word: str, number: int, kind: int) -> list[Part]:
    """The template filled in; its number has the given kind, all else is ORDINARY."""
    before, after = template.format(word=word, number="\0").encode("ascii").split(b"\0")
    return [(before, ORDINARY), (b"%d" % number, kind), (after, ORDINARY)]


def _num_bytes(sentences: list[list[Part]]) -> int:
    return sum(len(part) for sentence in sentences for part, _ in sentence)
