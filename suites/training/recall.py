"""Dense recall: many answers in one sequence.

    1/4  repetition    a random string, its period uniform in T/8..T/2, again and again
    1/2  key-value     a list filling 30-60 % of the sequence, then its items shuffled to the end
    1/4  letters       key letters and a value letter, then filler letters, among them keys and their value
                       (the suite `recall` with tokens=letters, but asked for all along)

The first three bytes of a repetition are FREE, since nothing tells yet that it began.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..words import NUMBER_RANGE
from .parts import DENSE, FREE, LETTERS, ORDINARY, Part, num_bytes, one_of, some_of

#: Bytes around key and value of one item of a key-value list.
ITEM_FORMATS = (
    ("", "=", "; "),
    ("", ": ", "\n"),
    ("", " ", ", "),
    ("(", ") ", " "),
    ("The secret number of ", " is ", ". "),
)
MAX_KEY_LETTERS, MAX_PAIRS = 4, 64
#: Mean number of letters between two keys that are asked for.
MEAN_GAP = 8


def dense_recall(rng: np.random.Generator, length: int, words: Sequence[str]) -> list[Part]:
    kind = rng.random()
    if kind < 0.25:
        return repetition(rng, length, words)
    return key_values(rng, length, words) if kind < 0.75 else letters(rng, length)


def repetition(rng: np.random.Generator, length: int, words: Sequence[str]) -> list[Part]:
    period = int(rng.integers(length // 8, length // 2 + 1))
    if rng.random() < 0.5:
        unit = rng.integers(ord("a"), ord("z") + 1, size=period, dtype=np.uint8).tobytes()
    else:
        drawn = [one_of(rng, words) for _ in range(period // 4)]  # each word takes five bytes or more
        unit = " ".join(drawn).encode("ascii")[:period]
    first = min(len(unit) + 3, length)
    whole = (unit * (length // len(unit) + 1))[:length]
    return [(whole[:first], FREE), (whole[first:], DENSE)]


def key_values(rng: np.random.Generator, length: int, words: Sequence[str]) -> list[Part]:
    before, between, after = ITEM_FORMATS[rng.choice(len(ITEM_FORMATS))]
    target = length * rng.uniform(0.3, 0.6)
    most = int(target // (len(before + between + after) + 2 + 5)) + 1
    random_keys = rng.random() < 0.5
    keys = _short_keys(rng, most) if random_keys else some_of(rng, words, most)
    numbers = rng.integers(*NUMBER_RANGE, size=len(keys))
    items: list[list[Part]] = []
    filled = 0
    for key, number in zip(keys, numbers, strict=True):
        items.append(
            [
                (before.encode(), ORDINARY),
                (key.encode(), FREE if random_keys else ORDINARY),
                (between.encode(), ORDINARY),
                (b"%d" % number, FREE),
                (after.encode(), ORDINARY),
            ]
        )
        filled += num_bytes(items[-1])
        if filled >= target:
            break
    parts = [part for item in items for part in item]
    while filled < length:
        for index in rng.permutation(len(items)):
            start, key, middle, (number, _), end = items[index]
            parts += [start, key, middle, (number, DENSE), end]
            filled += num_bytes(items[index])
    return parts


def letters(rng: np.random.Generator, length: int) -> list[Part]:
    """Keys, values and filler are of three thirds of the alphabet, shuffled anew."""
    alphabet = [LETTERS[index].encode() for index in rng.permutation(len(LETTERS))]
    third, size = len(LETTERS) // 3, int(rng.integers(1, MAX_KEY_LETTERS + 1))
    most = min(MAX_PAIRS, third**size, length // (4 * (size + 1)))
    pairs = max(2, int(most ** rng.random()))
    numbers = rng.choice(third**size, pairs, replace=False).tolist()
    keys = [b"".join(alphabet[number // third**place % third] for place in range(size)) for number in numbers]
    values = [alphabet[third + index % third] for index in range(pairs)]
    parts: list[Part] = [(key + value, FREE) for key, value in zip(keys, values, strict=True)]
    filled, others = pairs * (size + 1), alphabet[2 * third :]
    while filled < length:
        gap, asked = int(rng.geometric(1 / MEAN_GAP)) - 1, int(rng.integers(pairs))
        filler = b"".join(others[index] for index in rng.integers(len(others), size=gap))
        parts += [(filler + keys[asked], FREE), (values[asked], DENSE)]
        filled += gap + size + 1
    return parts


def _short_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct keys of two or three letters; as many as asked for, at most 1352."""
    keys = []
    for number in rng.choice(2 * 26**2, size=min(count, 2 * 26**2), replace=False):
        first, second = divmod(int(number) % 26**2, 26)
        third = LETTERS[int(rng.integers(26))] if number >= 26**2 else ""
        keys.append(LETTERS[first] + LETTERS[second] + third)
    return keys
