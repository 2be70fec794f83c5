"""Two ways to ask: both end with a cue, and only the document may be cut.

    zeroscrolls   DOCUMENT … | instruction   Question: QUERY   Answer:    the end of the document is cut
    scrolls       QUERY  DOCUMENT … | Answer:                             the same

The first has the parts and the order of TOVA's evaluation (Oren et al. 2024, appendix C, after ZeroSCROLLS,
which puts its instruction before the document); its wording is ours (`tasks`). The second is SCROLLS's input
as it stands; the cue is ours, since SCROLLS's own encoder-decoders need none and a causal model must be told
where the answer begins. Whatever is not cut always fits, BOS included.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..data import DataError
from ..tokenizer import Tokenizer, start_of
from .examples import Example
from .tasks import Task

FORMS = {
    "zeroscrolls": "document, instruction, question, answer cue, as TOVA's evaluation has them; wording ours",
    "scrolls": "SCROLLS's input (query first), and an answer cue of ours",
}
#: What each form cuts where a prompt would be too long.
TRUNCATES = {"zeroscrolls": "document end", "scrolls": "input end"}  # its query stays
#: More than any tokenizer packs into a token on average.
CHARACTERS_PER_TOKEN = 8


@dataclass(frozen=True)
class Prompt:
    """Token ids with BOS, and the share of the document's characters that is left."""

    ids: tuple[int, ...]
    text: str
    kept_share: float


def compose(form: str, task: Task, example: Example, tokenizer: Tokenizer, length: int) -> Prompt:
    """A prompt of at most `length` tokens. Raises DataError where nothing of the document fits."""
    first = example.document_start
    before, rest, beside = example.input[:first], f"\n\n{task.cue}", ["question"] if first else []
    if form == "zeroscrolls":
        query = f"\n\n{task.asked}: {example.query}" if task.asked else ""
        before, rest = "", f"\n\n{task.instruction}{query}{rest}"
        beside.append("instruction")
    start, kept = start_of(tokenizer), example.input[first:][: characters(length)]
    ids = tokenizer.encode(kept)
    room = len(ids)
    # All text is encoded at once, as a user's would be; tokens may merge where parts meet: cut, then look.
    while (excess := len(made := (*start, *tokenizer.encode(before + kept + rest))) - length) > 0:
        room -= excess
        if room < 1:
            needed = length - room + 1
            raise DataError(
                f"length={length} leaves {example.id} no room for any document beside "
                f"{' and '.join([*beside, 'cue'])}; {needed} tokens would."
            )
        kept = tokenizer.decode(ids[:room]).rstrip("\ufffd")  # of a character that was cut
    return Prompt(made, before + kept + rest, min(1.0, len(kept) / max(1, example.length - first)))


def characters(length: int) -> int:
    """Characters of a document that are looked at for a prompt of so many tokens."""
    return CHARACTERS_PER_TOKEN * length


def continuation(tokenizer: Tokenizer, prompt: Prompt, answer: str) -> tuple[int, ...]:
    """Ids that go on from the prompt with the answer, as one text would be encoded.

    Where a tokenizer would join the answer with the cue it is encoded alone.
    """
    own = prompt.ids[len(start_of(tokenizer)) :]
    whole = tokenizer.encode(prompt.text + answer)
    return tuple(whole[len(own) :] if tuple(whole[: len(own)]) == own else tokenizer.encode(answer))
