"""What stands below the page: the statistics, the registry of metrics, the reading of run folders."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from recorded_run import SMALL, write_run

from harness.metrics import METRICS, metric
from harness.report import build, load_run
from harness.report.groups import groups, language, language_sources
from harness.report.statistics import language_totals, paired_difference_is_real, spread, wilson
from harness.store import StoreError, read_table, write_table


class TestStatistics:
    def test_wilson_is_the_published_interval(self):
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
        for (hits, trials), (low, high) in {
            (81, 263): (0.2553, 0.3662),
            (15, 148): (0.0624, 0.1605),
            (0, 20): (0.0, 0.1611),
            (1, 29): (0.0061, 0.1718),
        }.items():
            assert wilson(hits, trials) == pytest.approx((low, high), abs=5e-5)

    def test_wilson_at_the_ends(self):
        assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=5e-5)
        assert all(map(math.isnan, wilson(0, 0)))

    def test_language_is_sum_over_sum(self):
        cases = pd.DataFrame(
            {"nll_nats": [100.0, 900.0], "num_bytes": [100.0, 300.0], "num_tokens": [50, 150]}
        )
        totals = language_totals(cases)
        assert totals["bits_per_byte"] == pytest.approx(1000 / math.log(2) / 400)
        assert totals["token_ppl"] == pytest.approx(math.exp(1000 / 200))
        assert math.isnan(totals["word_ppl"])  # no words were counted: unknown, not a guess

    def test_a_group_has_the_sum_not_the_mean(self, tmp_path):
        (group,) = groups(load_run(write_run(tmp_path, **SMALL, suites=("pg19",))))
        (source,) = language_sources(group)
        rows = group.ok[(group.ok["architecture"] == "transformer") & (group.ok["suite"] == "pg19")]
        sums = rows.groupby("metric")["value"].sum()
        table = language(group, source).set_index("architecture")
        expected = sums["nll_nats"] / math.log(2) / sums["num_bytes"]
        assert table.loc["transformer", "bits_per_byte"] == pytest.approx(expected)
        per_book = rows.pivot(index="case", columns="metric", values="value")
        mean = (per_book["nll_nats"] / math.log(2) / per_book["num_bytes"]).mean()
        assert abs(expected - mean) > 0.01  # the fixture tells the two apart

    def test_decode_is_the_mean_of_a_repeat_then_the_median(self):
        rows = pd.DataFrame(
            {"value": [1.0, 5.0, 2.0, 2.0, 9.0, 9.0], "repeat": [0, 0, 1, 1, 2, 2], "replicate": [0] * 6}
        )
        assert spread(rows).median == 3.0 and spread(rows).n == 3

    def test_replicates_are_reduced_before_they_are_compared(self):
        rows = pd.DataFrame(
            {"value": [1.0, 1.0, 1.0, 5.0], "repeat": [0, 1, 2, 0], "replicate": [0, 0, 0, 1]}
        )
        assert (spread(rows).median, spread(rows).n) == (3.0, 2)

    def test_paired_difference(self):
        steady = {f"book-{n}": 10.0 + n for n in range(4)}
        assert paired_difference_is_real(steady, {k: v - 1 - 0.01 * v for k, v in steady.items()})
        assert not paired_difference_is_real(
            steady, {k: v + (-1) ** i for i, (k, v) in enumerate(steady.items())}
        )
        assert not paired_difference_is_real({"a": 1.0, "b": 1.0}, {"a": 9.0, "b": 9.0})  # two are too few


class TestMetrics:
    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("prefill_s", 0.01234, "12.3 ms"),
            ("prefill_s", 4.2e-5, "42.0 µs"),
            ("prefill_s", 0.99999, "1.00 s"),
            ("cache_bytes_live", 1 << 20, "1.00 MiB"),
            ("cache_bytes_live", 512, "512 B"),
            ("evicted_share", 0.5, "50.0 %"),
            ("decode_flops", 2.5e9, "2.50 GFLOP"),
            ("nll_nats", math.nan, "–"),
            ("load_s", None, "–"),
        ],
    )
    def test_format(self, name, value, text):
        assert METRICS[name].format(value) == text

    def test_unknown_metric_is_a_plain_number(self):
        assert metric("furlongs_run", "furlongs").unit == "furlongs"
        assert metric("furlongs_run").format(1234.5) == "1,234"

    def test_every_metric_has_a_unit_and_a_direction(self):
        assert all(entry.unit and entry.better in ("low", "high", None) for entry in METRICS.values())


class TestLoading:
    def test_missing_and_damaged_files_are_one_sentence(self, tmp_path):
        def sentence(folder: Path) -> str:
            with pytest.raises(StoreError) as error:
                load_run(folder)
            text = str(error.value)
            assert "\n" not in text and text.endswith(".")
            return text

        assert "not a run folder" in sentence(tmp_path / "nowhere")
        run = write_run(tmp_path / "run", **SMALL)
        first = sorted((run / "cells").iterdir())[0]
        whole = first.read_bytes()
        first.write_bytes(whole[: len(whole) // 2])
        assert first.name in sentence(run) and "Parquet" in sentence(run)
        first.write_bytes(whole)
        series = sorted((run / "telemetry").iterdir())[0]
        series.write_bytes(b"PAR1")
        assert series.name in sentence(run)
        shutil.rmtree(run / "telemetry")
        shutil.rmtree(run / "cells")
        assert "rows.parquet does not exist" in sentence(run)
        manifest = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(manifest | {"schema": 99}))
        assert "schema version 99" in sentence(run)
        (run / "run.json").write_text("{")
        assert "JSON" in sentence(run)

    def test_unfinished_cells_are_no_error(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL)
        files = sorted((run / "cells").iterdir())
        files[0].unlink()
        text = build([run], tmp_path / "out").read_text(encoding="utf-8")
        assert f"{len(files) - 1} of {len(files)} done: this run is not finished" in text

    def test_no_cell_yet(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL, telemetry=False)
        for file in (run / "cells").iterdir():
            file.unlink()
        assert "0 of" in build([run], tmp_path / "out").read_text(encoding="utf-8")

    def test_cells_of_older_code_are_ignored(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL)
        count = len(load_run(run).rows)
        first = sorted((run / "cells").iterdir())[0]
        shutil.copy(first, run / "cells" / "of-older-code.parquet")
        assert len(load_run(run).rows) == count

    def test_one_file_of_rows_is_the_same_run(self, tmp_path):
        run = write_run(tmp_path / "run", **SMALL)
        before = load_run(run).rows
        keys = [cell["key"] for cell in load_run(run).cells]
        tables = [read_table(run / "cells" / f"{key}.parquet") for key in reversed(keys)]
        write_table(run / "rows.parquet", pa.concat_tables(tables))
        shutil.rmtree(run / "cells")
        pd.testing.assert_frame_equal(load_run(run).rows, before)
