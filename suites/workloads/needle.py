"""Retrieval: a number hidden in a book at a given depth, asked for at the end, generated greedily.

    BOS  prose…  " The secret number of WORD is DDDDD. "  …prose
         " What is the secret number of WORD? The secret number of WORD is "   → "DDDDD" until "."

    cell   length × depth, ascending; `length` is the most tokens that the whole prompt may have
    case   one trial: its own word, number, book and offset, all drawn from the SHA-256 of its id

Our own networks were trained on this very template (with other words, numbers and books), so for them
the suite asks whether the *cache* kept what was said, not whether a model understands a new question.
Depth is counted in tokens of the prose: 0 is right after BOS, 1 right before the question. The
prose runs on into the next document where one is too short; it is cut between characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..documents import TextError
from ..suite import Answer, Axes, Case, Suite, seed_of
from ..tokenizer import start_of
from ..words import EVALUATION_WORDS, NEEDLE, NUMBER_RANGE, QUESTION

STOP = "."
#: Characters looked at per token of prose that is wanted: more than any tokenizer packs in on average.
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Options:
    lengths: tuple[int, ...] = (512, 1024)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    trials: int = 10
    max_new: int = 8

    def __post_init__(self) -> None:
        if min(self.lengths) < 128:
            raise ValueError("lengths must be 128 or more, room for the needle and its question.")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError("depths must be between 0 and 1.")
        if not 1 <= self.trials <= len(EVALUATION_WORDS):
            raise ValueError(f"trials must be 1 to {len(EVALUATION_WORDS)}, one word each.")
        if self.max_new < 1:
            raise ValueError("max_new must be 1 or more.")


class Workload(Suite):
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        lengths, depths = sorted(set(self.options.lengths)), sorted(set(self.options.depths))
        return [{"length": length, "depth": depth} for length in lengths for depth in depths]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Raises TextError when the whole text is shorter than the prompt."""
        length, depth = int(cell["length"]), float(cell["depth"])
        name = f"needle/seed={self.context.seed}/length={length}/depth={depth:g}"
        # Permutations, so that words and numbers are distinct and a trial does not depend on `trials`.
        rng = np.random.default_rng(seed_of(name))
        words = rng.permutation(EVALUATION_WORDS)
        numbers = rng.permutation(np.arange(*NUMBER_RANGE))
        for trial in range(self.options.trials):
            yield self._case(
                f"{name}/trial={trial}", cell, length, depth, str(words[trial]), str(numbers[trial])
            )

    def _case(self, id: str, cell: Axes, length: int, depth: float, word: str, number: str) -> Case:
        prompt, before = self._compose(id, length, depth, word, number)
        digits = before + NEEDLE.partition("{number}")[0].format(word=word)
        return Case(
            id=id,
            prompt=prompt,
            max_new_tokens=self.options.max_new,
            stop=(STOP,),
            axes={
                **cell,
                "prompt_tokens": len(prompt),
                "depth_tokens": self._tokens_within(prompt, before)[0],
                "digits_start": self._tokens_within(prompt, digits)[0],
                "digits_end": self._tokens_within(prompt, digits + number)[1],
            },
            target={"word": word, "number": number},
            seed=seed_of(id),
        )

    def _compose(
        self, id: str, length: int, depth: float, word: str, number: str
    ) -> tuple[tuple[int, ...], str]:
        """The prompt, at most `length` tokens, and its text before the needle. Raises TextError.

        All text is encoded at once, as a user's would be: tokens may merge where parts meet. So how much
        prose fills the prompt is known only afterwards, and is then corrected.
        """
        encode, start = self.context.tokenizer.encode, start_of(self.context.tokenizer)
        needle, question = NEEDLE.format(word=word, number=number), QUESTION.format(word=word)
        room = length - len(start) - len(encode(needle)) - len(encode(question))
        source = self._prose(np.random.default_rng(seed_of(id)), max(room, 1))

        def filled(room: int) -> tuple[tuple[int, ...], str]:
            if room < 1:
                raise TextError(f"A prompt of {length} tokens has no room for the needle and its question.")
            prose = self._fit(source, room)
            before = self._fit(prose, round(depth * len(encode(prose))))
            text = before + needle + prose[len(before) :] + question
            return (*start, *self._up_to_answer(text, number)), before

        found = filled(room)
        while (excess := len(found[0]) - length) > 0:
            room -= excess
            found = filled(room)
        if len(found[0]) < length:
            fuller = filled(room + length - len(found[0]))
            found = max((f for f in (found, fuller) if len(f[0]) <= length), key=lambda f: len(f[0]))
        return found

    def _up_to_answer(self, text: str, number: str) -> list[int]:
        """Ids of the text as they stand before its answer.

        A last space belongs to the answer's first token where a tokenizer joins the two: then it is the
        model's to say.
        """
        encode = self.context.tokenizer.encode
        ids = encode(text)
        return ids[: _common(ids, encode(text + number))]

    def _tokens_within(self, prompt: tuple[int, ...], text: str) -> tuple[int, int]:
        """Tokens of the prompt that lie within its beginning `text`; and those that begin there."""
        start, ids = start_of(self.context.tokenizer), self.context.tokenizer.encode(text)
        whole = _common((*start, *ids), prompt)
        return whole, whole + (whole < len(start) + len(ids))

    def _prose(self, rng: np.random.Generator, room: int) -> str:
        """Text from a random offset of a random document on, long enough for `room` tokens."""
        if self.context.text is None:
            raise TextError("The needle suite needs text; name one with --text FILE.")
        documents = self.context.text.documents
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
        if len(self.context.tokenizer.encode(prose)) < room:
            raise TextError(f"The text {self.context.text.label} is too short for a needle in {room} tokens.")
        return prose

    def _fit(self, text: str, most: int) -> str:
        """The longest beginning of the text that has at most `most` tokens."""

        def fits(count: int) -> bool:
            return len(self.context.tokenizer.encode(text[:count])) <= most

        if fits(len(text)):
            return text
        # Encoding costs time in proportion to length: feel the way up instead of halving from the end.
        low, step = 0, max(1, most)
        while low + step < len(text) and fits(low + step):
            low += step
        high = min(low + step, len(text))
        counts = range(low, high)
        return text[: low + bisect_right(counts, False, key=lambda count: not fits(count)) - 1]

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        """`accuracy_strict`: the first integer is the number; `accuracy_substring`: it occurs at all."""
        number = case.target["number"]
        first = re.search(r"[0-9]+", answer.text)
        return {
            "accuracy_strict": float(first is not None and first.group() == number),
            "accuracy_substring": float(number in answer.text),
        }

    def notes(self) -> dict[str, str]:
        return {
            "template": NEEDLE + "…" + QUESTION,
            "training": "our own networks were trained on the template, never on word, number and book of a "
            "trial; checkpoints of others do not know it",
            "scoring": "greedy through the cache until '.'; strict = the first integer equals the number",
            "text": self.context.text.label if self.context.text else "none",
        }


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
