"""Retrieval: a number hidden in a book at a given depth, asked for at the end, generated greedily.

    BOS  prose…  " The secret number of WORD is DDDDD. "  …prose
         " What is the secret number of WORD? The secret number of WORD is "   → "DDDDD" until "."

    cell   length × depth, ascending; `length` is the most tokens that the whole prompt may have
    case   one trial: its own word, number, book and offset, all drawn from the SHA-256 of its id

Our own networks were trained on this very template (with other words, numbers and books), so for them
the suite asks whether the *cache* kept what was said, not whether a model understands a new question.
Depth is counted in tokens of the prose: 0 is right after BOS, 1 right before the question. The
prose is any text (`--text FILE|FOLDER`), from a random offset on; it runs on into the next document where one
is too short, and is cut between characters. `prompt_tokens` is the length after templating.

    variant=number|city|magic|uuid|keyed     what the needles say (`suites.needles.forms`)
    needles=N,query=one    N needles, one of them asked for: it lies at the depth, the others anywhere
    needles=N,query=all    all are asked for at once: at depth d, d + (1-d)/N, d + 2(1-d)/N, ...
    distractors=K          K further needles of the same form, never asked for, anywhere (keyed: 8)
    spacing=linear|sigmoid,num_depths=11     a grid of depths as in LLMTest_NeedleInAHaystack: even, or dense
                           towards both ends, 1 / (1 + exp(-10 (x - 0.5)))

One needle asked for: the first thing in the answer that could be a value is it (strict), or it occurs
(substring). All asked for: any, all, and the mean share of the values that occur as whole items.

`city` is YOCO's protocol (unilm, criterions/needle_haystack.py and multi_needle.py) with its quirks: the
official score is the substring, and as numbers are not padded "5" is found in "35"; generation goes on for 20
tokens, over full stops; the prose has 150 tokens less than the length, or what fits; and with several needles
1 to N-1 lie before the depth, the others after it, and the last before it is asked for, so that its own depth
(`depth_tokens`) is smaller. At depth 0, which they leave out, all before it stand together at the beginning.
Their grids: num_depths=11 with one needle; depths i/11, i = 1..10, with 4.
Different here: our wording, the text that was named, each city once in the list (theirs has doubles, so that
a question may have two answers), prose cut at the exact token and not between lines, and no token banned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..needles.compose import compose
from ..needles.forms import FORMS, Form
from ..suite import Answer, Axes, Case, Suite, seed_of
from ..words import EVALUATION_WORDS

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_DEPTHS, KEYED_DISTRACTORS = 11, 8
#: Tokens that an answer may have beyond its values.
MORE = 8


@dataclass(frozen=True)
class Options:
    lengths: tuple[int, ...] = (512, 1024)
    depths: tuple[float, ...] = DEPTHS
    trials: int = 10
    max_new: int | None = None  # None: what the values need
    spacing: Literal["given", "linear", "sigmoid"] = "given"
    num_depths: int = NUM_DEPTHS
    variant: Literal["number", "city", "magic", "uuid", "keyed"] = "number"
    needles: int = 1
    query: Literal["one", "all"] = "one"
    distractors: int | None = None  # None: 8 with variant=keyed, else none

    def __post_init__(self) -> None:
        if min(self.lengths) < 128:
            raise ValueError("lengths must be 128 or more, room for the needle and its question.")
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError("depths must be between 0 and 1.")
        if not 1 <= self.trials <= len(EVALUATION_WORDS):
            raise ValueError(f"trials must be 1 to {len(EVALUATION_WORDS)}, one word each.")
        if self.max_new is not None and self.max_new < 1:
            raise ValueError("max_new must be 1 or more.")
        if not 2 <= self.num_depths <= 101:
            raise ValueError("num_depths must be 2 to 101.")
        given = self.spacing == "given"
        if (given and self.num_depths != NUM_DEPTHS) or (not given and self.depths != DEPTHS):
            raise ValueError("give depths, or spacing=linear or sigmoid and num_depths.")
        if not (1 <= self.needles <= 64 and 0 <= self.num_distractors <= 256):
            raise ValueError("needles must be 1 to 64 and distractors 0 to 256.")
        if self.variant == "city" and (self.query == "all" or self.num_distractors):
            raise ValueError("variant=city asks for one of its needles, and these are all there are.")

    @property
    def num_distractors(self) -> int:
        if self.distractors is None:
            return KEYED_DISTRACTORS if self.variant == "keyed" else 0
        return self.distractors

    @property
    def all_depths(self) -> list[float]:
        """Ascending."""
        if self.spacing == "given":
            return sorted(set(self.depths))
        even = [index / (self.num_depths - 1) for index in range(self.num_depths)]
        return [round(depth if self.spacing == "linear" else _sigmoid(depth), 4) for depth in even]

    @property
    def changed(self) -> str:
        """What tells the cases of these options from those of others, in their ids."""
        parts = {"variant": self.variant, "needles": self.needles, "query": self.query}
        parts["distractors"] = self.num_distractors
        usual = ("number", 1, "one", 0)
        return "".join(f"/{k}={v}" for (k, v), u in zip(parts.items(), usual, strict=True) if v != u)


def _sigmoid(depth: float) -> float:
    """The ends stay where they are."""
    return depth if depth in (0, 1) else 1 / (1 + math.exp(-10 * (depth - 0.5)))


class Workload(Suite):
    options: Options

    @property
    def form(self) -> Form:
        return FORMS[self.options.variant]

    @property
    def num_asked(self) -> int:
        return self.options.needles if self.options.query == "all" else 1

    def cells(self) -> list[dict[str, float | int | str]]:
        lengths, depths = sorted(set(self.options.lengths)), self.options.all_depths
        return [{"length": length, "depth": depth} for length in lengths for depth in depths]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Raises TextError when the whole text is shorter than the prompt."""
        length, depth = int(cell["length"]), float(cell["depth"])
        name = f"needle{self.options.changed}/seed={self.context.seed}/length={length}/depth={depth:g}"
        # Drawn in one go, so that keys and values are distinct and a trial does not depend on `trials`.
        rng, each = np.random.default_rng(seed_of(name)), self.options.needles + self.options.num_distractors
        keys = self.form.keys(rng, self.options.trials * each)
        values = self.form.values(rng, self.options.trials * each)
        for trial in range(self.options.trials):
            mine = slice(trial * each, (trial + 1) * each)
            yield self._case(f"{name}/trial={trial}", cell, length, depth, keys[mine], values[mine])

    def _case(
        self, id: str, cell: Axes, length: int, depth: float, keys: list[str], values: list[str]
    ) -> Case:
        form, asked, encode = self.form, self.num_asked, self.context.tokenizer.encode
        sentences, starts = zip(*map(form.sentence, keys, values), strict=True)
        places = list(zip(self._depths(id, depth, len(keys)), sentences, strict=True))
        # At equal depths they stand in this order: a city that is asked for, the first, is to be the last.
        step = -1 if self.options.variant == "city" else 1
        prompt = compose(
            self.context, id, length, places[::step], form.ask(keys[:asked]), values[0], form.head,
            form.slack and length - form.slack,
        )  # fmt: skip
        offsets = prompt.offsets[::step]
        begins = [offset + start for offset, start in zip(offsets, starts, strict=True)]
        watched = [prompt.span(begins[n], begins[n] + len(values[n])) for n in range(asked)]
        needed = len(encode(form.answer(keys[:asked], values[:asked]))) + MORE
        one = asked == 1
        return Case(
            id=id,
            prompt=prompt.ids,
            max_new_tokens=self.options.max_new or (form.max_new if one else None) or needed,
            stop=form.stop if one else (),
            axes={
                **cell,
                "prompt_tokens": len(prompt.ids),
                "depth_tokens": prompt.before(offsets[0]),
                "digits_start": watched[0][0],
                "digits_end": watched[0][1],
            },
            target={"keys": keys[:asked], "values": values[:asked]},
            seed=seed_of(id),
            watched=tuple(watched),
        )

    def _depths(self, id: str, depth: float, count: int) -> list[float]:
        """Of all needles, those that are asked for first."""
        rng, asked = np.random.default_rng(seed_of(f"{id}/depths")), self.num_asked
        if self.options.variant == "city" and count > 1:
            before = int(rng.integers(1, count))
            early = sorted(rng.uniform(0, depth, before).tolist(), reverse=True)
            return [*early, *rng.uniform(depth, 1, count - before).tolist()]
        places = [depth + number * (1 - depth) / asked for number in range(asked)]
        return places + rng.random(count - asked).tolist()

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        """One value: `accuracy_strict` and `_substring`; all: `accuracy_any`, `_all` and `_mean`."""
        values, found = case.target["values"], self.form.found(answer.text)
        if self.options.query == "one":
            return {
                "accuracy_strict": float(found[:1] == values),
                "accuracy_substring": float(values[0] in answer.text),
            }
        hits = [value in found for value in values]
        return {
            "accuracy_any": float(any(hits)),
            "accuracy_all": float(all(hits)),
            "accuracy_mean": sum(hits) / len(hits),
        }

    def notes(self) -> dict[str, str]:
        form, keys = self.form, ["{key}", "{other}"][: self.num_asked]
        known = "our own networks were trained on the template, never on word, number and book of a trial; "
        known += "checkpoints of others do not know it"
        if self.options.query == "all":
            scoring = "greedy through the cache; a value counts where it occurs as a whole"
        elif self.options.variant == "number":
            scoring = "greedy through the cache until '.'; strict = the first integer equals the number"
        else:
            scoring = "greedy through the cache; strict = the first thing that could be a value is it"
        return {
            "template": form.head + form.needle + "…" + form.ask(keys),
            "training": known if form.trained else "our own networks were not trained on the template",
            "scoring": scoring,
            "text": self.context.text.label if self.context.text else "none",
        } | ({"protocol": self._yoco()} if self.options.variant == "city" else {})

    def _yoco(self) -> str:
        """What a reader of the numbers must know of the protocol."""
        facts = [
            "YOCO's, in wording and prose of our own",
            "its official score is the substring (accuracy_substring), to which 5 is found in 35",
            f"{self.options.max_new or self.form.max_new} tokens are generated, over full stops",
            f"the prose has {self.form.slack} tokens less than the length, or what fits",
        ]
        if (needles := self.options.needles) > 1:
            facts.append(
                f"depth is a cut with 1 to {needles - 1} needles before it, the last of them asked for: "
                "its own place (depth_tokens) lies before the cut"
            )
        return "; ".join(facts)
