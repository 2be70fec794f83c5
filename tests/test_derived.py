"""What is derived from a run, where it stands, and that doing it twice changes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from harness_help import ROOT, TINY, Bench
from recorded_run import SMALL, write_run
from validity_help import MANIFEST, cell_rows, executions, frame, judged, number, samples, series

from harness import derived, sampler
from harness.report import load
from harness.report.load import TELEMETRY_COLUMNS, load_run
from harness.store import SCHEMA, StoreError, read_table, write_rows, write_table

MARKS = executions(("a", "b"))
SERIES = series(MARKS, samples(MARKS[-1][0] + 1))
TELEMETRY = SERIES.to_pandas()
ROWS = cell_rows("a") + cell_rows("b")


def test_derived_rows_stand_after_those_of_their_cell():
    rows = judged(ROWS, TELEMETRY)
    assert list(rows.columns) == SCHEMA.names
    assert list(rows["cell"].drop_duplicates()) == ["a", "b"]
    for cell in "ab":
        own = rows[rows["cell"] == cell]["metric"].isin(derived.DERIVED)
        assert own.any()
        assert own.is_monotonic_increasing
    assert {"prefill_j_per_token", "nvml_delta_decode_bytes", "e2e_tokens_per_s"} <= set(rows["metric"])


def test_a_derived_row_is_identified_like_its_cell_and_belongs_to_no_case():
    rows = judged(ROWS, TELEMETRY)
    (row,) = rows[(rows["metric"] == "prefill_j_per_token") & (rows["cell"] == "b")].to_dict("records")
    like = number("b")
    for name in ("run", "architecture", "suite", "axes", "device", "dtype", "batch", "machine", "replicate"):
        assert row[name] == getattr(like, name), name
    for name in ("case", "repeat", "step", "layer", "bin", "answer"):
        assert pd.isna(row[name]), name


def test_twice_is_once_and_the_input_stays():
    before = frame(ROWS)
    once = derived.complete(before, TELEMETRY, MANIFEST)
    pd.testing.assert_frame_equal(derived.complete(once, TELEMETRY, MANIFEST), once)
    pd.testing.assert_frame_equal(before, frame(ROWS))


def test_a_table_of_derived_rows_is_read_back_as_it_was(tmp_path):
    rows = judged(ROWS, TELEMETRY)
    write_table(tmp_path / "rows.parquet", derived.to_table(rows))
    table = read_table(tmp_path / "rows.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["value"].null_count == 0
    pd.testing.assert_frame_equal(table.to_pandas(), rows, check_dtype=False)


def test_a_cell_without_anything_is_left_alone():
    failed = number("c", "failure", float("nan"), status="oom", phase="prefill", message="no memory")
    rows = judged([*ROWS, failed], TELEMETRY)
    (row,) = rows[rows["cell"] == "c"].to_dict("records")
    assert (row["metric"], row["status"]) == ("failure", "oom")
    assert derived.complete(frame([]), TELEMETRY, MANIFEST).empty


def test_a_run_that_nobody_judged_is_judged_when_it_is_read(tmp_path):
    run = load_run(write_run(tmp_path / "run", **SMALL))
    assert set(run.rows["validity"].dropna()) <= {"valid", "suspect", "invalid"}
    assert run.rows["validity"].notna().any()
    assert "rss_delta_prefill_bytes" in set(run.rows["metric"])


def test_a_run_that_was_judged_is_taken_as_it_is(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", **SMALL)
    rows = load_run(run).rows
    write_table(run / "rows.parquet", derived.to_table(rows))
    for path in (run / "cells").iterdir():
        path.unlink()
    monkeypatch.setattr(load, "complete", lambda *_: pytest.fail("judged anew"))
    pd.testing.assert_frame_equal(load_run(run).rows, rows, check_dtype=False)


def test_telemetry_of_an_older_run_has_fewer_columns_and_is_read_like_todays(tmp_path):
    old = [name for name in sampler.COLUMNS if name not in ("foreign_gpu_processes", "memory_clock_hz")]
    earlier = tmp_path / "earlier.parquet"
    table = SERIES.select(old)
    write_table(earlier, table.replace_schema_metadata({"kvmark_schema": "1"}))
    mark = {"t_s": 99.0, "cell": "a", "phase": "idle", "architecture": "tova:budget=8"}
    sampler.write_telemetry(tmp_path / "j.parquet", "j", [earlier], [mark])
    found = read_table(tmp_path / "j.parquet")
    assert found.column_names == list(sampler.COLUMNS) == TELEMETRY_COLUMNS
    assert found["memory_clock_hz"].null_count == len(found) == len(TELEMETRY) + 1
    assert (
        judged(ROWS, table.to_pandas().reindex(columns=TELEMETRY_COLUMNS))["validity"].dropna() == "valid"
    ).all()


@pytest.fixture
def folder(tmp_path):
    """A run's folder before its tables are assembled: two cells, one job."""
    for cell in "ab":
        write_rows(tmp_path / "cells" / f"{cell}.parquet", cell_rows(cell))
    write_table(tmp_path / "telemetry" / "j.parquet", SERIES)
    (tmp_path / "run.json").write_text(json.dumps(MANIFEST), encoding="utf-8")
    return tmp_path


def test_tables_are_assembled_with_verdicts_and_cells_keep_what_was_measured(folder):
    from harness.runner import assemble

    cells = {path: path.read_bytes() for path in (folder / "cells").iterdir()}
    assemble(folder, ["a", "b"])
    first = (folder / "rows.parquet").read_bytes()
    rows = read_table(folder / "rows.parquet").to_pandas()
    assert {"valid"} == set(rows["validity"].dropna())
    assert rows.loc[rows["metric"] == "decode_j_per_token", "value"].notna().all()
    assemble(folder, ["a", "b"])
    assert (folder / "rows.parquet").read_bytes() == first
    assert cells == {path: path.read_bytes() for path in (folder / "cells").iterdir()}


def test_damaged_telemetry_costs_no_rows(folder):
    from harness.runner import assemble

    (folder / "telemetry" / "k.parquet").write_bytes(b"PAR1")
    assemble(folder, ["a", "b"])
    assert len(read_table(folder / "telemetry.parquet")) == len(TELEMETRY)
    (folder / "telemetry" / "j.parquet").write_bytes(b"PAR1")
    assemble(folder, ["a", "b"])
    rows = read_table(folder / "rows.parquet").to_pandas()
    assert (rows["metric"] == "prefill_s").sum() == 10
    assert rows.loc[rows["metric"] == "prefill_j_per_token", "message"].eq("No GPU was sampled.").all()
    with pytest.raises(StoreError):
        read_table(folder / "telemetry" / "j.parquet")


def test_a_telemetry_file_that_is_no_time_series_names_the_rest(folder):
    """Only the sampler's columns are kept of one that has more."""
    wider = SERIES.append_column("x", pa.nulls(len(TELEMETRY)))
    assert sampler.joined([wider]).column_names == list(sampler.COLUMNS)


def test_nothing_here_needs_torch():
    code = (
        "import sys, harness.derived, harness.validity.ledger, harness.report.load\n"
        "sys.exit(str({'torch', 'models', 'suites', 'pynvml'} & sys.modules.keys() or '') or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_committed_records_are_judged_and_no_cache_is_above_its_prediction():
    """The smallest of them; what an older record lacks is unknown and no reason."""
    run = load_run(Path(ROOT) / "results" / "reference" / "demo-cpu")
    assert run.rows["validity"].notna().sum() > 10_000
    assert derived.alarms(run.rows) == []
    reasons = {name for text in run.rows["validity_reasons"].dropna() for name in text.split("; ")}
    assert "token_counts" not in reasons


@pytest.mark.full
def test_a_real_run_is_judged_and_its_token_counts_are_those_asked_for(tmp_path):
    bench = Bench(tmp_path)
    done = bench.run(
        "run",
        *TINY[:-1],
        "4",
        "--arch",
        "transformer",
        "--arch",
        "tova:budget=16",
        "--out",
        "r",
        "--no-report",
    )
    assert done.code == 0, done.err
    rows = read_table(bench.cwd / "r" / "rows.parquet").to_pandas()
    counted = rows[rows["metric"].isin(["prompt_tokens", "new_tokens", "new_tokens_asked"])]
    values = counted.groupby(["cell", "metric"])["value"].agg(set).unstack()
    assert sorted(map(sorted, values["prompt_tokens"])) == [[32.0], [32.0], [64.0], [64.0]]
    assert (values["new_tokens"] == {3.0}).all()
    assert (values["new_tokens_asked"] == {3.0}).all()
    measured = rows[rows["value"].notna() & (rows["phase"] != "predicted")]
    assert set(measured["metric"][measured["validity"].isna()]) <= {"new_tokens_asked"} | derived.DERIVED
    reasons = {name for text in rows["validity_reasons"].dropna() for name in text.split("; ")}
    assert not reasons & {"token_counts", "live_above_predicted", "few_repeats"}
    assert set(rows.loc[rows["metric"] == "prefill_j_per_token", "message"].str.contains("CPU")) == {True}
    pd.testing.assert_frame_equal(load_run(bench.cwd / "r").rows, rows, check_dtype=False)
