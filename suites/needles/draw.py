"""Keys and values of needles. A draw gives the same items first, however many are asked for.

Items of one draw are distinct as long as its pool lasts, then they come again in the same order: as many in
a row as the pool holds never collide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..words import EVALUATION_WORDS, NUMBER_RANGE

Draw = Callable[[np.random.Generator, int], list[str]]

_CONSONANTS, _VOWELS, _SYLLABLES = "bdklmnprstvz", "aeiou", 3


def distinct(size: int, item: Callable[[int], str]) -> Draw:
    """Items 0..size-1 in a random order."""

    def draw(rng: np.random.Generator, count: int) -> list[str]:
        order = rng.permutation(size)
        return [item(int(order[number % size])) for number in range(count)]

    return draw


def among(pool: Sequence[str]) -> Draw:
    return distinct(len(pool), pool.__getitem__)


def integers(start: int, stop: int) -> Draw:
    return distinct(stop - start, lambda number: str(start + number))


def made_up_word(number: int) -> str:
    """Three open syllables, e.g. "tavoru". All have six letters, so that none is a part of another."""
    letters = ""
    for _ in range(_SYLLABLES):
        number, vowel = divmod(number, len(_VOWELS))
        number, consonant = divmod(number, len(_CONSONANTS))
        letters += _CONSONANTS[consonant] + _VOWELS[vowel]
    return letters


def uuids(rng: np.random.Generator, count: int) -> list[str]:
    """128 random bits in the form of a UUID; no version or variant is set."""
    found = []
    for _ in range(count):
        digits = rng.bytes(16).hex()
        found.append("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))
    return found


#: Real words that are never keys in the training of our own networks.
kept_words = among(EVALUATION_WORDS)
made_up_words = distinct((len(_CONSONANTS) * len(_VOWELS)) ** _SYLLABLES, made_up_word)
numbers = integers(*NUMBER_RANGE)
