"""RULER's tasks: what is hidden, what is asked, that answers and their places are right, how they score."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

import suites
from harness.execute import execute
from models.spec import SpecError
from suites import Answer, Context
from suites.text import TextError

NEEDLE = re.compile(r" A number kept for ([a-z]+) is (\d{5})\. ")
LINK = re.compile(r" The name ([a-z]+) stands for ([a-z]+|\d{5})\. ")


@pytest.fixture(params=["bytes", *OTHERS])
def anyone(request, tmp_path):
    """Every tokenizer, the bytes included."""
    return TOKENIZER if request.param == "bytes" else OTHERS[request.param](tmp_path)


def cases_of(options: str, tokenizer=TOKENIZER) -> list:
    return all_cases(f"ruler:{options}", context(PROSE, PROSE[7:], tokenizer=tokenizer))


def text_of(case, tokenizer=TOKENIZER) -> str:
    return tokenizer.decode(case.prompt)


def test_cells_are_lengths_by_tasks():
    cells = suites.load("ruler:lengths=600+300,tasks=vartrack+multikey", context(PROSE)).cells()
    assert cells == [{"length": n, "task": task} for n in (300, 600) for task in ("multikey", "vartrack")]
    assert len(suites.load("ruler", context(PROSE)).cells()) == 10


@pytest.mark.parametrize("task", ["multikey", "multivalue", "multiquery", "vartrack", "commonwords"])
def test_prompts_have_their_length_and_watched_spans_hold_the_answers(anyone, task):
    for case in cases_of(f"tasks={task},lengths=1500,trials=3", anyone):
        assert 1450 <= case.axes["prompt_tokens"] == len(case.prompt) <= 1500
        start = () if anyone.bos is None else (anyone.bos,)
        assert case.prompt[: len(start)] == start and case.forced is None
        text = text_of(case, anyone)
        assert len(set(case.target)) == len(case.target) and all(answer in text for answer in case.target)
        # What comes next completes the text as the tokenizer itself would write it, and has room.
        whole = anyone.encode(text.rstrip(" ") + " " + ", ".join(case.target))
        assert tuple(whole[: len(case.prompt) - len(start)]) == case.prompt[len(start) :]
        assert len(whole) - len(case.prompt) + 1 <= case.max_new_tokens
        assert len(case.watched) == (0 if task == "commonwords" else len(case.target))
        for answer, (first, last) in zip(case.target, case.watched, strict=False):
            assert answer in anyone.decode(case.prompt[first:last])
            assert answer not in anyone.decode(case.prompt[first + 1 : last])
            assert answer not in anyone.decode(case.prompt[first : last - 1])


@pytest.mark.parametrize(
    ("task", "keys", "values", "asked"),
    [("multikey", 5, 1, 1), ("multivalue", 1, 3, 3), ("multiquery", 2, 1, 2)],
)
def test_numbers_are_hidden_under_keys_and_asked_for(task, keys, values, asked):
    places = []
    for case in cases_of(f"tasks={task},lengths=1024,trials=8,keys=5,values=3,queries=2"):
        text = text_of(case)
        found = NEEDLE.findall(text)
        kept = Counter(key for key, _ in found)
        assert len(kept) == keys and set(kept.values()) == {values}
        question = text[text.rindex(" Which number") :]
        wanted = {key for key in kept if key in question.partition("?")[0]}
        assert len(wanted) == (1 if task != "multiquery" else 2)
        assert sorted(case.target) == sorted(number for key, number in found if key in wanted)
        assert len(case.target) == asked
        places += [match.start() / len(text) for match in NEEDLE.finditer(text)]
    assert min(places) < 0.25 and max(places) > 0.7, "depths are anywhere"


def test_names_stand_for_a_number_by_a_chain():
    for case in cases_of("tasks=vartrack,lengths=1200,trials=6,hops=3,chains=3"):
        text = text_of(case)
        stands: dict[str, str] = {}
        for name, other in LINK.findall(text):  # in the order of the text, a name is known before it is used
            stands[name] = stands.get(other, other)
        assert all(other.isdigit() for other in stands.values())
        assert list(Counter(stands.values()).values()) == [4, 4, 4]
        number = re.search(r" Which names stand for (\d{5}),", text).group(1)
        assert case.target == [name for name, other in stands.items() if other == number]


@pytest.mark.parametrize(("length", "often", "seldom"), [(1024, 6, 1), (4096, 30, 3)])
def test_common_words_are_the_commonest(length, often, seldom):
    for case in cases_of(f"tasks=commonwords,lengths={length},trials=2,common=7"):
        listing, _, question = text_of(case).partition("list of words: ")[2].partition(".")
        counts = Counter(listing.split())
        assert {word for word, count in counts.items() if count == often} == set(case.target)
        assert len(case.target) == 7 and set(counts.values()) == {often, seldom}
        assert "Which 7 words" in question and not set(case.target) & set(question.split())
        assert listing.split() != sorted(listing.split(), key=lambda word: -counts[word]), "in no order"


@pytest.mark.parametrize(
    ("said", "all_", "part"),
    [("{0} {1} {2} {3}", 1, 1.0), ("{3}, {0}", 0, 0.5), ("x{2}y", 0, 0.25), ("", 0, 0.0)],
)
def test_answers_count_where_they_occur(said, all_, part):
    suite = suites.load("ruler:tasks=multivalue,lengths=1024,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    answer = Answer((), (), said.format(*case.target))
    assert suite.score(case, answer) == {"ruler_all": all_, "ruler_part": part}


def test_upper_and_lower_case_are_alike():
    suite = suites.load("ruler:tasks=vartrack,hops=1,lengths=1024,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    first, second = case.target
    assert suite.score(case, Answer((), (), f"{first.upper()} and {second.title()}"))["ruler_all"] == 1


def test_cases_are_the_same_every_time_and_differ_from_each_other():
    cases = cases_of("lengths=1024,trials=3")
    assert cases == cases_of("lengths=1024,trials=3") and len({case.id for case in cases}) == 15
    assert len({case.prompt for case in cases}) == len({case.seed for case in cases}) == 15
    assert [case for case in cases_of("lengths=1024,trials=5") if case.id in {c.id for c in cases}] == cases
    assert not {c.id for c in cases} & {
        c.id for c in cases_of("lengths=1024,keys=5,values=5,queries=5,hops=5,common=9")
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("tasks=multikey+qa", "not qa"),
        ("lengths=100", "256"),
        ("hops=0", "1 to 1000"),
        ("trials=1001", "1 to 1000"),
        ("tasks=commonwords,needles=4", "tasks, lengths, trials, keys"),
    ],
)
def test_wrong_options_are_one_sentence(options, named):
    with pytest.raises(SpecError, match=named) as caught:
        suites.load(f"ruler:{options}", context(PROSE))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_one_sentence():
    for options, what in (
        ("tasks=commonwords,lengths=400", "10 common words and others"),
        ("tasks=multiquery,queries=20,lengths=512", "20 hidden sentences and the question"),
        ("tasks=multikey,keys=30,lengths=512", "30 hidden sentences and the question"),
        ("tasks=vartrack,chains=20,lengths=1024", "100 hidden sentences and the question"),
    ):
        with pytest.raises(TextError, match=f"no room for {what}"):
            cases_of(options)
    with pytest.raises(TextError, match="needs text"):
        all_cases("ruler:tasks=multikey", Context(TOKENIZER, None))


def test_all_tasks_run_through_the_cache(network):
    """Of what a case watches a full cache holds all; a window of 40 tokens hardly anything."""
    suite = suites.load("ruler:lengths=900,trials=1,common=4", context(PROSE))
    cases = [case for cell in suite.cells() for case in suite.cases(cell)]
    for spec, whole in (("transformer", True), ("window:budget=40", False)):
        answers, readings = execute(network(spec, vocab=260), cases, TOKENIZER, "cpu")
        shares = [one.share for found in readings.held for one in found]
        assert len({one.span for one in readings.held[1]}) == 4 and not readings.held[4]
        assert all(share == 1 for share in shares) if whole else sum(shares) < 0.2 * len(shares)
        for case, answer in zip(cases, answers, strict=True):
            assert set(suite.score(case, answer)) == {"ruler_all", "ruler_part"}
            assert 0 < len(answer.tokens) <= case.max_new_tokens
