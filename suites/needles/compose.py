"""One prompt: head, prose with sentences put into it, question; and where its characters lie in its tokens.

All text is encoded at once, as a user's would be: tokens may merge where parts meet. So how much prose
fills the prompt is known only afterwards, and is then corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..documents import TextError
from ..suite import Context, seed_of
from ..tokenizer import Tokenizer, start_of
from .haystack import Haystack

#: Characters before the end of a prompt that may be cut into tokens otherwise when the answer follows.
TAIL = 256


@dataclass(frozen=True)
class Prompt:
    """`ids`, the `text` that they begin (an answer's first token may take its last space along), and
    `offsets`, the character at which each sentence begins, in the order of the places given."""

    ids: tuple[int, ...]
    text: str
    offsets: tuple[int, ...]
    tokenizer: Tokenizer

    def before(self, end: int) -> int:
        """Tokens that lie wholly within the first `end` characters."""
        encoded = (*start_of(self.tokenizer), *self.tokenizer.encode(self.text[:end]))
        return common(encoded, self.ids)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The fewest tokens [first, last) whose text holds the characters [start, end).

        Raises TextError where the tokenizer does not give them back.
        """
        text, first = self.text[start:end], self.before(start)

        def held(first: int, last: int) -> bool:
            return text in self.tokenizer.decode(self.ids[first:last])

        furthest = min(first + 4 * len(text) + 8, len(self.ids))
        last = next((last for last in range(first + 1, furthest + 1) if held(first, last)), None)
        if last is None:
            raise TextError(f"Tokenizer {self.tokenizer.name} does not give {text!r} back as it was.")
        while held(first + 1, last):
            first += 1
        return first, last


def compose(
    context: Context,
    id: str,
    length: int,
    sentences: Sequence[tuple[float, str]],
    question: str,
    answer: str,
    head: str = "",
    most_prose: int | None = None,
) -> Prompt:
    """A prompt of at most `length` tokens that ends where the answer begins.

    `sentences` are (depth, text): 0 is before the prose, 1 behind it, counted in its tokens; at equal depths
    they keep their order. The prose is drawn by the case's `id`. `most_prose` leaves the prompt shorter
    than it could be. Raises TextError where there is too little room, or too little text.
    """
    tokenizer = context.tokenizer
    parts = [head, *(sentence for _, sentence in sentences), question]
    room = length - len(start_of(tokenizer)) - sum(len(tokenizer.encode(part)) for part in parts if part)
    room = min(room, length if most_prose is None else most_prose)
    haystack = Haystack(context, np.random.default_rng(seed_of(id)), max(room, 1))

    def filled(room: int) -> Prompt:
        if room < 1:
            hidden = f"{len(sentences)} hidden sentences" if len(sentences) > 1 else "the needle"
            raise TextError(f"A prompt of {length} tokens has no room for {hidden} and the question.")
        end, tokens = haystack.fit(room)
        text, done = head, 0
        offsets = [0] * len(sentences)
        for index in sorted(range(len(sentences)), key=lambda index: sentences[index][0]):
            depth, sentence = sentences[index]
            cut = max(done, haystack.fit(round(depth * tokens), end)[0])
            text += haystack.text[done:cut]
            offsets[index], done = len(text), cut
            text += sentence
        text += haystack.text[done:end] + question
        return Prompt(until_answer(tokenizer, text, answer), text, tuple(offsets), tokenizer)

    found = filled(room)
    while (excess := len(found.ids) - length) > 0:
        room -= excess
        found = filled(room)
    if len(found.ids) < length and most_prose is None:
        fuller = filled(room + length - len(found.ids))
        found = max((f for f in (found, fuller) if len(f.ids) <= length), key=lambda f: len(f.ids))
    return found


def until_answer(tokenizer: Tokenizer, text: str, answer: str) -> tuple[int, ...]:
    """The start token and ids of the text as they stand before its answer.

    A last space belongs to the answer's first token where a tokenizer joins the two: then it is the
    model's to say.
    """
    ids, tail = tokenizer.encode(text), text[-TAIL:]
    alone = tokenizer.encode(tail)
    lost = len(alone) - common(alone, tokenizer.encode(tail + answer))
    return (*start_of(tokenizer), *ids[: len(ids) - lost])


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
