"""Bad input ends in one sentence and the documented exit code; nothing is made, changed or lost by it.

Here: the words of a command, the files of a plan, texts, and folders of runs. Weights and checkpoints are
in test_bad_model.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from command_help import (
    DECODE,
    ENVIRONMENT,
    TINY,
    TRANSFORMER,
    ask,
    desk_with_a_run,
    look_at_own_weights_only,
    refused,
    save_own_weights,
)
from harness_help import one_sentence
from recorded_run import SMALL, write_run

import models
from harness.store import read_table, write_table


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    return desk_with_a_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "mamba", *DECODE], ["mamba", *models.names()]),
        (["--arch", "", *DECODE], ["Unknown architecture"]),
        (["--arch", "../transformer", *DECODE], ["Unknown architecture"]),
        (["--arch", "tova:bugdet=8", *DECODE], ["bugdet", "budget", "prompt"]),
        (["--arch", "tova:budget=-8", *DECODE], ["budget", "-8"]),
        (["--arch", "tova:budget=0", *DECODE], ["budget"]),
        (["--arch", "tova:budget=lots", *DECODE], ["budget", "int", "lots"]),
        (["--arch", "tova:budget", *DECODE], ["budget", "no value"]),
        (["--arch", "tova:budget=8,budget=9", *DECODE], ["budget", "twice"]),
        (["--arch", "yoco:mixer=mamba", *DECODE], ["mixer", "swa", "retention"]),
        (["--arch", "window:budget=4,sinks=4", *DECODE], ["sinks"]),
        ([*TRANSFORMER, "--suite", "mmlu"], ["mmlu", "decode", "needle", "pg19"]),
        ([*TRANSFORMER, "--suite", "decode:context=3"], ["context", "contexts", "batches"]),
        ([*TRANSFORMER, "--suite", "decode:contexts=0"], ["contexts"]),
        ([*TRANSFORMER, *DECODE, "--contexts", "32,x"], ["contexts", "x"]),
        ([*TRANSFORMER, *DECODE, "--batch", "-1"], ["batches"]),
        ([*TRANSFORMER, "--suite", "needle", "--contexts", "32"], ["--contexts", "decode"]),
        ([*TRANSFORMER, *DECODE, "--repeats", "0"], ["repeats"]),
        ([*TRANSFORMER, *DECODE, "--threads", "0"], ["threads"]),
        ([*TRANSFORMER, *DECODE, "--timeout-s", "-1"], ["timeout_s"]),
        ([*TRANSFORMER, *DECODE, "--timeout-s", "nan"], ["timeout_s"]),
        ([*TRANSFORMER, *DECODE, "--memory-limit-bytes", "-5"], ["memory_limit_bytes"]),
        ([*TRANSFORMER, *DECODE, "--prefill-chunk", "0"], ["prefill_chunk"]),
        ([*TRANSFORMER, *DECODE, "--dtype", "fp8"], ["fp8", "fp32", "bf16"]),
        ([*TRANSFORMER, *DECODE, "--device", "tpu"], ["tpu", "cpu", "cuda"]),
        ([*TRANSFORMER, *DECODE, "--device", "cuda:x"], ["cuda:x", "cuda:N"]),
        ([*TRANSFORMER, *DECODE, "--device", "cpu:0"], ["cpu:0", "cuda:N"]),
        (["demoo"], ["demoo", "demo"]),
        ([], ["demo", "--arch"]),
        ([*TRANSFORMER], ["--suite"]),
        (["none.toml"], ["none.toml"]),
        (["good"], ["good"]),
    ],
)
def test_a_wrong_word_is_named_beside_the_right_ones(desk, command, arguments, words):
    # Without --shape only where it is the point: else missing weights would speak first.
    shape = [] if "needle" in arguments or not arguments else TINY
    sentence = refused(desk, command, *arguments, *shape)
    assert all(word in sentence for word in words), sentence


def test_an_unknown_shape_names_the_known_ones(desk):
    sentence = refused(desk, "run", *TRANSFORMER, *DECODE, "--shape", "8b")
    assert "8b" in sentence and "tiny" in sentence and "13b" in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name = [", ["valid TOML"]),
        ('suites = ["decode"]', ["architectures"]),
        ('architectures = "tova"\nsuites = ["decode"]', ["architectures", "list"]),
        ('architectures = ["tova"]\nsuites = ["decode"]\nbudgets = 3', ["budgets", "repeats", "suites"]),
        ('architectures = ["tova"]\nsuites = ["decode"]\nrepeats = "3"', ["repeats", "int"]),
        ('architectures = ["tova"]\nsuites = ["decode"]\nshape = 3', ["shape", "str"]),
        ('architectures = ["tova"]\nsuites = ["decode"]\ntext = 3', ["text"]),
        ('architectures = ["tova"]\nsuites = ["decode"]\nname = "../up"', ["../up"]),
        ("architectures = []\nsuites = []", ["at least one"]),
        (b"name = '\xff'", ["valid TOML"]),
    ],
)
def test_a_wrong_plan_file_is_refused(desk, content, words):
    raw = content if isinstance(content, bytes) else content.encode()
    (desk / "mine.toml").write_bytes(raw)
    sentence = refused(desk, "run", "mine.toml", *TINY)
    assert "mine.toml" in sentence or "name" in sentence or "plan" in sentence or "must be" in sentence
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    "content", ["dim = [", "dim = 3\nheads = 2", "vocab = 9", 'vocab = "many"', "vocab = -1"]
)
def test_a_wrong_shape_file_is_refused(desk, content):
    (desk / "mine.toml").write_text(content)
    assert "mine" in refused(desk, "run", *TRANSFORMER, *DECODE, "--shape", "mine.toml")


def test_random_weights_are_not_marked(desk):
    sentence = refused(desk, "run", *TRANSFORMER, "--suite", "needle", *TINY)
    assert "random weights" in sentence and "needle" in sentence


def test_a_budget_in_bytes_that_nothing_fits_into_is_found_before_anything_runs(desk):
    sentence = refused(desk, "run", "--arch", "tova:budget_bytes=9", *DECODE, *TINY)
    assert "budget_bytes=9" in sentence and "too small" in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("transformer", "--tokenizer", "t.json"), "are for --model, and none is given"),
        (("lococo:budget=64", "--allow-pickle"), "are for --model, and none is given"),
        (
            ("lococo:budget=64", "--recipe", "official", "--sequences", str(10**12)),
            "--sequences must be at most",
        ),
        (("lococo:budget=64", "--recipe", "official", "--period", str(10**12)), "--period must be at most"),
    ],
)
def test_options_of_training_that_cannot_be_meant(desk, options, words):
    assert words in refused(desk, "train", *options, "--data", ".")


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_the_environments_fault(desk, device):
    """Only the worker may ask torch; its refusal reaches the user as the sentence, and no cell has a row."""
    done = ask("run", *TRANSFORMER, *DECODE, *TINY, "--device", device, "--out", "gpu")
    assert device in one_sentence(done, ENVIRONMENT)
    assert not list((desk / "gpu" / "cells").iterdir())


# --- text -----------------------------------------------------------------------------------------


@pytest.fixture
def text_plan(desk, monkeypatch) -> tuple[str, ...]:
    save_own_weights(desk)
    look_at_own_weights_only(monkeypatch)
    return ("run", *TRANSFORMER, "--suite", "pg19")


def test_text_that_is_not_utf8_names_file_and_offset(desk, text_plan):
    (desk / "book.txt").write_bytes(b"fine until h\xe9re")
    sentence = refused(desk, *text_plan, "--text", "book.txt")
    assert "book.txt" in sentence and "0xe9" in sentence and "12" in sentence


@pytest.mark.parametrize("name", ["gone.txt", "empty.txt", "folder"])
def test_text_that_is_not_there_is_refused(desk, text_plan, name):
    (desk / "empty.txt").touch()
    (desk / "folder").mkdir()
    assert name in refused(desk, *text_plan, "--text", name)


def test_a_text_that_nobody_would_read_is_refused(desk):
    (desk / "book.txt").write_text("A quiet evening by the harbour. " * 99)
    for option in ("--text", "--haystack"):
        assert "book.txt" in refused(desk, "run", *TRANSFORMER, *DECODE, *TINY, option, "book.txt")


def test_a_data_folder_without_books_is_not_passed_over(desk, text_plan, monkeypatch):
    monkeypatch.setenv("KVMARK_DATA", str(desk))
    assert "KVMARK_DATA" in refused(desk, *text_plan)


def test_a_text_that_is_too_short_is_found_before_anything_runs(tmp_path):
    from harness.plan import Plan
    from harness.runner import prepare
    from suites.text import TextError

    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(TextError, match="too short"):
        prepare(Plan("p", ("transformer",), ("needle:lengths=256",), text=str(tmp_path / "short.txt")))


def test_the_context_of_a_short_book_is_its_own_length(tmp_path):
    from harness.plan import Plan
    from harness.runner import prepare

    (tmp_path / "short.txt").write_text("abc")
    prepared = prepare(Plan("p", ("transformer",), ("pg19",), text=str(tmp_path / "short.txt")))
    assert [cell.axes for cell in prepared.cells] == [{"context": 3, "protocol": "stream"}]


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_an_out_that_cannot_be_made_is_refused(desk, out):
    (desk / "file").write_text("in the way")
    assert "file" in refused(desk, "run", *TRANSFORMER, *DECODE, *TINY, "--out", out)


@pytest.mark.parametrize(
    "manifest", ["{", "[]", "{}", '{"plan": {}, "created": "x", "run": "y"}', '{"plan": null}']
)
def test_a_folder_with_another_plan_keeps_everything(desk, manifest):
    (desk / "good" / "run.json").write_text(manifest)
    (desk / "good" / ".lock").touch()
    (desk / "good" / "telemetry").mkdir(exist_ok=True)
    sentence = refused(desk, "run", *TRANSFORMER, *DECODE, *TINY, "--out", "good")
    assert "good" in sentence and "--out" in sentence


def test_a_finished_run_without_its_journal_is_not_overwritten(tmp_path):
    """A committed run holds rows.parquet but no cells: running into it would lose its rows."""
    from harness.errors import UsageError
    from harness.plan import Plan, Settings
    from harness.runner import prepare, run

    (tmp_path / "rows.parquet").write_bytes(b"rows")
    prepared = prepare(Plan("p", ("transformer",), ("decode:contexts=32",), Settings("tiny")))
    with pytest.raises(UsageError, match="without its journal"):
        run(prepared, tmp_path)
    assert (tmp_path / "rows.parquet").read_bytes() == b"rows"


def test_report_on_what_is_no_run(desk):
    (desk / "empty").mkdir()
    (desk / "file").touch()
    for name in ("gone", "empty", "file"):
        assert name in refused(desk, "report", name, "--out", "page")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "run.json").write_text("{"), ["run.json"]),
        (lambda run: (run / "run.json").write_text('{"schema": 99}'), ["run.json", "99", "1"]),
        (lambda run: (run / "run.json").write_text("[]"), ["run.json"]),
        (lambda run: first_cell(run).write_bytes(first_cell(run).read_bytes()[:-40]), ["parquet"]),
        (lambda run: first_cell(run).write_bytes(b""), ["parquet"]),
        (lambda run: first_cell(run).write_text("not parquet"), ["parquet"]),
        (lambda run: foreign(first_cell(run)), ["parquet", "99", "1"]),
        (lambda run: cells_are(run, [{}]), ["run.json", "cells"]),
        (lambda run: cells_are(run, 5), ["run.json", "cells"]),
        (lambda run: cells_are(run, [{"key": "k", "architecture": "a", "suite": "s", "axes": 3}]), ["cells"]),
        (lambda run: lacking(first_cell(run), "suite"), ["parquet", "column suite"]),
        (lambda run: axes_are(first_cell(run), "[]"), ["axes"]),
        (lambda run: axes_are(first_cell(run), "{"), ["axes"]),
        (lambda run: axes_are(first_cell(run), None), ["axes"]),
    ],
    ids=[
        *("json", "version", "list", "truncated", "empty", "text", "schema"),
        *("cell", "cells", "place", "column", "axes", "axes json", "no axes"),
    ],
)
def test_report_and_comparison_of_a_damaged_run(desk, damage, words):
    damage(desk / "good")
    write_run(desk / "other", **{**SMALL, "telemetry": False})
    for command in ("report good --out page", "compare good other"):
        sentence = refused(desk, *command.split())
        assert all(word in sentence for word in words), sentence


def test_report_on_a_committed_run_without_its_rows(desk):
    """A committed run has no cells folder: then rows.parquet must be there."""
    for path in (desk / "good" / "cells").iterdir():
        path.unlink()
    (desk / "good" / "cells").rmdir()
    (desk / "good" / "rows.parquet").unlink(missing_ok=True)
    assert "rows.parquet" in refused(desk, "report", "good", "--out", "page")


def first_cell(run: Path) -> Path:
    return min((run / "cells").iterdir())


def cells_are(run: Path, cells: object) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"cells": cells}))


def lacking(path: Path, column: str) -> None:
    write_table(path, read_table(path).drop_columns([column]))


def axes_are(path: Path, text: str | None) -> None:
    table = read_table(path)
    column = pa.array([text] * len(table), pa.string())
    write_table(path, table.set_column(table.schema.get_field_index("axes"), "axes", column))


def foreign(path: Path) -> None:
    write_table(path, read_table(path).replace_schema_metadata({"kvmark_schema": "99"}))


def test_a_page_that_cannot_be_written(desk):
    (desk / "file").touch()
    assert "file" in refused(desk, "report", "good", "--out", "file/page")
