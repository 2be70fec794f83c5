"""What was kept, counted on positions made by hand; and rows of files that were written before it was."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from harness.execute import execute
from harness.plan import Cell, Settings
from harness.retained import BINS, Retained, averaged, retained
from harness.rows import base_row, retained_rows
from harness.store import ADDED, ROWS_VERSION, SCHEMA, Row, read_table, write_rows, write_table
from suites.suite import Case
from suites.tokenizer import ByteTokenizer


def positions(*heads: list[int]) -> torch.Tensor:
    """(1,P,S) of one request."""
    return torch.tensor([list(heads)], dtype=torch.int32)


def only(state: torch.Tensor, seen: int) -> Retained:
    (found,) = retained({"3.attention": state}, [seen])
    return found


def test_a_window_keeps_the_newest_and_nothing_else():
    found = only(positions([9, 6, 7, 8]), 10)
    assert (found.layer, found.recent, found.first) == (3, 1.0, 0.0)
    assert found.ages == (0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0, 0, 0)


def test_newest_are_counted_against_what_is_held_not_against_slots():
    """Of three held tokens two are among the three newest; the empty slot counts for nothing."""
    found = only(positions([0, 9, -1, 8]), 10)
    assert found.recent == pytest.approx(2 / 3)
    assert found.first == 1
    assert found.ages == pytest.approx((1 / 3, 1 / 3, 0, 0, 0, 0, 0, 0, 0, 1 / 3))


def test_heads_that_hold_different_tokens_are_averaged():
    found = only(positions([0, 1], [8, 9]), 10)
    assert (found.recent, found.first) == (0.5, 0.5)
    assert found.ages == (0.25, 0.25, 0, 0, 0, 0, 0, 0, 0.25, 0.25)


@pytest.mark.parametrize("seen", [3, 7, 10, 11, 1000])
def test_bins_are_tenths_of_the_sequence_and_hold_every_kept_token(seen):
    held = sorted({0, seen // 3, seen - 1, max(seen - 2, 0)})[: seen - 1]
    found = only(positions([*held, -1]), seen)
    expected = [0.0] * BINS
    for position in held:
        expected[int(BINS * (seen - 1 - position) / seen)] += 1 / len(held)
    assert found.ages == pytest.approx(expected)
    assert sum(found.ages) == pytest.approx(1)


def test_what_lost_nothing_is_left_out():
    """A full cache, a request below the budget, an empty state; the long request beside them stays."""
    full = torch.tensor([[[0, 1, 2]], [[0, 2, 4]], [[-1, -1, -1]]], dtype=torch.int32)
    found = retained({"0.attention": full, "shared": full}, [3, 5, 0])
    assert [(one.layer, one.first) for one in found] == [(0, 1.0), (None, 1.0)]


def test_a_cell_has_the_mean_over_its_requests_per_layer():
    ages = (1.0,) + (0.0,) * 9
    old = ages[::-1]
    found = list(averaged([Retained(0, 1.0, 0.0, ages), Retained(0, 0.5, 1.0, old), Retained(1, 0, 1, old)]))
    assert len(found) == 2 * (2 + BINS)
    assert found[:4] == [
        ("retained_recent_share", 0.75, 0, None),
        ("retained_first_share", 0.5, 0, None),
        ("retained_age_share", 0.5, 0, 0),
        ("retained_age_share", 0.0, 0, 1),
    ]
    base = base_row("run", Cell("key", "tova", "pg19", {}), Settings())
    rows = list(retained_rows(base, [Retained(2, 0.5, 1.0, old)]))
    assert [(row.layer, row.bin, row.unit, row.phase) for row in rows[1:3]] == [
        (2, None, "share", "policy"),
        (2, 0, "share", "policy"),
    ]


def test_the_loop_reads_it_from_the_cache_under_test(network):
    """Window 6 with one sink: per layer the sink and the newest; a short request loses nothing."""
    net = network("window:budget=6,sinks=1", vocab=260)
    cases = [Case(f"c{i}", tuple(range(n)), forced=(1, 2)) for i, n in enumerate((19, 3))]
    _, readings = execute(net, cases, ByteTokenizer(), "cpu")
    assert [one.layer for one in readings.retained] == list(range(net.shape.num_layers))
    for one in readings.retained:
        assert (one.recent, one.first) == (pytest.approx(5 / 6), 1)
        # 20 tokens seen: ages 0..4 and 19, two to a bin.
        assert one.ages == pytest.approx([2 / 6, 2 / 6, 1 / 6, 0, 0, 0, 0, 0, 0, 1 / 6])
    full = network("transformer", vocab=260)
    assert execute(full, cases, ByteTokenizer(), "cpu")[1].retained == []


# --- rows of older versions ------------------------------------------------------------------------


def old_table(version: int) -> pa.Table:
    record = {name: value for name, value in vars(Row("r", "c", "a", "s", "m", 1.0, "u", step=3)).items()}
    fields = [field for field in SCHEMA if ADDED.get(field.name, 0) <= version]
    schema = pa.schema(fields, metadata={"kvmark_schema": str(version)})
    return pa.Table.from_pylist([{field.name: record[field.name] for field in fields}], schema=schema)


@pytest.mark.parametrize("version", range(1, ROWS_VERSION))
def test_older_rows_are_read_with_nulls(tmp_path, version):
    write_table(tmp_path / "old.parquet", old_table(version))
    write_rows(tmp_path / "new.parquet", [Row("r", "c", "a", "s", "m", 1.0, "u", layer=2, bin=0, answer="é")])
    old, new = (read_table(tmp_path / f"{name}.parquet") for name in ("old", "new"))
    assert old.schema.equals(new.schema, check_metadata=True) and max(ADDED.values()) == ROWS_VERSION
    assert pa.concat_tables([old, new]).select(["step", *ADDED]).to_pylist() == [
        {"step": 3} | dict.fromkeys(ADDED),
        {"step": None, "layer": 2, "bin": 0, "answer": "é", "validity_reasons": None},
    ]


def test_a_time_series_gets_no_columns_of_rows(tmp_path):
    series = pa.table({"t_s": [1.0]}).replace_schema_metadata({"kvmark_schema": "1"})
    write_table(tmp_path / "series.parquet", series)
    assert read_table(tmp_path / "series.parquet").column_names == ["t_s"]
