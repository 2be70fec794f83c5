"""Retrieval: a number hidden in a book at a given depth, asked for at the end, generated greedily.

    BOS  prose…  " The secret number of WORD is DDDDD. "  …prose
         " What is the secret number of WORD? The secret number of WORD is "   → "DDDDD" until "."

    cell   length × depth, ascending; `length` is the most tokens that the whole prompt may have
    case   one trial: its own word, number, book and offset, all drawn from the SHA-256 of its id

The models were trained on this very template (with other words, numbers and books), so the suite
asks whether the *cache* kept what was said, not whether a model understands a new question.
Depth is counted in tokens of the prose: 0 is right after BOS, 1 right before the question. The
prose runs on into the next document where one is too short; it is cut between characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..documents import TextError
from ..suite import Answer, Axes, Case, Suite, seed_of
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
        tokenizer = self.context.tokenizer
        head, tail = NEEDLE.format(word=word, number="\0").split("\0")
        needle = [tokenizer.encode(part) for part in (head, number, tail)]
        question = tokenizer.encode(QUESTION.format(word=word))
        room = length - 1 - sum(map(len, needle)) - len(question)
        prose = self._fit(self._prose(np.random.default_rng(seed_of(id)), room), room)
        before_text = self._fit(prose, round(depth * len(tokenizer.encode(prose))))
        before = [tokenizer.bos, *tokenizer.encode(before_text)]
        after = tokenizer.encode(prose[len(before_text) :])
        prompt = (*before, *needle[0], *needle[1], *needle[2], *after, *question)
        digits_start = len(before) + len(needle[0])
        return Case(
            id=id,
            prompt=prompt,
            max_new_tokens=self.options.max_new,
            stop=(STOP,),
            axes={
                **cell,
                "prompt_tokens": len(prompt),
                "depth_tokens": len(before),
                "digits_start": digits_start,
                "digits_end": digits_start + len(needle[1]),
            },
            target={"word": word, "number": number},
            seed=seed_of(id),
        )

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
        encode = self.context.tokenizer.encode
        counts = range(len(text) + 1)
        return text[: bisect_right(counts, most, key=lambda count: len(encode(text[:count]))) - 1]

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
            "training": "the template was trained; word, number and book of each trial were not",
            "scoring": "greedy through the cache until '.'; strict = the first integer equals the number",
            "text": self.context.text.label if self.context.text else "none",
        }
