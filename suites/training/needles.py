"""Prose with hidden sentences and questions at its end.

    sentences    1 .. T/64 (at most 32), log-uniform, of one template, at random places
    questions    1 .. min(6, T/100) at the end, one by one, or one question for several

Where the room does not suffice, sentences that nobody asks for are left out first, then questions, and at
last the template becomes the fixed one with numbers of five digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .parts import ORDINARY, Part, num_bytes
from .sentences import FIXED, Template, Text, draw_keys, draw_template, draw_values

MAX_NEEDLES, BYTES_PER_NEEDLE = 32, 64
MAX_QUESTIONS, BYTES_PER_QUESTION = 6, 100
#: Where several are asked for and the template has words for it: how often all at once.
TOGETHER_SHARE = 0.2

Prose = Callable[[np.random.Generator, int], bytes]


def hidden_sentences(
    rng: np.random.Generator, length: int, keys: Sequence[str], words: Sequence[str], prose: Prose
) -> list[Part]:
    """`keys` may be keys, `words` may be in templates; `prose(rng, n)` draws n bytes of a book."""
    most = max(1, min(MAX_NEEDLES, length // BYTES_PER_NEEDLE))
    needles = int(most ** rng.random() + rng.random())
    questions = int(rng.integers(1, max(1, min(MAX_QUESTIONS, length // BYTES_PER_QUESTION)) + 1))
    needles = max(needles, questions)
    template, together = draw_template(rng, words), rng.random() < TOGETHER_SHARE
    while True:
        fixed = template is FIXED
        names = draw_keys(rng, keys, needles, fixed)
        values = draw_values(rng, len(names), length, fixed)
        stated = [template.state(*pair) for pair in zip(names, values, strict=True)]
        asked = rng.permutation(len(names))[:questions].tolist()
        tail = _asked(template, [names[i] for i in asked], [values[i] for i in asked], together)
        room = length - sum(map(num_bytes, stated)) - num_bytes(tail)
        if room >= 0:
            return _placed(rng, stated, prose(rng, room)) + tail
        if needles > questions:
            needles = max(questions, needles * 3 // 4)
        elif questions > 1:
            needles = questions = questions - 1
        else:
            template = FIXED


def _asked(template: Template, keys: list[Text], values: list[str], together: bool) -> list[Part]:
    if together and template.asks and len(keys) > 1:
        return template.answer(keys, values)
    pairs = zip(keys, values, strict=True)
    return [part for key, value in pairs for part in template.answer([key], [value])]


def _placed(rng: np.random.Generator, stated: list[list[Part]], prose: bytes) -> list[Part]:
    parts: list[Part] = []
    before = 0
    places = np.sort(rng.integers(len(prose) + 1, size=len(stated))).tolist()
    for statement, place in zip(stated, places, strict=True):
        parts += [(prose[before:place], ORDINARY), *statement]
        before = place
    return [*parts, (prose[before:], ORDINARY)]
