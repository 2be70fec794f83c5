"""Prose to hide things in, and its beginnings by number of tokens.

How many tokens a beginning has is known only once it is encoded, and a cut has a dozen candidates. But how
a text falls into tokens depends on what is near: so the whole is encoded once, and of a candidate only what
lies around its end. With a tokenizer that looks further back a beginning may be a few tokens off; the prompt
itself is always encoded whole (`compose`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from ..documents import Document, TextError
from ..suite import Context

#: Characters looked at per token of prose that is wanted: more than any tokenizer packs in on average; and
#: what is enough for most.
CHARACTERS_PER_TOKEN, USUAL = 8, 5
#: Tokens on either side of a cut that are encoded again, and tokens that a prompt may want in addition
#: where it turned out shorter than its parts.
NEAR, SPARE = 32, 256
#: Tokens that show that two encodings are in step.
SAME = 4


class Haystack:
    """Text from a random offset of a random document on; `ids` are its tokens.

    Raises TextError when there is no text, or less than `room` tokens of it.
    """

    def __init__(self, context: Context, rng: np.random.Generator, room: int) -> None:
        if context.text is None:
            raise TextError("This suite needs text to hide needles in; name one with --text FILE.")
        self._tokenizer = context.tokenizer
        prose = _prose(context.text.documents, rng, room)
        self.length = len(prose)
        for text in (prose[: room * USUAL], prose):
            self.text, self.ids = text, context.tokenizer.encode(text)
            if len(self.ids) >= room + SPARE:
                break
        if len(self.ids) < room:
            raise TextError(f"The text {context.text.label} is too short for a needle in {room} tokens.")

    def fit(self, most: int, limit: int | None = None) -> tuple[int, int]:
        """Characters of the longest beginning that has at most `most` tokens, and how many it has.

        Of the first `limit` characters (default: all). Within a word more characters may be fewer tokens;
        then it is one of the longest.
        """
        limit = self.length if limit is None else limit
        near, start, before = self._anchor(most - NEAR)
        beyond = len(self._tokenizer.decode(self.ids[: most + NEAR])) if near else limit

        def tokens(end: int) -> int:
            return before + len(self._tokenizer.encode(self.text[start:end]))

        def fits(end: int) -> bool:
            return end <= near or (end <= beyond and tokens(end) <= most)

        if fits(limit):
            return limit, len(self._tokenizer.encode(self.text[:limit]))
        # Other candidates would give other prompts with subword tokenizers than those once measured.
        low, step = 0, max(1, most)
        while low + step < limit and fits(low + step):
            low += step
        ends = range(low, min(low + step, limit))
        end = ends[bisect_right(ends, False, key=lambda end: not fits(end)) - 1]
        return end, tokens(end)

    def _anchor(self, tokens: int) -> tuple[int, int, int]:
        """(near, start, before): a beginning of about `tokens` tokens has `near` characters, and whatever is
        not much longer has `before` tokens and those of its text from `start` on.

        (0, 0, 0), true of every beginning, where the tokenizer does not give back the text as it was.
        """
        for count in range(min(tokens, len(self.ids)), max(tokens - NEAR, SAME), -1):
            beginning = self._tokenizer.decode(self.ids[:count])
            if not self.text.startswith(beginning):
                continue  # a character may be several tokens
            near = len(beginning)
            start = max(0, near - NEAR * CHARACTERS_PER_TOKEN)
            part = self._tokenizer.encode(self.text[start:near])
            if part[-SAME:] == self.ids[count - SAME : count]:
                return near, start, count - len(part)
        return 0, 0, 0


def _prose(documents: Sequence[Document], rng: np.random.Generator, room: int) -> str:
    first = int(rng.integers(len(documents)))
    text = documents[first].text
    start = int(rng.integers(max(0, len(text) - room) + 1))
    wanted = room * CHARACTERS_PER_TOKEN
    prose = text[start : start + wanted]
    # Once round: the documents that follow, at last the beginning of the first one.
    for step in range(1, len(documents) + 1):
        if len(prose) >= wanted:
            break
        text = documents[(first + step) % len(documents)].text
        prose += "\n\n" + text[: min(wanted - len(prose), start if step == len(documents) else len(text))]
    return prose
