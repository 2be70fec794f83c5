"""Needles of other forms and several of them: where they lie, what is asked, what is watched, what counts."""

from __future__ import annotations

import re

import numpy as np
import pytest
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

import suites
from harness.execute import execute
from suites import Answer
from suites.needles.draw import made_up_words, numbers, uuids
from suites.needles.forms import CITIES, FORMS, listed
from suites.training.recall import ITEM_FORMATS
from suites.words import EVALUATION_WORDS

VARIANTS = ("number", "city", "magic", "uuid", "keyed")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(params=["bytes", *OTHERS])
def anyone(request, tmp_path):
    """Every tokenizer, the bytes included."""
    return TOKENIZER if request.param == "bytes" else OTHERS[request.param](tmp_path)


def text_of(case, tokenizer=TOKENIZER) -> str:
    return tokenizer.decode(case.prompt)


# What is watched


@pytest.mark.parametrize(
    "options",
    [
        "variant=number",
        "variant=city,needles=3",
        "variant=magic",
        "variant=uuid,needles=2,query=all",
        "variant=keyed,needles=3,query=all",
    ],
)
def test_the_values_asked_for_are_watched_exactly(anyone, options):
    """In the order of the question; no token more than it takes to hold the value."""
    cases = all_cases(f"needle:{options},lengths=900,depths=0.3,trials=3", context(PROSE, tokenizer=anyone))
    for case in cases:
        values = case.target["values"]
        assert len(case.watched) == len(values)
        assert list(case.watched) == sorted(case.watched)
        assert case.watched[0] == (case.axes["digits_start"], case.axes["digits_end"])
        for value, (start, stop) in zip(values, case.watched, strict=True):
            assert value in anyone.decode(case.prompt[start:stop])
            assert value not in anyone.decode(case.prompt[start + 1 : stop])
            assert value not in anyone.decode(case.prompt[start : stop - 1])
        assert case.axes["depth_tokens"] < case.watched[0][0] < len(case.prompt) <= 900


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_answer_has_room_for_its_values(anyone, variant):
    """The prompt ends where they begin, and the limit lets all of the expected answer through."""
    for query, needles in (("one", 2), ("all", 3)):
        if (variant, query) == ("city", "all"):
            continue
        spec = f"needle:variant={variant},needles={needles},query={query},lengths=1400,depths=0.5,trials=2"
        for case in all_cases(spec, context(PROSE, tokenizer=anyone)):
            form, keys, values = FORMS[variant], case.target["keys"], case.target["values"]
            text = text_of(case, anyone).rstrip(" ")
            assert text.endswith(form.ask(keys).rstrip(" "))
            whole = anyone.encode(text + " " + form.answer(keys, values))
            assert len(whole) - len(case.prompt) + 1 <= case.max_new_tokens
            assert case.stop == (() if variant == "city" or query == "all" else (".",))


# Where needles lie


def offsets(case, form, text) -> list[int]:
    return [text.index(form.sentence(*pair)[0]) for pair in zip(*case.target.values(), strict=True)]


@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_one_of_several_is_asked_for_and_lies_at_the_depth(depth):
    for case in all_cases(
        f"needle:needles=4,lengths=1024,depths={depth},trials=6", context(PROSE, PROSE[7:])
    ):
        text, form = text_of(case), FORMS["number"]
        found = re.findall(r"The secret number of (\w+) is (\d{5})\. ", text)
        assert len(found) == len(dict(found)) == len({number for _, number in found}) == 4
        assert list(zip(*case.target.values(), strict=True))[0] in found and len(case.target["keys"]) == 1
        assert text.count(case.target["keys"][0]) >= 3 and text.endswith(form.ask(case.target["keys"]))
        lengths = [len(form.sentence(*pair)[0]) for pair in found]
        earlier = lengths[: found.index((case.target["keys"][0], case.target["values"][0]))]
        prose = len(case.prompt) - 1 - sum(lengths) - len(form.ask(case.target["keys"]))
        assert abs(case.axes["depth_tokens"] - 1 - sum(earlier) - depth * prose) <= 20
        assert len(case.prompt) >= 1022


def test_others_lie_anywhere_and_not_where_the_one_lies():
    cases = all_cases("needle:needles=5,lengths=1024,depths=0.5,trials=20", context(PROSE, PROSE[7:]))
    places = []
    for case in cases:
        text = text_of(case)
        mine = text.index(f"of {case.target['keys'][0]} is {case.target['values'][0]}")
        places += [m.start() - mine for m in re.finditer(r"of \w+ is \d{5}\. ", text) if m.start() != mine]
    assert len(places) == 80
    assert sum(place < -100 for place in places) > 20 and sum(place > 100 for place in places) > 20


def test_all_are_asked_for_from_the_depth_on_at_equal_distances():
    for depth, count in ((0.0, 4), (0.5, 2), (0.2, 8)):
        spec = f"needle:needles={count},query=all,lengths=2048,depths={depth},trials=2"
        for case in all_cases(spec, context(PROSE, PROSE[7:])):
            form, text = FORMS["number"], text_of(case)
            keys = case.target["keys"]
            assert text.endswith(
                f" What are the secret numbers of {listed(keys)}? The secret number of {keys[0]} is "
            )
            found = offsets(case, form, text)
            sentences = [len(form.sentence(*pair)[0]) for pair in zip(*case.target.values(), strict=True)]
            prose = len(text) - sum(sentences) - len(form.ask(keys))
            for index, place in enumerate(found):
                expected = (depth + index * (1 - depth) / count) * prose + sum(sentences[:index])
                assert abs(place - expected) <= 40


def test_distractors_have_the_same_form_and_are_never_asked_for():
    for variant, spec in (
        ("keyed", "variant=keyed"),
        ("keyed", "variant=keyed,distractors=32"),
        ("number", "needles=2,query=all,distractors=9"),
    ):
        for case in all_cases(f"needle:{spec},lengths=2500,depths=0.5,trials=2", context(PROSE)):
            form, text = FORMS[variant], text_of(case)
            pattern = re.escape(form.needle).replace(r"\{key\}", "([a-z]+)").replace(r"\{value\}", "([0-9]+)")
            found = re.findall(pattern, text)
            options = suites.options(f"needle:{spec}")
            assert len(found) == options.needles + options.num_distractors
            assert len(dict(found)) == len({value for _, value in found}) == len(found)
            assert set(zip(*case.target.values(), strict=True)) <= set(found)
            question = text[text.rindex(form.ask(case.target["keys"])) :]
            others = {key for key, _ in found} - set(case.target["keys"])
            assert not others & set(re.findall("[a-z]+", question))
    assert suites.options("needle:variant=keyed").num_distractors == 8
    assert suites.options("needle:variant=magic").num_distractors == 0


# Forms


def test_forms_are_what_they_are_called():
    for case in all_cases("needle:variant=uuid,lengths=512,depths=0.5,trials=9", context(PROSE)):
        assert UUID.fullmatch(case.target["values"][0])
    for case in all_cases("needle:variant=magic,lengths=512,depths=0.5,trials=9", context(PROSE)):
        assert re.fullmatch("[a-z]{6}", case.target["values"][0])
        assert case.target["keys"][0] in EVALUATION_WORDS


def test_no_training_data_contains_the_keyed_form():
    """Neither its sentence nor the bare pair of key and value, in any of the lists that we train on."""
    sentence, _ = FORMS["keyed"].sentence("tavoru", "12345")
    pairs = [f"{before}tavoru{between}12345{after}" for before, between, after in ITEM_FORMATS]
    assert not any(pair in sentence for pair in pairs)
    assert "secret number" not in sentence and "tavoru" not in EVALUATION_WORDS


def test_city_is_yocos_protocol():
    assert len(CITIES) == len(set(CITIES))
    (case, *_) = all_cases("needle:variant=city,lengths=1024,depths=0.5,trials=1", context(PROSE))
    form, text = FORMS["city"], text_of(case)
    assert text.startswith(form.head) and case.max_new_tokens == 20 and case.stop == ()
    sentence, _ = form.sentence(case.target["keys"][0], case.target["values"][0])
    prose = len(case.prompt) - 1 - len(form.head + sentence + form.ask(case.target["keys"]))
    assert 1024 - 160 - 150 <= prose <= 1024 - 150
    many = all_cases("needle:variant=city,lengths=600,depths=0.5,trials=300", context(PROSE))
    drawn = [int(case.target["values"][0]) for case in many]
    assert 1 <= min(drawn) < 2000 and 48_000 < max(drawn) <= 50_000
    assert sorted(map(int, form.values(np.random.default_rng(0), 50_000))) == list(range(1, 50_001))


def test_of_several_cities_the_last_before_the_depth_is_asked_for():
    before = []
    for case in all_cases("needle:variant=city,needles=4,lengths=2048,depths=0.5,trials=30", context(PROSE)):
        text, mine = text_of(case), case.target["keys"][0]
        named = re.findall(r"magic number of the city of (\w+) is \d+ \.", text)
        assert len(set(named)) == 4
        place = named.index(mine)
        before.append(place + 1)
        places = [m.start() for m in re.finditer(r"magic number of the city of \w+ is \d+ \.", text)]
        middle = len(text) // 2
        assert places[place] < middle + 200 and (places[place + 1] > middle - 200)
    assert set(before) == {1, 2, 3}


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_it_is_the_last_of_those_before_the_depth_where_several_stand_together(anyone, depth):
    """At depth 0 those before it have no prose between them, at depth 1 those behind it."""
    where, before = context(PROSE, PROSE[7:], tokenizer=anyone), []
    for case in all_cases(f"needle:variant=city,needles=4,lengths=1024,depths={depth},trials=12", where):
        text = text_of(case, anyone)
        parts = re.split(r"\nThe magic number of the city of (\w+) is (\d+) \.\n", text)
        prose, named, values = parts[::3], parts[1::3], parts[2::3]
        assert len(set(named)) == len(named) == 4
        prose[0] = prose[0][prose[0].index(FORMS["city"].head) + len(FORMS["city"].head) :]
        prose[-1] = prose[-1].partition("\nWhat is the magic")[0]
        sizes = [len(anyone.encode(part)) for part in prose]
        asked = named.index(case.target["keys"][0])
        assert values[asked] == case.target["values"][0] and asked < 3
        if depth == 0:
            assert not any(prose[: asked + 1]) and all(prose[asked + 1 :])
        elif depth == 1:
            assert all(prose[: asked + 2]) and not any(prose[asked + 2 :])
        else:
            half = sum(sizes) / 2 + 9  # parts by themselves may have a few tokens more
            assert sum(sizes[: asked + 1]) <= half and sum(sizes[asked + 2 :]) <= half
        start = case.watched[0][0]
        assert case.axes["depth_tokens"] < start and values[asked] in anyone.decode(case.prompt[start:])
        before.append(asked + 1)
    assert len(set(before)) > 1


def test_notes_say_what_is_odd_in_yocos_protocol():
    def notes(options):
        return suites.load(f"needle:{options}", context(PROSE)).notes()

    one, four = notes("variant=city")["protocol"], notes("variant=city,needles=4")["protocol"]
    for told in (one, four):
        assert "YOCO" in told and "official score is the substring (accuracy_substring)" in told
        assert "20 tokens are generated" in told and "150 tokens less" in told
    assert "1 to 3 needles before it, the last of them asked for" in four and "depth_tokens" in four
    assert "cut" not in one, "a single needle lies at the depth"
    assert "7 tokens are generated" in notes("variant=city,max_new=7")["protocol"]
    assert "protocol" not in notes("variant=number")


@pytest.mark.parametrize(
    ("variant", "answer", "strict", "substring"),
    [
        ("magic", "{}.", 1, 1),
        ("magic", "the word {}", 0, 1),
        ("magic", "{}s", 0, 1),
        ("uuid", "{}", 1, 1),
        ("uuid", "{}, as said", 1, 1),
        ("uuid", "{}0", 0, 1),
        ("city", "{} .", 1, 1),
        ("city", "7{}", 0, 1),
        ("keyed", "{} pieces", 1, 1),
        ("keyed", "no pieces", 0, 0),
    ],
)
def test_one_value_is_scored_strictly_and_as_a_substring(variant, answer, strict, substring):
    suite = suites.load(f"needle:variant={variant},lengths=900,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    score = suite.score(case, Answer((), (), answer.format(case.target["values"][0])))
    assert score == {"accuracy_strict": strict, "accuracy_substring": substring}


@pytest.mark.parametrize(
    ("said", "any_", "all_", "mean"),
    [
        ("{0}, {1}, {2} and {3}", 1, 1, 1.0),
        ("{3}. {0} {2} {1}", 1, 1, 1.0),
        ("{2} and {2}", 1, 0, 0.25),
        ("{0}. {1}5 {2}", 1, 0, 0.5),
        ("none", 0, 0, 0.0),
        ("", 0, 0, 0.0),
    ],
)
def test_of_all_values_any_all_and_mean_are_apart(said, any_, all_, mean):
    suite = suites.load("needle:needles=4,query=all,lengths=900,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    score = suite.score(case, Answer((), (), said.format(*case.target["values"])))
    assert score == {"accuracy_any": any_, "accuracy_all": all_, "accuracy_mean": mean}


# Drawing


def test_draws_are_distinct_and_do_not_depend_on_how_many_are_wanted():
    for draw in (made_up_words, numbers, uuids):
        few, many = (draw(np.random.default_rng(5), count) for count in (10, 3000))
        assert many[:10] == few and len(set(many)) == 3000
        assert draw(np.random.default_rng(6), 10) != few


def test_cases_of_other_needles_are_other_cases():
    changes = [f",variant={variant}" for variant in VARIANTS[1:]]
    changes += ["", ",needles=2", ",needles=2,query=all", ",distractors=1", ",variant=keyed,distractors=2"]
    where = context(PROSE)
    cases = [c for change in changes for c in all_cases(f"needle:lengths=600,trials=2{change}", where)]
    assert len({case.id for case in cases}) == len({case.seed for case in cases}) == len(cases)
    assert len({case.prompt for case in cases}) == len(cases)


# Through the cache


@pytest.mark.parametrize("options", ["variant=keyed,needles=2,query=all,distractors=4", "variant=uuid"])
def test_needles_run_through_the_cache_and_are_watched_there(network, options):
    """A full cache holds every value to the end; a window of 40 tokens none that lies early."""
    suite = suites.load(f"needle:{options},lengths=400,depths=0.2,trials=2,max_new=4", context(PROSE))
    cases = list(suite.cases({"length": 400, "depth": 0.2}))
    for spec, held in (("transformer", 1.0), ("window:budget=40", 0.0)):
        answers, readings = execute(network(spec, vocab=260), cases, TOKENIZER, "cpu")
        for case, answer, found in zip(cases, answers, readings.held, strict=True):
            assert len(answer.tokens) <= 4 and set(suite.score(case, answer).values()) <= {0.0, 0.5, 1.0}
            shares = {(one.span, one.phase): one.share for one in found}
            assert {span for span, _ in shares} == set(range(len(case.watched)))
            assert {phase for _, phase in shares} == {"prefill", "generate"}
            assert shares[0, "prefill"] == shares[0, "generate"] == held
