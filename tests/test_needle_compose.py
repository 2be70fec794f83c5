"""Prompts from parts: beginnings by number of tokens, exact spans, lengths, in the tokens of anyone."""

from __future__ import annotations

import re

import numpy as np
import pytest
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

from suites.documents import TextError
from suites.needles.compose import Prompt, compose
from suites.needles.forms import FORMS, listed
from suites.needles.haystack import Haystack
from suites.tokenizer import ByteTokenizer


@pytest.fixture(params=["bytes", *OTHERS])
def anyone(request, tmp_path):
    """Every tokenizer, the bytes included."""
    return TOKENIZER if request.param == "bytes" else OTHERS[request.param](tmp_path)


class Words(ByteTokenizer):
    """A token is a word with the space before it."""

    name = "words"

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def encode(self, text):
        return [self.words.setdefault(word, 300 + len(self.words)) for word in re.findall(r" ?[^ ]+| ", text)]

    def decode(self, ids):
        known = list(self.words)
        return "".join(known[id - 300] for id in ids if id >= 300)


class Halves(Words):
    """A token is half a word, so that a beginning which ends there has two halves of the half instead."""

    def encode(self, text):
        words = re.findall(r" ?[^ ]+| ", text)
        halves = [half for word in words for half in (word[: len(word) // 2], word[len(word) // 2 :]) if half]
        return [self.words.setdefault(half, 300 + len(self.words)) for half in halves]


class Forgetful(ByteTokenizer):
    """Gives its first three characters back as one."""

    def decode(self, ids):
        return "?" + super().decode(ids)[3:]


class Fickle(ByteTokenizer):
    """The s before a space is one token with it, but only where the text ends with the two."""

    def encode(self, text):
        ids = super().encode(text)
        return [*ids[:-2], 250] if text.endswith("s ") else ids

    def decode(self, ids):
        return "".join("s " if id == 250 else super(Fickle, self).decode([id]) for id in ids)


@pytest.mark.parametrize("most", [0, 1, 37, 299, 300, 1200])
def test_a_beginning_has_as_many_tokens_as_fit(anyone, most):
    haystack = Haystack(context(PROSE, tokenizer=anyone), np.random.default_rng(1), 1200)
    for limit in (None, 500):
        end, tokens = haystack.fit(most, limit)
        assert tokens == len(anyone.encode(haystack.text[:end])) <= most
        room = (limit or haystack.length) - end
        # Within a word more characters may be fewer tokens: the whole words behind must be too many.
        assert room < 40 or len(anyone.encode(haystack.text[: end + 40])) > most


@pytest.mark.parametrize(
    ("tokenizer", "text"), [(Halves(), "several different words " * 200), (Forgetful(), "ab" * 2000)]
)
def test_beginnings_are_exact_where_what_is_near_does_not_tell(tokenizer, text):
    """Token boundaries that no beginning has; text that is not given back and repeats itself."""
    haystack = Haystack(context(text, tokenizer=tokenizer), np.random.default_rng(1), 150)
    for most in range(90, 130):
        end, tokens = haystack.fit(most)
        assert tokens == len(tokenizer.encode(haystack.text[:end])) <= most


def test_sentences_lie_at_their_depths_in_any_order_given(anyone):
    sentences = [(0.9, " Ninth. "), (0.1, " First. "), (0.5, " Fifth. "), (0.5, " Sixth. ")]
    prompt = compose(
        context(PROSE, tokenizer=anyone), "an id", 500, sentences, " Which? ", "First", head="Read this: "
    )
    assert 490 <= len(prompt.ids) <= 500 and prompt.text.startswith("Read this: ")
    for (_, sentence), offset in zip(sentences, prompt.offsets, strict=True):
        assert prompt.text[offset:].startswith(sentence)
    assert sorted(prompt.offsets) == [prompt.offsets[index] for index in (1, 2, 3, 0)]
    assert prompt.offsets[3] == prompt.offsets[2] + len(" Fifth. ")
    prose = len(prompt.text) - sum(len(s) for _, s in sentences) - len("Read this:  Which? ")
    assert prompt.offsets[1] == pytest.approx(len("Read this: ") + 0.1 * prose, abs=40)
    whole = prompt.text
    for _, sentence in sentences:
        whole = whole.replace(sentence, "", 1)
    assert whole[len("Read this: ") : -len(" Which? ")] in PROSE + "\n\n" + PROSE


def test_prose_may_be_bounded_and_the_prompt_then_stays_short():
    where = context(PROSE, tokenizer=TOKENIZER)
    prompt = compose(where, "an id", 500, [(0.5, "needle")], "?", "!", most_prose=200)
    assert 198 + 8 <= len(prompt.ids) <= 200 + 8
    tight = compose(where, "an id", 150, [(0.5, "needle")], "?", "!", most_prose=200)
    assert 148 <= len(tight.ids) <= 150


def test_city_prose_has_150_tokens_less_than_the_length():
    (case,) = all_cases(
        "needle:variant=city,lengths=600,depths=0.5,trials=1", context(PROSE, tokenizer=Words())
    )
    form = FORMS["city"]
    others = form.head, form.sentence("Rome", "12")[0], form.ask(["Rome"])
    overhead = 1 + sum(len(Words().encode(part)) for part in others)
    assert overhead < 100 and abs(len(case.prompt) - (600 - 150 + overhead)) <= 4


def test_spans_are_exact_where_a_cut_changes_the_tokens_before_it():
    text = "The number of this is 12345. And of that, 7."
    for tokenizer in (Fickle(), TOKENIZER):
        prompt = Prompt((256, *tokenizer.encode(text)), text, (), tokenizer)
        for value in ("12345", "7", "The"):
            start = text.index(value)
            assert prompt.span(start, start + len(value)) == (1 + start, 1 + start + len(value))


def test_a_tokenizer_that_loses_the_value_is_one_sentence():
    class Lossy(ByteTokenizer):
        name = "lossy"

        def decode(self, ids):
            return super().decode(ids).replace("3", "")

    prompt = Prompt((256, *b"is 12345."), "is 12345.", (), Lossy())
    with pytest.raises(TextError, match="lossy does not give '12345' back"):
        prompt.span(3, 8)


def test_questions_list_what_they_ask_for():
    assert [listed(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    form = FORMS["magic"]
    assert form.ask(["oak"]) == " What is the magic word of oak? The magic word of oak is "
    assert (
        form.ask(["oak", "elm", "ash"])
        == " What are the magic words of oak, elm and ash? The magic word of oak is "
    )
    assert form.answer(["oak"], ["lu"]) == "lu"
    assert form.answer(["oak", "elm"], ["lu", "vi"]) == "lu.  The magic word of elm is vi. "
