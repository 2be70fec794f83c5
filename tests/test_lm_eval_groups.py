"""Groups of tasks: cells are their tasks, and the report makes of them what lm-eval makes of a group."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from lm_eval_help import measured, numbers, opened, plain, rows, suite, write_model, write_rows, write_tasks
from recorded_tasks import Told, write_cells

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")

from harness.report import build, load_run
from harness.report.grid import grid
from harness.report.groups import groups
from harness.report.lm_eval import columns, lm_eval_table
from harness.report.markdown import markdown
from suites.lm_eval_bridge import loading
from suites.workloads.lm_eval import _name

#: `every` has a group of the folder in it, one of its own, and a task that both have.
EVERY = """
group: every
task:
  - both
  - group: inner
    task: [quote, echo]
    aggregate_metric_list: {metric: exact_match, filter_list: strict-match}
aggregate_metric_list: [{metric: exact_match}, {metric: word_perplexity}, {metric: acc}]
"""


def run_folder(folder: Path, cells: list[Told], notes: dict[str, str]) -> Path:
    """A run of these cells whose manifest says what the suite says."""
    write_cells(folder, cells)
    told = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(told | {"suites": {cells[0].suite: notes}}))
    return folder


def made(folder: Path, architecture: str) -> dict[str, dict[str, float]]:
    """Group or task -> what the report says of it, by lm-eval's names."""
    (group,) = groups(load_run(folder))
    (spec,) = set(group.rows["suite"])
    told = json.loads(group.run.manifest["suites"][spec]["groups"])
    found: dict[str, dict[str, float]] = {}
    for column in columns(grid(group, spec, "task"), told):
        if number := column.numbers.get((architecture, ())):
            own = found.setdefault(column.header.partition("\n")[0], {})
            own[column.metric] = number.value
            if number.stderr is not None:
                own[f"{column.metric}_stderr"] = number.stderr
    return found


def plainly(result: dict) -> dict[str, float]:
    """A result of lm-eval's by the names that rows have."""
    named = {_name(key): value for key, value in result.items() if isinstance(value, int | float)}
    return {name: value for name, value in named.items() if name not in (None, "sample_len")}


def test_a_group_of_measured_tasks_has_simple_evaluates_numbers(tmp_path, monkeypatch):
    """Three tasks of unequal size on a checkpoint, nested, through the harness and through the report."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from harness.lm_eval_entry import KvmarkLM

    data = write_rows(tmp_path / "data")
    monkeypatch.setenv("KVMARK_DATA", str(data))
    for task, count in (("piqa", 11), ("boolq", 4), ("lambada_openai", 7)):
        lines = [json.dumps(row) for row in rows(task, count)]
        (data / "lm_eval" / f"{task}.jsonl").write_text("\n".join(lines))
    tasks, spec = tmp_path / "tasks", "tova:budget=16"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("""
group: mine
task:
  - piqa
  - {group: inner, task: [boolq, lambada_openai], aggregate_metric_list: {metric: acc, weight_by_size: false}}
aggregate_metric_list: [{metric: acc}, {metric: acc_norm}]
""")
    model = write_model(tmp_path / "model")
    of = opened(model)
    asked = suite(f"tasks=mine,local=true,include={tasks}", of)
    cells = [
        Told(spec, "lm_eval", {"task": task}, [{"metric": n, "value": v} for n, v in numbers(found).items()])
        for task, found in measured(spec, asked, of, model).items()
    ]
    manager = TaskManager(include_path=[str(loading.LOCAL_FOLDER), str(tasks)], include_defaults=False)
    told = simple_evaluate(KvmarkLM(spec, model=str(model)), tasks=["mine"], task_manager=manager)
    found = made(run_folder(tmp_path / "run", cells, asked.notes()), spec)
    assert told["groups"].keys() == {"mine", "mine::inner"}
    for name, result in told["groups"].items():
        assert len(plainly(result)) in (2, 4) and 0 < result["acc,none"] < 1
        assert found[name] == pytest.approx(plainly(result), rel=0, abs=1e-9)
    assert list(found) == ["piqa", "boolq", "lambada_openai", "mine::inner", "mine"], "behind their tasks"


@pytest.fixture
def nested(tmp_path):
    """(groups of lm-eval's, the suite's notes) of `every`."""
    folder = write_tasks(tmp_path)
    (folder / "echo.yaml").write_text("{include: quote.yaml, task: echo}")
    (folder / "every.yaml").write_text(EVERY)
    options = f"tasks=every,include={folder}"
    return loading.unfold(["every"], str(folder), False)[1], plain(options).notes()


GIVEN = {
    "chronicle": {"bits_per_byte,none": 1.25, "word_perplexity,none": 20.5, "sample_len": 3},
    "quote": {
        "exact_match,none": 0.5, "exact_match_stderr,none": 0.07, "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": 0.06, "sample_len": 40,
    },
    "echo": {
        "exact_match,none": 0.125, "exact_match_stderr,none": 0.03, "exact_match,strict-match": 0.75,
        "exact_match_stderr,strict-match": 0.2, "sample_len": 7,
    },
}  # fmt: skip


def cells_of(architecture: str, given: dict[str, dict], **more) -> list[Told]:
    return [
        Told(architecture, "lm_eval", {"task": task}, [
            {"metric": _name(key), "value": value} for key, value in told.items()
        ], **more)
        for task, told in given.items()
    ]  # fmt: skip


def test_given_numbers_are_averaged_as_lm_eval_averages_them(nested, tmp_path):
    """By size and not, a filter that is named and those that are found, a task in two groups, one without."""
    theirs, notes = nested
    found = made(run_folder(tmp_path / "run", cells_of("transformer", GIVEN), notes), "transformer")
    assert theirs.keys() == {"every", "both", "every::inner"}
    for name, group in theirs.items():
        assert found[name] == pytest.approx(plainly(group.aggregate(GIVEN)), rel=0, abs=1e-9), name
    assert found["every"].keys() == {
        "exact_match", "exact_match_stderr", "exact_match,strict-match", "exact_match,strict-match_stderr",
        "word_perplexity",
    }  # fmt: skip
    assert found["both"]["bits_per_byte_rolling"] == 1.25
    twice = (2 * 40 * 0.5 + 7 * 0.125) / 87
    assert found["every"]["exact_match"] == pytest.approx(twice), "quote is in both of its groups"


def test_no_standard_error_where_a_task_has_none(nested, tmp_path):
    theirs, notes = nested
    quote = {key: value for key, value in GIVEN["quote"].items() if "stderr" not in key}
    given = GIVEN | {"quote": quote}
    found = made(run_folder(tmp_path / "run", cells_of("transformer", given), notes), "transformer")
    assert found["every"] == pytest.approx(plainly(theirs["every"].aggregate(given)))
    assert not any("stderr" in name for name in found["every"])


def test_a_group_that_is_not_complete_has_no_number(nested, tmp_path):
    """A task that failed, one that is not done yet, one whose number is NaN, one that idled."""
    _, notes = nested
    without = {task: told for task, told in GIVEN.items() if task != "echo"}
    nan = GIVEN | {"echo": GIVEN["echo"] | {"exact_match,none": math.nan}}
    cells = [
        *cells_of("transformer", GIVEN),
        *cells_of("tova:budget=8", without, requests=10, acted=5),
        *cells_of("h2o:budget=8", without, requests=10, acted=0),
        Told("tova:budget=8", "lm_eval", {"task": "echo"}, status="oom"),
        *cells_of("window:budget=8", nan, requests=4, acted=1),
        *cells_of("random:budget=8", {task: told for task, told in GIVEN.items() if task != "chronicle"}),
    ]
    run = run_folder(tmp_path / "run", cells, notes)
    (group,) = groups(load_run(run))
    table = lm_eval_table(group, "lm_eval")
    heads = [name.replace("\n", " | ") for name in table.columns]
    every = heads.index("every | exact_match | 2 of 3 tasks, by size | n = 87")
    both = heads.index("both | exact_match | plain mean of 1 of 2 tasks | n = 40")
    shown = {row[0].text: (row[every].plain, row[both].plain) for row in table.rows}
    assert shown == {
        "transformer": ("47.0 % (± 4.6 %)", "50.0 % (± 7.0 %)"),
        "tova:budget=8": ("oom", "50.0 % (± 7.0 % · acted in 50 %)"),
        "h2o:budget=8": ("–", "50.0 % (± 7.0 % · not exercised)"),
        "window:budget=8": ("–", "50.0 % (± 7.0 % · acted in 25 %)"),
        "random:budget=8": ("–", "–"),  # quote's number alone is not the group's
    }


def test_page_and_terminal_show_groups(nested, tmp_path):
    _, notes = nested
    run = run_folder(tmp_path / "run", cells_of("transformer", GIVEN), notes)
    page = build([run], tmp_path / "out").read_text(encoding="utf-8")
    for text in (page, markdown(load_run(run)).replace("<br>", "<small>")):
        assert "every<small>exact_match" in text and "every::inner<small>exact_match,strict-match" in text
    assert "as lm-eval makes it" in page and "&quot;tasks&quot;: [&quot;chronicle" in page
    old = run_folder(tmp_path / "old", cells_of("transformer", GIVEN), {"protocol": "as ever"})
    page = build([old], tmp_path / "out").read_text(encoding="utf-8")
    assert "quote<small>exact_match" in page and "as lm-eval makes it" not in page


def test_what_has_no_number_of_its_own_is_not_told(tmp_path):
    """Single tasks, and groups that only gather."""
    folder = write_tasks(tmp_path)
    assert "groups" not in plain(f"tasks=quote,include={folder}").notes()
    (folder / "both.yaml").write_text("{group: both, task: [chronicle, quote]}")
    assert "groups" not in plain(f"tasks=both,include={folder}").notes()
