"""The needle suite: single needles as they always were; depths, spans and lengths in anyone's tokens."""

from __future__ import annotations

import hashlib

import pytest
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

import suites
from models.spec import SpecError
from suites import Answer, Context
from suites.text import TextError
from suites.tokenizer import ByteTokenizer
from suites.words import EVALUATION_WORDS


@pytest.fixture(params=OTHERS)
def other(request, tmp_path):
    return OTHERS[request.param](tmp_path)


@pytest.mark.parametrize("length", [128, 256, 515])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_needle_prompt_has_its_length_and_the_needle_at_its_depth(length, depth):
    for case in all_cases(f"needle:lengths={length},depths={depth},trials=5", context(PROSE, PROSE[7:])):
        axes, target = case.axes, case.target
        # Every other character of the prose may have three bytes, so a cut can cost two tokens.
        assert length - 2 <= axes["prompt_tokens"] == len(case.prompt) <= length
        assert case.prompt[0] == TOKENIZER.bos and case.forced is None
        assert TOKENIZER.decode(case.prompt[axes["digits_start"] : axes["digits_end"]]) == target["values"][0]
        text = TOKENIZER.decode(case.prompt)
        needle = f" The secret number of {target['keys'][0]} is {target['values'][0]}. "
        question = (
            f" What is the secret number of {target['keys'][0]}? The secret number of {target['keys'][0]} is "
        )
        assert text.count(needle) == 1 and text.endswith(question)
        assert case.prompt[axes["depth_tokens"] :][: len(needle)] == tuple(needle.encode())
        prose_tokens = len(case.prompt) - 1 - len(needle) - len(question)
        assert abs(axes["depth_tokens"] - 1 - depth * prose_tokens) <= 2.5
        assert "�" not in text
        assert target["keys"][0] in EVALUATION_WORDS and target["values"][0][0] != "0"


@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_needle_is_exact_in_any_tokens(other, depth):
    """The prompt is the text, encoded whole; it ends where the answer begins, and is as long as asked for."""
    cases = all_cases(
        f"needle:lengths=300,depths={depth},trials=4", context(PROSE, PROSE[7:], tokenizer=other)
    )
    assert max(len(case.prompt) for case in cases) >= 299
    for case in cases:
        axes, number = case.axes, case.target["values"][0]
        start, ids = (() if other.bos is None else (other.bos,)), list(case.prompt)
        assert tuple(ids[: len(start)]) == start
        text = other.decode(ids)
        question = f"? The secret number of {case.target['keys'][0]} is"
        assert text.rstrip(" ").endswith(question)
        # What the model is to say next completes the text as the tokenizer itself would write it.
        whole = text.rstrip(" ") + " " + number
        assert other.encode(whole)[: len(ids) - len(start)] == ids[len(start) :]
        assert 297 <= axes["prompt_tokens"] == len(ids) <= 300
        needle = f" The secret number of {case.target['keys'][0]} is {number}. "
        assert text.count(needle) == 1
        digits = other.decode(ids[axes["digits_start"] : axes["digits_end"]])
        assert number in digits and len(digits) <= len(number) + 2
        for left, right in ((1, 0), (0, -1)):  # not a token less
            cut = other.decode(ids[axes["digits_start"] + left : axes["digits_end"] + right])
            assert number not in cut
        assert other.decode(ids[: axes["depth_tokens"]]) in text[: text.index(needle) + 1]
        prose = len(ids) - len(start) - len(other.encode(needle + needle))
        assert abs(axes["depth_tokens"] - len(start) - depth * prose) <= 45


def test_needle_trials_differ_and_do_not_depend_on_their_number():
    few = all_cases("needle:lengths=256,depths=0.5,trials=3", context(PROSE))
    many = all_cases("needle:lengths=256,depths=0.5,trials=30", context(PROSE))
    assert many[:3] == few
    assert (
        len({case.target["keys"][0] for case in many})
        == len({case.target["values"][0] for case in many})
        == 30
    )
    assert len({case.prompt[1:40] for case in many}) > 20


def test_needle_prose_runs_on_over_documents_and_ends_with_the_text():
    short = context(*(PROSE[start : start + 100] for start in range(0, 1000, 100)))
    assert all(len(case.prompt) > 500 for case in all_cases("needle:trials=2,lengths=512", short))
    with pytest.raises(TextError, match="too short"):
        all_cases("needle:trials=1,lengths=4096", short)
    with pytest.raises(TextError, match="needs text"):
        all_cases("needle:trials=1", Context(TOKENIZER, None))


@pytest.mark.parametrize(
    ("generated", "strict", "substring"),
    [
        ("{}", 1, 1),
        ("{}. The", 1, 1),
        ("7 {}", 0, 1),
        ("3{}", 0, 1),
        ("{}5", 0, 1),
        ("", 0, 0),
        ("35", 0, 0),
        ("secret", 0, 0),
    ],
)
def test_strict_is_the_first_integer_and_substring_anywhere(generated, strict, substring):
    suite = suites.load("needle:lengths=256,depths=0.5,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    score = suite.score(case, Answer((), (), generated.format(case.target["values"][0])))
    assert score == {"accuracy_strict": strict, "accuracy_substring": substring}


def test_the_default_is_what_it_always_was():
    """Committed results hold these ids; their prompts must stay those that were measured."""
    assert suites.canonical_spec("needle:needles=1,query=one,variant=number,spacing=given") == "needle"
    cases = all_cases("needle:lengths=256,trials=2", context(PROSE, PROSE[7:]))
    asked = [(c.id, c.prompt, c.max_new_tokens, c.stop, dict(c.axes), c.seed) for c in cases]
    found = hashlib.sha256(repr(asked).encode()).hexdigest()
    assert found == "6585e63c13dd6edd2eba6a37d50401a0406f30007dcebe4cd768f6abb5b65985"


# Depths


@pytest.mark.parametrize(
    ("spec", "depths"),
    [
        ("needle:depths=1.0+0.3+0.3", [0.3, 1.0]),
        ("needle:spacing=linear,num_depths=5", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("needle:spacing=sigmoid,num_depths=5", [0.0, 0.0759, 0.5, 0.9241, 1.0]),
    ],
)
def test_depths_are_given_or_spaced(spec, depths):
    cells = suites.load(f"{spec},lengths=512", context(PROSE)).cells()
    assert [cell["depth"] for cell in cells] == depths


@pytest.mark.parametrize("spacing", ["linear", "sigmoid"])
def test_a_grid_of_depths_is_ascending_and_symmetrical(spacing):
    suite = suites.load(f"needle:lengths=1024+512,spacing={spacing}", context(PROSE))
    cells = suite.cells()
    assert [cell["length"] for cell in cells] == [512] * 11 + [1024] * 11
    depths = [cell["depth"] for cell in cells[:11]]
    assert depths == sorted(set(depths)) and (depths[0], depths[5], depths[10]) == (0, 0.5, 1)
    assert all(low + high == pytest.approx(1) for low, high in zip(depths, reversed(depths), strict=True))
    inner = [b - a for a, b in zip(depths[1:-2], depths[2:-1], strict=True)]
    if spacing == "sigmoid":  # dense at the ends
        assert inner[0] < inner[1] < inner[3]
    else:
        assert max(inner) == pytest.approx(min(inner))


# Wrong options


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("needle:variant=colour", "number, city, magic, uuid, keyed"),
        ("needle:query=none", "one, all"),
        ("needle:needles=0", "1 to 64"),
        ("needle:distractors=-1", "0 to 256"),
        ("needle:spacing=cubic", "given, linear, sigmoid"),
        ("needle:num_depths=5", "spacing"),
        ("needle:spacing=linear,depths=0.5", "spacing"),
        ("needle:spacing=linear,num_depths=1", "2 to 101"),
        ("needle:variant=city,needles=4,query=all", "city"),
        ("needle:variant=city,distractors=3", "city"),
        ("needle:max_new=0", "1 or more"),
    ],
)
def test_wrong_options_are_one_sentence(spec, named):
    with pytest.raises(SpecError, match=named) as caught:
        suites.load(spec, context(PROSE))
    assert "\n" not in str(caught.value)


def test_needles_that_do_not_fit_are_one_sentence():
    with pytest.raises(TextError, match="256 tokens has no room for 8 hidden sentences and the question"):
        all_cases("needle:lengths=256,needles=8,trials=1", context(PROSE))
    with pytest.raises(TextError, match="128 tokens has no room for the needle and the question"):
        all_cases("needle:lengths=128,variant=uuid,trials=1", context(PROSE))


# Cost of generation


class Counting(ByteTokenizer):
    """Counts what it is given to encode."""

    characters = 0

    def encode(self, text):
        self.characters += len(text)
        return super().encode(text)


def test_a_prompt_is_not_encoded_again_for_each_candidate_of_a_cut():
    """A needle costs a few times its prompt, whatever its length; halving intervals would cost twenty."""
    text = PROSE * 8
    for length in (2000, 8000):
        tokenizer = Counting()
        cases = all_cases(f"needle:lengths={length},trials=2", context(text, tokenizer=tokenizer))
        assert tokenizer.characters <= 12 * sum(len(case.prompt) for case in cases)
