"""Examples before a question: how many rows they take, and that they are part of what was read."""

from __future__ import annotations

import json

import pytest
from lm_eval_help import Asking, plain

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from suites.data import DataError

#: A question is asked of `test`, and five are shown from `dev`, as of MMLU.
SHOWN = 5
TASK = """
task: capital
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, dev: {folder}/dev.jsonl}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Capital of {{{{land}}}}?"
doc_to_choice: [here, there]
doc_to_target: 0
metric_list: [{{metric: acc}}]
{more}
"""
WITHIN = [{"land": f"sample {number}"} for number in range(SHOWN)]
PLACES = {
    "a split of its own, in order": "fewshot_split: dev\nfewshot_config: {sampler: first_n}",
    "a split of its own, drawn": "fewshot_split: dev",
    "samples in the task": f"fewshot_config: {{samples: {json.dumps(WITHIN)}}}",
}


@pytest.fixture
def options(tmp_path):
    """Writes the task with `more` lines; returns the suite's options."""

    def write(more: str, test: int = 2) -> str:
        for name, count in (("test", test), ("dev", SHOWN)):
            rows = [json.dumps({"land": f"{name} {number}"}) for number in range(count)]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        (tmp_path / "tasks").mkdir(exist_ok=True)
        text = TASK.format(folder=tmp_path, cache=tmp_path / "datasets", more=more)
        (tmp_path / "tasks" / "capital.yaml").write_text(text)
        return f"tasks=capital,include={tmp_path / 'tasks'}"

    return write


def shown(options: str) -> list[str]:
    """The first prompt's lines."""
    plain(options).drive({"task": "capital"}, run := Asking())
    return bytes(run.calls[0][0].prompt[1:]).decode().split("\n\n")


@pytest.mark.parametrize("more", PLACES.values(), ids=PLACES.keys())
def test_every_row_of_a_split_of_its_own_can_be_shown(options, more):
    lines = shown(options(more) + f",shots={SHOWN}")
    assert len({line for line in lines if "test" not in line}) == SHOWN and lines[-1] == "Capital of test 0?"
    with pytest.raises(DataError, match="capital has 5 rows to show, too few for 6 examples[.]$"):
        plain(options(more) + f",shots={SHOWN + 1}").cells()


def test_a_question_is_not_among_its_own_examples(options):
    """Where what is asked is also what is shown, one row more is needed."""
    own = options("fewshot_split: test", test=4)
    lines = shown(own + ",shots=3")
    assert len(lines) == 4 and sum("test 0" in line for line in lines) == 1
    with pytest.raises(DataError, match="4 rows to show, too few for 4 examples besides the question"):
        plain(own + ",shots=4").cells()


def test_what_the_task_itself_wants_is_counted_too(options):
    with pytest.raises(DataError, match="too few for 9 examples"):
        plain(options("fewshot_split: dev\nnum_fewshot: 9")).cells()
    assert len(shown(options("fewshot_split: dev\nnum_fewshot: 4"))) == 5
    assert len(shown(options("fewshot_split: dev\nnum_fewshot: 0") + ",shots=9")) == 1, "it wants none"


@pytest.mark.parametrize(
    ("more", "asked", "differs"),
    [
        ("", ",shots=2", True),
        ("num_fewshot: 2", "", True),
        ("", "", False),
        ("num_fewshot: 0", ",shots=2", False),
    ],
)
def test_the_label_follows_the_rows_that_are_shown(options, tmp_path, more, asked, differs):
    spec = options(f"fewshot_split: dev\n{more}") + asked
    first = plain(spec).source()
    assert first == plain(spec).source()
    dev = tmp_path / "dev.jsonl"
    dev.write_text(dev.read_text().replace("dev 4", "dev four"))
    assert (plain(spec).source() != first) == differs
