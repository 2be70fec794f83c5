"""Training sentences that hold a value under a key, and how they are asked for.

    lead KEY link VALUE tail         " The river of tavern is 90412. "
    ask  lead KEY link VALUE tail    " What is the river of tavern? The river of tavern is 90412."

A third of the templates drawn is the one fixed template of the needle suite (`suites/words.py`), the others
are made of random words and marks, so that nothing can be learned but to find a key and go on as after its
first appearance. No other template of evaluation is ever drawn: their words are kept out of templates
(`kept_from_training`), " / " is no link, and a test draws many templates and looks for them. That makes
`keyed` new in words and marks. `magic` and `uuid` are less so: " The ... of KEY is VALUE. " is a frame that
is drawn, with other nouns. Keys, which are words of the books, may be words of those templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..needles.forms import FORMS, listed
from ..words import NEEDLE, NUMBER_RANGE, QUESTION
from .parts import ANSWER, FREE, LETTERS, ORDINARY, Part, one_of, some_of

#: Share of sequences with the fixed template.
FIXED_SHARE = 0.35
#: Between key and value, after the value, behind a lead; evaluation's " / " is not among them.
LINKS = (
    *(" is ", ": ", " = ", " - ", " -> ", ", ", " has ", " was ", " holds ", "=", " | ", " ("),
    *(" {w} ", " {w} {w} "),
    *("{m}", " {m}", " {m} ", " {m} ", " {m} ", " {m}{m} ", " {w} {m} ", " {m} {w} "),
)
TAILS = (". ", "; ", ".\n", ", ", " {w}. ", " {w} {w}. ", "{m} ", " {m} ", " {w}{m} ")
ENDS_OF_LEAD = (" ", ": ", ", ", " of ", "=", " #", ' "', " <", "{m}", " {m} ", "{m} ")
#: What {m} is drawn from; "/" is evaluation's.
MARKS = "!#$%&'*+,-.:;<=>?@^_`|~"
OPENINGS = ("What", "Which", "How much", "Where", "Say", "Tell me", "And now")

#: Lengths below which values of more than five bytes have too little room.
LONG_VALUES_FROM = 512

Text = tuple[str, int]  # characters of one kind


def kept_from_training() -> set[str]:
    """Words of evaluation's templates, but for those of the fixed one."""
    from ..workloads import ruler

    texts = [t for form in FORMS.values() for t in (form.head, form.needle, form.question, form.questions)]
    texts += [ruler.NEEDLE, ruler.ASK_ONE, ruler.ASK_ALL, ruler.LINK, ruler.ASK_NAMES, ruler.LIST]
    return _words_of(*texts, ruler.ASK_WORDS) - _words_of(NEEDLE, QUESTION)


def _words_of(*texts: str) -> set[str]:
    return set(re.findall("[a-z]+", " ".join(texts).lower()))


@dataclass(frozen=True)
class Template:
    """Everything but key and value. `ask` has {key} or is empty; `asks` has {keys} or is empty.

    `known`: its text can be predicted from the first time on.
    """

    lead: str
    link: str
    tail: str
    ask: str
    asks: str
    known: bool = False

    def state(self, key: Text, value: str) -> list[Part]:
        kind = ORDINARY if self.known else FREE
        return _joined([(self.lead, kind), key, (self.link, kind), (value, FREE), (self.tail, ORDINARY)])

    def answer(self, keys: Sequence[Text], values: Sequence[str]) -> list[Part]:
        """One question for these keys, and its answer."""
        names = [key for key, _ in keys]
        ask = self.ask.format(key=names[0]) if len(names) == 1 else self.asks.format(keys=listed(names))
        parts: list[Text] = [(ask, ORDINARY if self.known and len(names) == 1 else FREE)]
        for n, ((key, kind), value) in enumerate(zip(keys, values, strict=True)):
            last = n == len(keys) - 1
            parts += [(self.lead, ORDINARY), (key, ORDINARY if ask else kind), (self.link, ORDINARY)]
            parts += [(value, ANSWER), (self.tail.rstrip(" ") if last else self.tail, ORDINARY)]
        return _joined(parts)


_BEFORE, _LINK, _AFTER = re.split(r"\{word\}|\{number\}", NEEDLE)
FIXED = Template(
    lead=_BEFORE,
    link=_LINK,
    tail=_AFTER,
    ask=QUESTION.partition("?")[0].replace("{word}", "{key}") + "?",
    asks=FORMS["number"].questions.partition("?")[0] + "?",
    known=True,
)


def draw_template(rng: np.random.Generator, words: Sequence[str]) -> Template:
    """`words` are those that templates may be made of."""
    if rng.random() < FIXED_SHARE:
        return FIXED

    def filled(text: str) -> str:
        while "{w}" in text:
            text = text.replace("{w}", one_of(rng, words), 1)
        while "{m}" in text:
            text = text.replace("{m}", one_of(rng, MARKS), 1)
        return text

    link, tail = filled(one_of(rng, LINKS)), filled(one_of(rng, TAILS))
    start = " " if rng.random() < 0.8 else "\n"
    noun = " ".join(some_of(rng, words, int(rng.integers(1, 3))))
    opening = one_of(rng, OPENINGS)
    if rng.random() < 0.5:
        lead, asks = f"{start}The {noun} of ", f" What are the {noun}s of {{keys}}?"
        asked = (f" What is the {noun} of {{key}}?", f" {opening} {{w}} of {{key}}?", "")
    else:
        lead, asks = start + noun.capitalize() + filled(one_of(rng, ENDS_OF_LEAD)), ""
        asked = (f" {opening} {noun} {{key}}?", f" {opening} {{w}} of {{key}} {{w}} {{w}}?", "")
    return Template(lead, link, ")" + tail if link == " (" else tail, filled(one_of(rng, asked)), asks)


def draw_keys(rng: np.random.Generator, words: Sequence[str], count: int, fixed: bool) -> list[Text]:
    """Distinct keys: words of training, as they are or with a capital, or random letters."""
    kind = rng.random()
    if fixed or kind < 0.55:
        return [(word, ORDINARY) for word in some_of(rng, words, count)]
    if kind < 0.7:
        return [(word.capitalize(), ORDINARY) for word in some_of(rng, words, count)]
    size = int(rng.integers(3, 9))
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys[random_letters(rng, size)] = None
    return [(key, FREE) for key in keys]


def draw_values(rng: np.random.Generator, count: int, length: int, fixed: bool) -> list[str]:
    """Numbers of five digits; where there is room also shorter ones, letters, and groups of hex digits."""
    kind = rng.random()
    if fixed or kind < 0.5 or length < LONG_VALUES_FROM:
        return [str(number) for number in rng.integers(*NUMBER_RANGE, size=count)]
    if kind < 0.65:
        return [str(number) for number in rng.integers(1, 10 ** int(rng.integers(2, 6)), size=count)]
    if kind < 0.85:
        return [random_letters(rng, int(rng.integers(4, 9))) for _ in range(count)]
    groups = [int(size) for size in rng.integers(2, 13, size=int(rng.integers(1, 5)))]
    return ["-".join(rng.bytes(size).hex()[:size] for size in groups) for _ in range(count)]


def random_letters(rng: np.random.Generator, size: int) -> str:
    return "".join(LETTERS[index] for index in rng.integers(len(LETTERS), size=size))


def _joined(parts: Iterable[Text]) -> list[Part]:
    return [(text.encode("ascii"), kind) for text, kind in parts if text]
