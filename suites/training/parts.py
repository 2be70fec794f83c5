"""A training sequence as parts: bytes that count alike in the loss.

ORDINARY  1 / (all bytes of the batch)
ANSWER    0.5 / (answer bytes)       a hidden value when asked for
DENSE     0.5 / (dense answers)      what comes again in dense recall
FREE      0                          could not be predicted: a value when first stated, a random key
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDINARY, FREE, ANSWER, DENSE = range(4)

Part = tuple[bytes, int]  # bytes of one kind

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def num_bytes(parts: Sequence[Part]) -> int:
    return sum(len(part) for part, _ in parts)


def one_of(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def some_of(rng: np.random.Generator, items: Sequence[str], count: int) -> list[str]:
    """Distinct items; as many as there are where more are asked for."""
    count = min(count, len(items))
    return [items[index] for index in rng.choice(len(items), size=count, replace=False)]
