"""What a needle says and how it is asked for. All wording is ours, also where a protocol is YOCO's.

    number   the template that our own networks were trained on, with words kept from training
    city     YOCO's protocol: a city's magic number, uniform in 1..50,000, after an instruction; 20 tokens
             are generated, whatever comes; the prose is 150 tokens shorter than the length
    magic    the value is a made-up word
    uuid     the value is a UUID: 36 characters, all of which have to be held
    keyed    made-up keys in a sentence that no training data contains, for many needles of the same form

Several values are asked for in one question, which ends like that for the first of them: the answer goes
on with the sentences of the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..words import NEEDLE, QUESTION
from .draw import Draw, among, integers, kept_words, made_up_words, numbers, uuids

CITIES = tuple(
    """
    Accra Adelaide Algiers Ankara Antwerp Bamako Basel Bergen Bogota Bordeaux Boston Bremen Brisbane Calgary
    Caracas Casablanca Cologne Cracow Dallas Delhi Denver Dresden Dublin Durban Edinburgh Florence Freetown
    Geneva Genoa Glasgow Gothenburg Hamburg Hanoi Harare Havana Houston Islamabad Kingston Kyoto Leipzig
    Liverpool Ljubljana Lusaka Lyon Malaga Managua Manila Marseille Milan Minsk Montevideo Montreal Munich
    Nagoya Naples Odesa Osaka Ottawa Palermo Perth Porto Prague Quito Riga Rome Rotterdam Salzburg Seville
    Stockholm Tallinn Tirana Toulouse Turin Valencia Venice Vilnius Warsaw Wellington Zagreb Zurich
    """.split()
)


@dataclass(frozen=True)
class Form:
    """One kind of needle, with {key} and {value}.

    `question` asks for one value, `questions` for those of {keys}, of which {key} is the first; both end
    where an answer begins. `value` is a regular expression of what may be one, right or wrong.
    """

    needle: str
    question: str
    questions: str
    keys: Draw
    values: Draw
    value: str
    stop: tuple[str, ...] = (".",)  # of one value
    max_new: int | None = None  # of one value; None: what it needs
    head: str = ""
    slack: int | None = None  # tokens by which the prose is shorter than the prompt may be
    trained: bool = False  # our own networks know it

    def sentence(self, key: str, value: str) -> tuple[str, int]:
        """The needle, and at which of its characters the value begins."""
        before, after = self.needle.format(key=key, value="\0").split("\0")
        return before + value + after, len(before)

    def ask(self, keys: Sequence[str]) -> str:
        question = self.question if len(keys) == 1 else self.questions
        return question.format(key=keys[0], keys=listed(keys))

    def answer(self, keys: Sequence[str], values: Sequence[str]) -> str:
        """The whole answer to `ask`, as the needles have it."""
        if len(keys) == 1:
            return values[0]
        first, start = self.sentence(keys[0], values[0])
        return first[start:] + "".join(
            self.sentence(*pair)[0] for pair in zip(keys[1:], values[1:], strict=True)
        )

    def found(self, text: str) -> list[str]:
        """Whatever in an answer could be a value, in order."""
        return re.findall(self.value, text)


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


FORMS = {
    "number": Form(
        needle=NEEDLE.replace("{word}", "{key}").replace("{number}", "{value}"),
        question=QUESTION.replace("{word}", "{key}"),
        questions=" What are the secret numbers of {keys}? The secret number of {key} is ",
        keys=kept_words,
        values=numbers,
        value="[0-9]+",
        max_new=8,
        trained=True,
    ),
    "city": Form(
        head="Somewhere in the following text stands the magic number of a city. Remember it; at the end you "
        "are asked for it. ",
        needle="\nThe magic number of the city of {key} is {value} .\n",
        question="\nWhat is the magic number of the city of {key}? The magic number of the city of {key} is ",
        questions="",
        keys=among(CITIES),
        values=integers(1, 50_001),
        value="[0-9]+",
        stop=(),
        max_new=20,
        slack=150,
    ),
    "magic": Form(
        needle=" The magic word of {key} is {value}. ",
        question=" What is the magic word of {key}? The magic word of {key} is ",
        questions=" What are the magic words of {keys}? The magic word of {key} is ",
        keys=kept_words,
        values=made_up_words,
        value="[A-Za-z]+",
    ),
    "uuid": Form(
        needle=" The serial number of {key} is {value}. ",
        question=" What is the serial number of {key}? The serial number of {key} is ",
        questions=" What are the serial numbers of {keys}? The serial number of {key} is ",
        keys=kept_words,
        values=uuids,
        value="[0-9A-Za-z-]+",
    ),
    "keyed": Form(
        needle=" In stock: {key} / {value} pieces. ",
        question=" How many pieces of {key} are in stock? In stock: {key} / ",
        questions=" How many pieces of {keys} are in stock? In stock: {key} / ",
        keys=made_up_words,
        values=numbers,
        value="[0-9]+",
    ),
}
