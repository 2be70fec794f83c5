"""Rows of lm-eval's tasks have the types of the hub's tables, wherever they come from, or are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_rows import LM_EVAL, jsonl, refused
from lm_eval_help import plain, write_rows
from lm_eval_help import rows as invented

from suites.data.faults import DataError
from suites.data.imports import import_all
from suites.suite import Answer

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from suites.lm_eval_bridge import local


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The user's folder, with rows of every task; the cache folder is empty."""
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path / "data")))
    return tmp_path / "data" / "lm_eval"


CHOICES = {"text": ["soil", "water"], "label": ["A", "B"]}
WRONG = [
    ("piqa", {"goal": 1}, "has no goal that is a string"),
    ("piqa", {"sol2": None}, "has no sol2 that is a string"),
    ("piqa", {"label": 0.0}, "has no label that answers it"),
    ("piqa", {"label": "00"}, "has no label that answers it"),
    ("boolq", {"passage": ["p"]}, "has no passage that is a string"),
    ("boolq", {"label": "true"}, "has no label that answers it"),
    ("hellaswag", {"ctx_b": None}, "has no ctx_b that is a string"),
    ("hellaswag", {"ctx": 3}, "has no ctx that is a string"),
    ("hellaswag", {"endings": "abcd"}, "has no endings that are a list of strings"),
    ("hellaswag", {"endings": [1, 2, 3, 4]}, "has no endings that are a list of strings"),
    ("hellaswag", {"label": True}, "has no label that answers it"),
    ("arc_easy", {"choices": ["soil"]}, "has no choices that are two lists of strings"),
    ("arc_easy", {"choices": CHOICES | {"text": [1, 2]}}, "has no choices that are two lists of strings"),
    ("arc_challenge", {"choices": CHOICES | {"label": [1, 2]}}, "has no choices that are two lists"),
    ("arc_challenge", {"question": {}}, "has no question that is a string"),
    ("winogrande", {"option1": 7}, "has no option1 that is a string"),
    ("winogrande", {"sentence": ["_ ran"]}, "has no sentence that is a string"),
    ("lambada_openai", {"text": ["two words"]}, "has no text that answers it"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "fields", "said"), WRONG)
def test_a_field_of_another_type_is_refused_in_both_places(data, tmp_path, task, fields, said):
    raw = jsonl([LM_EVAL[task][0], LM_EVAL[task][0] | fields])
    (tmp_path / f"{task}.jsonl").write_bytes(raw)
    assert f"line 2 of {task}.jsonl {said}" in refused(tmp_path / "cache", tmp_path / f"{task}.jsonl")
    (data / f"{task}.jsonl").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        local.rows(task)
    assert f"row 2 of lm_eval/{task}.jsonl {said}" in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["label", "source"])
def test_what_only_python_calls_json_is_refused_in_both_places(data, tmp_path, number, field):
    raw = json.dumps(LM_EVAL["piqa"][0] | {field: "?"}).replace('"?"', number).encode()
    (tmp_path / "piqa.jsonl").write_bytes(raw)
    assert "line 1 of piqa.jsonl is not JSON" in refused(tmp_path / "cache", tmp_path / "piqa.jsonl")
    (data / "piqa.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=r"line 1 of lm_eval/piqa\.jsonl is not JSON"):
        local.rows("piqa")


def run(cases):
    """The shorter continuation is the likelier one."""
    return [Answer(case.forced, tuple(-1.0 for _ in case.forced), "", (False,)) for case in cases]


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize(
    ("task", "field", "other"),
    [
        ("piqa", "label", str),
        ("boolq", "label", str),
        ("boolq", "label", bool),
        ("hellaswag", "label", int),
        ("winogrande", "answer", int),
    ],
)
def test_an_answer_counts_however_it_is_written(data, tmp_path, monkeypatch, task, field, other, imported):
    """As the hub's table has it, and as a publisher may: the same rows, the same label, the same score."""
    usual = local.rows(task)["rows"].to_list()
    asked = f"tasks={task},local=true,bootstrap=0"
    before, source = plain(asked).drive({"task": task}, run), plain(asked).source()
    rows = [row | {"ctx": "c"} if task == "hellaswag" and imported else row for row in invented(task)]
    raw = jsonl([row | {field: other(row[field])} for row in rows])
    if imported:
        (tmp_path / f"{task}.jsonl").write_bytes(raw)
        import_all(tmp_path / "cache", [tmp_path / f"{task}.jsonl"])
        monkeypatch.delenv("KVMARK_DATA")
    else:
        (data / f"{task}.jsonl").write_bytes(raw)
    found = local.rows(task)["rows"].to_list()
    assert [row[field] for row in found] == [row[field] for row in usual]
    assert {type(row[field]) for row in found} == {type(usual[0][field])}
    assert plain(asked).drive({"task": task}, run) == before and before["acc"] > 0
    if rows == invented(task):
        assert found == usual and plain(asked).source() == source


def test_columns_that_are_of_two_types_are_refused(data):
    """Fields that no task looks at are kept, and Arrow has one type for each."""
    rows = [row | {"source": source} for row, source in zip(invented("piqa"), ["a", [7]], strict=False)]
    (data / "piqa.jsonl").write_bytes(jsonl(rows))
    with pytest.raises(DataError, match="rows of different kinds"):
        local.rows("piqa")
