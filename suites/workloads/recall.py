"""Multi-query associative recall: pairs of random tokens, then one key again, whose value must follow.

    BOS  k1 v1  k2 v2  …  kP vP   filler …  |  k   → v       (MQAR, Zoology, arXiv 2312.04927)

    cell   length × pairs, ascending; `length` is the tokens up to the last key, itself included
    case   one query: `queries` keys of a trial (unless given 8, or all where there are fewer) are asked
           for, each after the same pairs and filler, which are one prompt (|) for all of them

The key comes after the prompt, through the cache: a policy that decides at the end of a prompt must not have
seen the question, and a value scored from the prompt's own logits would not have met its decision at all.

Tokens are ids and no text, so any tokenizer will do: keys, values and filler come from three disjoint thirds
of its ids (`tokens=plain`: of all that stand for text, `letters`: of a to z), shuffled anew for each trial by
the SHA-256 of its name. No key comes twice, and no value as long as there are others. Both are forced;
`recall_accuracy` is 1 where the value was the likeliest of all tokens, `gold_nll_nats` is what it cost.

Different from Zoology: each key is asked for by itself at the end of the prompt, not all in one sequence at
distances drawn from a power law; and models are not trained for it. A model that looks for the same token
before and says what followed there (an induction head) can solve it. Our own networks met lists of letters
like those of `tokens=letters` in training, drawn otherwise (`suites/training/recall.py`). Of other bytes they
met none but those of text: with `plain` tokens their numbers say nothing about a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal

import numpy as np

from ..documents import TextError
from ..suite import Answer, Axes, Case, Suite, seed_of
from ..tokenizer import start_of

#: Keys that are asked for unless their number is given.
QUERIES = 8


@dataclass(frozen=True)
class Options:
    lengths: tuple[int, ...] = (512, 1024)
    pairs: tuple[int, ...] = (4, 16, 64)
    trials: int = 5
    queries: int | None = None  # None: 8, or all of fewer pairs
    key_tokens: int = 1
    tokens: Literal["plain", "letters"] = "plain"

    def __post_init__(self) -> None:
        if min(*self.pairs, self.trials, 1 if self.queries is None else self.queries) < 1:
            raise ValueError("pairs, trials and queries must be 1 or more.")
        if self.queries is not None and self.queries > max(self.pairs):
            raise ValueError(f"queries must be {max(self.pairs)} or less, the most pairs that there are.")
        if not 1 <= self.key_tokens <= 4:
            raise ValueError("key_tokens must be 1 to 4.")
        least = 1 + max(self.pairs) * (self.key_tokens + 1) + self.key_tokens
        if min(self.lengths) < least:
            raise ValueError(f"lengths must be {least} or more, room for {max(self.pairs)} pairs and a key.")

    def asked(self, pairs: int) -> int:
        """Of so many pairs."""
        return min(QUERIES if self.queries is None else self.queries, pairs)


class Workload(Suite):
    needs_text = False
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        lengths, pairs = sorted(set(self.options.lengths)), sorted(set(self.options.pairs))
        return [{"length": length, "pairs": count} for length in lengths for count in pairs]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Raises TextError when the vocabulary is too small for so many pairs."""
        length, pairs, key_tokens = int(cell["length"]), int(cell["pairs"]), self.options.key_tokens
        start = start_of(self.context.tokenizer)
        for trial in range(self.options.trials):
            name = f"recall/{self.options.tokens}/key_tokens={key_tokens}/seed={self.context.seed}"
            name += f"/length={length}/pairs={pairs}/trial={trial}"
            rng = np.random.default_rng(seed_of(name))
            keys, values, others = self._draw(rng, pairs)
            stated = [token for key, value in zip(keys, values, strict=True) for token in (*key, value)]
            room = length - len(start) - len(stated) - key_tokens
            context = (*start, *stated, *rng.choice(others, room).tolist())
            for asked in rng.permutation(pairs)[: self.options.asked(pairs)].tolist():
                id, place = f"{name}/query={asked}", len(start) + asked * (key_tokens + 1) + key_tokens
                yield Case(
                    id=id,
                    prompt=context,
                    forced=(*keys[asked], values[asked]),
                    axes={**cell, "prompt_tokens": len(context), "distance": length - place},
                    seed=seed_of(name),
                    watched=((place, place + 1),),
                )

    def _draw(
        self, rng: np.random.Generator, pairs: int
    ) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
        """Keys, values, and the ids for filler."""
        known, key_tokens = self._ids(), self.options.key_tokens
        third = len(known) // 3
        if third**key_tokens < pairs:
            raise TextError(f"{len(known)} tokens make {third**key_tokens} keys, {pairs} are asked for.")
        ids = [known[index] for index in rng.permutation(len(known)).tolist()]
        numbers = rng.choice(third**key_tokens, pairs, replace=False).tolist()
        keys = [
            tuple(ids[number // third**place % third] for place in range(key_tokens)) for number in numbers
        ]
        return keys, [ids[third + index % third] for index in range(pairs)], ids[2 * third :]

    def _ids(self) -> Sequence[int]:
        tokenizer = self.context.tokenizer
        if self.options.tokens == "plain":
            return tokenizer.plain_ids
        return sorted({tokenizer.encode(letter)[-1] for letter in ascii_lowercase})

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        found = answer.likeliest is not None and answer.likeliest[-1]
        return {"recall_accuracy": float(found), "gold_nll_nats": -answer.logprobs[-1]}

    def notes(self) -> dict[str, str]:
        asked = [f"{self.options.asked(pairs)} of {pairs} pairs" for pairs in sorted(set(self.options.pairs))]
        return {
            "content": "random token ids; a prompt of pairs and filler, then a key whose value is scored",
            "queries": f"{', '.join(asked)} in each trial",
            "training": "our own networks were trained on lists of letters, drawn otherwise; checkpoints of "
            "others, and ours with tokens=plain, do not know it",
        }
