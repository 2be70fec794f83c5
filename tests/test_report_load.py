"""Which files of a run folder a page reads: the assembled ones, until something was finished after them."""

from __future__ import annotations

import json
import os

import pytest
from recorded_run import SMALL, write_run

from harness import derived
from harness.report import load_run
from harness.runner import assemble
from harness.store import read_table, write_table


@pytest.fixture
def finished(tmp_path):
    """(folder, keys of its cells, its assembled rows with a mark by which they are known)."""
    run = write_run(tmp_path / "run", **SMALL)
    keys = [cell["key"] for cell in json.loads((run / "run.json").read_text())["cells"]]
    before = load_run(run)
    assemble(run, keys)
    rows = read_table(run / "rows.parquet").to_pandas()
    assert not rows["validity"].isna().all()
    rows["message"] = "assembled"
    write_table(run / "rows.parquet", derived.to_table(rows))
    return run, keys, before


def is_assembled(run) -> bool:
    return (load_run(run).rows["message"] == "assembled").any()


def test_they_are_the_same_run(finished):
    run, _, before = finished
    after = load_run(run)
    assert is_assembled(run) and len(after.rows) == len(before.rows)
    assert list(after.rows["cell"]) == list(before.rows["cell"])
    assert list(after.rows["value"].dropna()) == list(before.rows["value"].dropna())
    assert len(after.telemetry) == len(before.telemetry)


def test_a_cell_that_was_finished_later_is_not_missed(finished):
    run, keys, _ = finished
    first, later = run / "cells" / f"{keys[0]}.parquet", (run / "rows.parquet").stat().st_mtime + 1
    os.utime(first, (later, later))
    assert not is_assembled(run)
    os.utime(first, (later - 10, later - 10))
    assert is_assembled(run)


def test_a_cell_that_is_not_in_it_is_not_missed(finished):
    run, keys, before = finished
    rows = read_table(run / "rows.parquet").to_pandas()
    write_table(run / "rows.parquet", derived.to_table(rows[rows["cell"] != keys[0]]))
    assert not is_assembled(run)
    assert list(load_run(run).rows["cell"]) == list(before.rows["cell"])
