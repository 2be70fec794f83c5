"""What stands below the page: the statistics, the registry of metrics, the reading of run folders."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from recorded_run import COLD_S, OTHER_TEXT, PG19_TEXT, SMALL, UNVERIFIED_TEXT, write_run

from harness.metrics import METRICS, metric
from harness.plan import Cell, Job
from harness.report import build, load_run, summary
from harness.report.groups import groups, not_exercised
from harness.report.language import is_pg19, language, language_sources
from harness.report.markdown import markdown
from harness.report.remarks import chunk_alerts
from harness.report.statistics import excludes_zero, language_totals, spread, student, wilson
from harness.report.verdict import by_context
from harness.show import plan_table, summary_table
from harness.store import SCHEMA, StoreError, read_table, write_table


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
        def apart(*differences: float) -> bool:
            columns = np.array([[difference, 1.0] for difference in differences])
            return excludes_zero(student(columns, lambda sums: sums[0] / sums[1]))

        assert apart(1.1, 1.11, 1.12, 1.13) and apart(-1.1, -1.11, -1.12)
        assert not apart(1.0, -1.0, 1.0, -1.0)
        assert not apart(8.0, 8.0)  # two are too few


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


def page_of(tmp_path: Path, **changes) -> tuple[Path, str]:
    run = write_run(tmp_path / "run", **{**SMALL, "telemetry": False, **changes})
    return run, build([run], tmp_path / "out").read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return page.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


class TestText:
    def test_only_checked_books_are_pg19(self):
        assert is_pg19(PG19_TEXT) and is_pg19("pg19:test@00unverified")  # the hash says nothing
        for label in (UNVERIFIED_TEXT, OTHER_TEXT, "file:pg19:test@00", "pg19@00", "", None):
            assert not is_pg19(label)

    def test_unverified_books_are_nowhere_headed_pg19(self, tmp_path):
        run, page = page_of(tmp_path, text=UNVERIFIED_TEXT)
        (found,) = summary(load_run(run))
        assert "bits/byte\nPG-19" not in "|".join(found.columns)
        assert "not PG-19: pg19:test-unverified" in "|".join(found.columns)
        assert any("pg19:test-unverified here, not PG-19" in note for note in found.notes)
        assert "not PG-19" in page.split("<main>")[0] and "Bits/byte on PG-19" not in page


class TestTimes:
    cold = METRICS["prefill_s"].format(COLD_S)

    def test_a_cold_execution_is_no_time(self, tmp_path):
        run, page = page_of(tmp_path, suites=("needle:trials=10", "pg19"))
        (found,) = summary(load_run(run))
        names = [column.split("\n")[0] for column in found.columns]
        assert "live cache" in names and not {"prefill", "decode step"} & set(names)
        for heading in ("Verdict", "Cost"):
            assert self.cold not in section(page, heading)
            assert "No times here: nothing was timed repeatedly" in section(page, heading)
        assert "Other processes used" not in page  # their load was read while the cold ones ran
        assert self.cold in section(page, "All numbers")

    def test_failed_timings_are_not_replaced_and_stay_visible(self, tmp_path):
        run, page = page_of(tmp_path, broken="decode")
        (found,) = summary(load_run(run))
        columns = [column.split("\n")[0] for column in found.columns]
        for name in ("prefill", "decode step"):
            assert {row[columns.index(name)] for row in found.rows} == {"oom"}
        assert "No times here: 4 of 4 timed cells failed" in "".join(found.notes)
        assert self.cold not in section(page, "Verdict") + section(page, "Cost")
        assert section(page, "Cost").split("<figure")[0].count(">oom<") == 4
        _, page = page_of(tmp_path / "alone", broken="decode", suites=("decode",))  # and no bytes either
        assert section(page, "Cost").count(">oom<") == 4 and ">oom<" in section(page, "Verdict")

    def test_failed_timings_stay_beside_bytes_of_another_suite(self, tmp_path):
        run, _ = page_of(tmp_path, broken="decode", suites=("decode", "pg19"))
        (group,) = groups(load_run(run))
        small = dict(by_context(group))[256.0]  # pg19 reports bytes at 512 alone
        assert small.columns[1].startswith("live cache")
        assert [row[1].text for row in small.rows] == ["oom", "oom"]

    def test_the_rate_of_a_batch_stands_beside_its_step(self, tmp_path):
        _, page = page_of(tmp_path, suites=("decode",), batches=(4,))
        assert "decode rate" in section(page, "Verdict") and "tok/s" in section(page, "Verdict")
        assert "Decode rate, batch 4" in section(page, "Cost")
        _, page = page_of(tmp_path / "one", suites=("decode",))
        assert "decode rate" not in section(page, "Verdict")


class TestManySpecs:
    def test_specs_that_are_not_shown_are_named(self, tmp_path):
        suites = ("decode:contexts=256", "decode:contexts=512", "needle:trials=10", "needle:trials=9")
        run, page = page_of(tmp_path, suites=suites)
        (found,) = summary(load_run(run))
        (note,) = [note for note in found.notes if note.startswith("Not shown here")]
        assert suites[1] in note and suites[3] in note
        assert suites[0] not in note and suites[2] not in note
        assert suites[1] in section(page, "Cost") and suites[3] not in section(page, "Cost")
        assert all(f"Every number of {suite}" in section(page, "All numbers") for suite in suites)

    def test_a_spec_that_failed_altogether_is_named_too(self, tmp_path):
        run = write_run(tmp_path, **SMALL, suites=("needle:trials=10", "needle:trials=9"))
        for cell in load_run(run).cells:
            if cell["suite"] == "needle:trials=10":
                path = run / "cells" / f"{cell['key']}.parquet"
                frame = read_table(path).to_pandas().assign(status="crash", metric="failure")
                write_table(path, pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False))
        (found,) = summary(load_run(run))
        assert any(note.startswith("Not shown here: needle:trials=10.") for note in found.notes)

    def test_one_spec_of_each_kind_needs_no_word(self, tmp_path):
        (found,) = summary(load_run(write_run(tmp_path, **SMALL)))
        assert not any("Not shown" in note or "No times" in note for note in found.notes)


class TestRemarks:
    def test_protocols_are_shown_where_the_run_tells_them(self, tmp_path):
        _, page = page_of(tmp_path, protocols=True)
        body = section(page, "Protocols")
        assert "<details>" in body and all(
            f"&lt;how&gt; {suite} asks" in body for suite in ("decode", "pg19")
        )
        _, page = page_of(tmp_path / "silent")
        assert "Protocols" not in page

    def test_the_start_of_the_weights_follows_the_verdict_everywhere(self, tmp_path, capsys):
        run = write_run(tmp_path, **SMALL)
        summary_table(run)
        assert "hand-set induction-head" in capsys.readouterr().out.split("└")[-1]
        lines = markdown(load_run(run)).splitlines()
        noted = [number for number, line in enumerate(lines) if "hand-set induction-head" in line]
        assert len(noted) == 1 and lines[noted[0] - 1] == "" and not lines[noted[0]].startswith("|")
        assert noted[0] > max(number for number, line in enumerate(lines) if line.startswith("|"))

    @pytest.mark.parametrize("notes", ["Hand-set start: 2 heads.", "No hand-set start.", ""])
    def test_figures_of_answers_say_it_and_no_others(self, tmp_path, notes):
        _, page = page_of(tmp_path, weights_notes=notes, suites=("decode", "needle:trials=10", "pg19"))
        figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
        said = [figure for figure in figures if "began with hand-set induction heads" in figure]
        answers = [figure for figure in figures if re.search(r'aria-label="(needle|Needle|Bits)', figure)]
        assert len(answers) == 4 and len(figures) > 4
        assert said == (answers if notes.startswith("Hand-set") else [])

    def test_a_peak_that_cannot_be_read_says_why(self, tmp_path):
        _, page = page_of(tmp_path, suites=("decode",))
        assert "Unknown here (peak, decode): no peak can be read here" in section(page, "All numbers")


def test_plan_table_asks_once_per_job_and_admits_what_nobody_knows(capsys):
    def job(name):
        return Job(name, (tuple(Cell(f"{name}-{n}", f"arch{n}", f"suite-{name}", {}) for n in range(2)),))

    jobs = [job("a"), job("b")]
    plan = SimpleNamespace(device_memory_bytes=None)
    prepared = SimpleNamespace(jobs=lambda done: jobs, text=None, cells=[None] * 4, plan=plan)
    asked = []

    def predict(job):
        asked.append(job.id)
        return (3 << 20, 5 << 10) if job.id == "a" else None

    plan_table(prepared, predict)
    known, unknown = [line for line in capsys.readouterr().out.splitlines() if "suite-" in line]
    assert asked == ["a", "b"]
    assert "3.00 MiB" in known and "5.00 KiB" in known and unknown.count("–") == 2


def test_a_text_without_a_word_has_no_word_perplexity():
    totals = language_totals(
        pd.DataFrame({"nll_nats": [np.float64(2.0)], "num_bytes": [1.0], "num_words": [0.0]})
    )
    assert math.isnan(totals["word_ppl"]) and totals["bits_per_byte"] > 0


def test_chunks_do_not_make_a_parallel_policy_one_that_had_nothing_to_do():
    rows = pd.DataFrame(
        {
            "family": "snapkv",
            "architecture": ["a", "b"],
            "context": 64,
            "prompt_mode": ["parallel, chunks of 8", "bulk, chunks of 8"],
            "requests_with_eviction": 0,
        }
    )
    assert not_exercised(rows) == {("b", 64)}


def test_chunks_are_named_where_they_are_another_algorithm():
    modes = {"full": "parallel, chunks of 8", "tova": "stepwise, chunks of 8", "h2o": "bulk, chunks of 8"}
    rows = pd.DataFrame({"architecture": list(modes), "prompt_mode": list(modes.values())})
    (said,) = chunk_alerts(SimpleNamespace(rows=rows, architectures=list(modes)))
    assert "chunks of 8 tokens" in said and "h2o (bulk)" in said and "tova" not in said and "full" not in said
    assert chunk_alerts(SimpleNamespace(rows=rows.assign(prompt_mode="bulk"), architectures=["h2o"])) == []
