"""The suites: which Cases they yield, that these are always the same, and how answers are scored."""

import subprocess
import sys
from pathlib import Path

import pytest
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

import suites
from models.spec import SpecError
from suites import Answer, Context


@pytest.fixture(params=OTHERS)
def other(request, tmp_path):
    return OTHERS[request.param](tmp_path)


# Registry


def test_the_folder_is_the_registry():
    assert {"decode", "needle", "pg19"} <= set(suites.names())
    for name in suites.names():
        assert suites.docline(name).endswith(".")


def test_a_file_dropped_in_the_folder_is_a_suite():
    file = suites.FOLDER / "toy_of_this_test.py"
    try:
        file.write_text('"""A toy."""\nfrom ..suite import Suite\n\n\nclass Workload(Suite):\n    pass\n')
        assert "toy_of_this_test" in suites.names()
        assert suites.docline("toy_of_this_test") == "A toy."
        assert suites.load("toy_of_this_test", context("")).options == suites.Suite.Options()
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nedle", "needle"),
        ("needle:length=512", "lengths"),
        ("needle:trials=many", "trials"),
        ("needle:lengths=64", "128"),
        ("needle:depths=1.5", "between 0 and 1"),
        ("needle:trials=561", "560"),
        ("decode:new_tokens=0", "1 or more"),
        ("pg19:start=-1", "0 or more"),
    ],
)
def test_a_wrong_spec_is_one_sentence_naming_what_is_valid(spec, named):
    with pytest.raises(SpecError, match=named) as caught:
        suites.load(spec, context(PROSE))
    assert "\n" not in str(caught.value)


def test_options_are_typed_and_canonical():
    options = suites.options("needle:lengths=256+512,depths=0.5,trials=2")
    assert (options.lengths, options.depths, options.trials) == ((256, 512), (0.5,), 2)
    assert suites.canonical_spec("needle:trials=2,lengths=512+1024") == "needle:trials=2"


def test_suites_import_neither_torch_nor_the_harness():
    code = (
        "import sys, suites, suites.training.mix\n"
        "[suites.suite_class(name) for name in suites.names()]\n"
        "assert not {'torch', 'harness'} & set(sys.modules)"
    )
    root = Path(suites.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    "spec", ["decode:contexts=64", "needle:lengths=256,trials=2", "pg19:bytes_per_book=300"]
)
def test_cases_are_the_same_every_time_with_unique_ids(spec):
    cases = all_cases(spec, context(PROSE, PROSE[::-1]))
    assert cases == all_cases(spec, context(PROSE, PROSE[::-1]))
    assert len({case.id for case in cases}) == len(cases)
    assert len({case.seed for case in cases}) == len(cases)


def test_another_seed_gives_other_cases():
    for spec in ("decode:contexts=64", "needle:lengths=256,trials=2"):
        first, second = (all_cases(spec, context(PROSE, seed=seed)) for seed in (0, 1))
        assert not {case.id for case in first} & {case.id for case in second}
        assert not {case.prompt for case in first} & {case.prompt for case in second}


# decode


def test_decode_has_exact_lengths_in_ascending_size():
    suite = suites.load("decode:contexts=100+50,batches=3+1,new_tokens=8", Context(TOKENIZER, None))
    cells = suite.cells()
    assert [cell["context"] * cell["batch"] for cell in cells] == [50, 100, 150, 300]
    for cell in cells:
        cases = list(suite.cases(cell))
        assert len(cases) == cell["batch"]
        for case in cases:
            assert (len(case.prompt), len(case.forced), case.step_forced) == (cell["context"], 9, True)
            assert max(case.prompt + case.forced) < 256
    assert suite.score(case, Answer(case.forced, (0.0,) * 9)) == {}


def test_decode_draws_from_all_that_stands_for_text(other):
    cases = all_cases("decode:contexts=3000", Context(other, None))
    ids = set(cases[0].prompt)
    assert ids <= set(other.plain_ids) and len(ids) > 0.9 * len(other.plain_ids)
