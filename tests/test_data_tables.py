"""Parquet tables: read a few rows at a time, and bounded by what comes out of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from data_rows import LM_EVAL, refused
from harness_help import ROOT

from suites import data
from suites.data import convert, unpack
from suites.data.convert import converted
from suites.data.faults import DataError
from suites.data.imports import import_all


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


IMPORT = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from suites.data.faults import DataError
from suites.data.imports import import_all

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
try:
    import_all(Path(sys.argv[1]), [Path(sys.argv[2])])
except DataError as error:
    print(peak() - before, error)
"""


def refused_within(root: Path, path: Path) -> tuple[int, str]:
    """(bytes by which the memory of a process grew, its sentence) of an import in a process of its own."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not say how much memory a process had at most")
    arguments = [sys.executable, "-c", IMPORT, str(root), str(path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    grown, _, sentence = done.stdout.partition(" ")
    assert grown, done.stderr
    return int(grown), sentence


def shared(path: Path, text: str, rows: int, dense: bool) -> Path:
    """A table of piqa whose rows all share one text, which is stored once.

    Whoever reads it gets a copy for each row: `dense` from Arrow, otherwise where rows become Python's.
    """
    goal = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), [text])
    columns = {"goal": goal, "sol1": ["a"] * rows, "sol2": ["b"] * rows, "label": [0] * rows}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=not dense)
    return path


@pytest.mark.parametrize("dense", [False, True])
def test_a_bomb_is_one_sentence_long_before_it_is_unpacked(root, tmp_path, dense):
    """3 kB that are 800 MB of rows, and nothing in the table's head that says so."""
    path = shared(tmp_path / "piqa.parquet", "x" * 100_000, 8192, dense)
    assert path.stat().st_size < 10_000
    grown, sentence = refused_within(root, path)
    assert sentence == f"piqa.parquet unpacks to more than {unpack.RATIO} times its size; it was not taken.\n"
    assert grown < 100e6


@pytest.mark.parametrize("dense", [False, True])
def test_rows_that_share_a_very_long_text_are_read_one_by_one(root, tmp_path, dense):
    """One text of 8 MB in 64 rows: so many rows at a time as each may have all of it."""
    grown, sentence = refused_within(root, shared(tmp_path / "piqa.parquet", "x" * (8 << 20), 64, dense))
    assert "unpacks to more than" in sentence and grown < 250e6


def test_a_head_that_states_too_much_is_believed(root, tmp_path):
    """No row is read, however small the rest of it may be."""
    path = shared(tmp_path / "piqa.parquet", "x" * (200 << 20), 1, dense=True)
    grown, sentence = refused_within(root, path)
    assert "times its size" in sentence and grown < 100e6


def test_published_tables_and_files_are_held_to_the_same_limits(tmp_path, monkeypatch):
    """Also what is made of a file of the catalogue, whose checksum may not be known."""
    rows = [LM_EVAL["arc_easy"][0] | {"question": "why? " * 1000}] * 200
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "easy.parquet")
    assert len(list(converted("lm_eval/arc_easy", [tmp_path / "easy.parquet"]))) == 200
    for module in (unpack, convert):
        monkeypatch.setattr(module, "FREE", 1000)
    monkeypatch.setattr(unpack, "RATIO", 10)
    with pytest.raises(DataError, match="more than 10 times its size"):
        list(converted("lm_eval/arc_easy", [tmp_path / "easy.parquet"]))


def test_a_table_of_many_groups_comes_in_whole_and_in_order(root, tmp_path):
    rows = [LM_EVAL["piqa"][0] | {"goal": f"{n} {os.urandom(20).hex()}"} for n in range(1000)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), tmp_path / "piqa.parquet", row_group_size=130
    )
    assert [count for _, count in import_all(root, [tmp_path / "piqa.parquet"])] == [1000]
    assert data.json_rows(data.read(root / "lm_eval" / "piqa.jsonl"), "piqa") == rows


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pyarrow.array([float("nan")]), "A row cannot be written as JSON"),
        (pyarrow.array([b"\xff"]), "A row cannot be written as JSON"),
        (pyarrow.array([b"\xff"]).view(pyarrow.string()), "piqa.parquet cannot be read"),
        (pyarrow.array([1]), "line 1 of piqa.parquet has no goal that is a string"),
    ],
)
def test_a_table_that_holds_no_text(root, tmp_path, column, said):
    columns = {"goal": column, "sol1": ["a"], "sol2": ["b"], "label": [0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "piqa.parquet")
    assert said in refused(root, tmp_path / "piqa.parquet")
