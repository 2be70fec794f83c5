"""What the suite lm_eval cannot do: one sentence each, before anything runs."""

from __future__ import annotations

import json

import pytest
from lm_eval_help import plain, write_rows, write_tasks

from models.spec import SpecError
from suites.data import DataError

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from suites.lm_eval_bridge import loading


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(write_rows(tmp_path / "data")))
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("tasks=", "different names"),
        ("tasks=piqa+piqa", "different names"),
        ("tasks=wikitext,local=true", "'wikitext' is not local; local are arc_challenge"),
        ("tasks=piqa,limit=0", "limit must be 1"),
        ("tasks=piqa,shots=-1", "0 or more"),
        ("tasks=piqa,max_length=1", "2 or more"),
    ],
)
def test_a_wrong_spec_is_one_sentence(options, named):
    with pytest.raises(SpecError, match=named):
        plain(options)


PIQA = {"goal": "a", "sol1": "b", "sol2": "c", "label": 1}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "Task piqa has no rows here"),
        (json.dumps({"goal": "a"}), "line 1 of lm_eval/piqa.jsonl is not an object with goal"),
        ("\n\n", "has no rows"),
        ("{", "line 1 of lm_eval/piqa.jsonl is not JSON"),
        (
            f"{json.dumps({**PIQA, 'more': 7})}\n{json.dumps({**PIQA, 'more': [7]})}",
            "rows of different kinds",
        ),
    ],
)
def test_wrong_rows_are_one_sentence(data, content, named):
    file = data / "lm_eval" / "piqa.jsonl"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=named) as caught:
        plain("tasks=piqa,local=true").cells()
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_do_is_one_sentence(folder, tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        plain(f"tasks=mine,include={tmp_path / 'none'}").cells()
    (folder / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="Task both cannot be loaded .FileNotFoundError"):
        plain(f"tasks=both,include={folder}").cells()
    (folder / "quote.yaml").write_text("task: [quote")
    with pytest.raises(DataError, match="quote.yaml cannot be read"):
        plain(f"tasks=quote,include={folder}").cells()


def test_without_lm_eval_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install 'lm-eval"):
        plain("tasks=piqa,local=true").source()
