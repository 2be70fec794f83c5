"""Language modelling in the report: sums by book, intervals over books, protocols apart, curves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from recorded_tasks import Told, case, write_cells

from harness.report import build, load_run, summary
from harness.report.books import book_section, book_table
from harness.report.groups import groups
from harness.report.language import by_position, language, language_cases, language_sources
from harness.report.statistics import bootstrap

LN2 = math.log(2)
STREAM = {"context": 100, "protocol": "stream"}


def group_of(folder, cells):
    (group,) = groups(load_run(write_cells(folder, cells)))
    return group


def book(name: str, bits: float, num_bytes: float = 100.0, **more: float) -> list[dict]:
    """A book of so many bytes at so many bits each; a token per byte, a word per ten."""
    sums = {"nll_nats": bits * num_bytes * LN2, "num_bytes": num_bytes, "num_tokens": num_bytes}
    rows = case(f"pg19/{name}", **sums, num_words=num_bytes / 10, **more)
    return [{**row, "axes": {"book": name}} for row in rows]


def line(table, architecture: str) -> dict:
    row = next(row for row in table.rows if row[0].text == architecture)
    return dict(zip((name.split("\n")[0] for name in table.columns), row, strict=True))


class TestIntervals:
    def test_two_books_give_their_own_values(self, tmp_path):
        """Of two, a quarter of the draws are twice the first and a quarter twice the second."""
        cells = [
            Told("transformer", "pg19", STREAM, book("a", 2.0) + book("b", 3.0), 2),
            Told("tova:budget=8", "pg19", STREAM, book("a", 2.5) + book("b", 3.1, 100.0), 2),
        ]
        group = group_of(tmp_path, cells)
        table = book_table(group, language_sources(group)[0])
        tova = line(table, "tova:budget=8")
        assert (tova["bits/byte"].text, tova["bits/byte"].note) == ("2.800", "2.500 to 3.100")
        assert (tova["difference to"].text, tova["difference to"].note) == ("+0.300", "")  # too few for a t
        assert line(table, "transformer")["difference to"].text == "–"
        assert tova["token perplexity"].text == f"{2**2.8:.2f}" and tova["texts"].text == "2"

    def test_differences_are_over_books_that_both_scored(self, tmp_path):
        cells = [
            Told("transformer", "pg19", STREAM, book("a", 2.0) + book("b", 3.0), 2),
            Told("tova:budget=8", "pg19", STREAM, book("b", 3.5) + book("c", 9.0), 2),
        ]
        group = group_of(tmp_path, cells)
        difference = line(book_table(group, language_sources(group)[0]), "tova:budget=8")["difference to"]
        assert (difference.text, difference.note) == ("+0.500", "1 of 2 texts")

    def test_the_same_every_time_and_as_wide_as_theory_says(self):
        values = np.random.default_rng(3).normal(size=(400, 1))
        low, high = bootstrap(values, lambda sums: sums[0] / 400)
        assert (low, high) == bootstrap(values.copy(), lambda sums: sums[0] / 400)
        half = 1.96 * values.std() / 20
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
        assert all(map(math.isnan, bootstrap(values[:1], lambda sums: sums[0])))

    @pytest.mark.parametrize(("count", "said"), [(1, "One text:"), (4, "4 texts: an interval"), (5, None)])
    def test_few_books_are_said_to_mean_little(self, tmp_path, count, said):
        rows = [row for number in range(count) for row in book(f"b{number}", 2 + number / 10)]
        group = group_of(tmp_path, [Told("transformer", "pg19", STREAM, rows, count)])
        (section,) = book_section(group, "x")
        notes = [note for note in section.notes if "text" in note]
        assert (said is None and not notes) or (said and notes[0].startswith(said))


class TestSums:
    def test_pieces_are_summed_by_book(self, tmp_path):
        """Two pieces of one book are one case: a mean over pieces, or an interval over them, is another."""
        pieces = [
            {**row, "case": f"{name}/{chunk}", "axes": {"book": name, "chunk": chunk}}
            for name, parts in {"a": [(1.0, 300.0), (3.0, 100.0)], "b": [(2.5, 200.0)]}.items()
            for chunk, (bits, size) in enumerate(parts)
            for row in book(name, bits, size)
        ]
        cell = Told("transformer", "pg19:protocol=tova", {"context": 300, "protocol": "tova"}, pieces, 3)
        group = group_of(tmp_path, [cell])
        (source,) = language_sources(group)
        cases = language_cases(group, source).set_index("case")
        assert cases["num_bytes"].to_dict() == {"a": 400.0, "b": 200.0}
        assert cases.loc["a", "nll_nats"] == pytest.approx(600 * LN2)
        (total,) = language(group, source).to_dict("records")
        assert total["texts"] == 2 and total["bits_per_byte"] == pytest.approx(1100 / 600)
        bits = line(book_table(group, source), "transformer")["bits/byte"]
        assert (bits.text, bits.note) == ("1.833", "1.500 to 2.500")

    def test_protocols_are_never_pooled_and_always_named(self, tmp_path):
        """Even if one suite and one context had both."""
        cells = [
            Told("transformer", "pg19", {"context": 100, "protocol": name}, book("a", bits), 1)
            for name, bits in (("stream", 2.0), ("tova", 4.0))
        ]
        group = group_of(tmp_path / "run", cells)
        sources = language_sources(group)
        assert [source.protocol for source in sources] == ["stream", "tova"]
        (section,) = book_section(group, "x")
        shown = [(table.caption, line(table, "transformer")["bits/byte"].text) for table in section.tables]
        assert shown == [
            ("pg19: protocol stream, 100 tokens, on pg19:test.", "2.000"),
            ("pg19: protocol tova, 100 tokens, on pg19:test.", "4.000"),
        ]
        assert all("\ntova" in name for name in section.tables[1].columns[2:])
        (verdict,) = summary(load_run(tmp_path / "run"))
        assert "bits/byte\nPG-19, stream" in verdict.columns[-2]

    def test_official_words_only_where_all_books_have_them(self, tmp_path):
        whole = book("a", 2.0, num_words_official=8) + book("b", 2.0, num_words_official=12)
        part = book("a", 2.0, num_words_official=8) + book("b", 2.0)
        cells = [
            Told("transformer", "pg19", STREAM, whole, 2),
            Told("tova:budget=8", "pg19", STREAM, part, 2),
        ]
        group = group_of(tmp_path, cells)
        table = book_table(group, language_sources(group)[0])
        column = table.columns.index("word perplexity\nofficial word count\nstream")
        shown = [row[column].text for row in table.rows]
        assert shown == [f"{math.exp(400 * LN2 / 20):,.0f}", "–"]

    def test_blocks_without_their_first_tokens(self, tmp_path):
        rows = book("a", 2.0, block_nll_nats=30.0, block_tokens=20.0)
        group = group_of(tmp_path, [Told("transformer", "pg19", STREAM, rows, 1)])
        table = book_table(group, language_sources(group)[0])
        assert table.columns[-1] == "token perplexity\nwithout the first of each block\nstream"
        assert table.rows[0][-1].text == f"{math.exp(1.5):.2f}"

    def test_not_exercised_stands_beside_the_number(self, tmp_path):
        group = group_of(tmp_path, [Told("tova:budget=8", "pg19", STREAM, book("a", 2.0), 1, acted=0)])
        (section,) = book_section(group, "x")
        assert "not exercised" in line(section.tables[0], "tova:budget=8")["bits/byte"].note


class TestCurve:
    def rows(self, name: str, nats: list[float], tokens: list[float]) -> list[dict]:
        axes, rows = {"book": name, "bucket": 64}, book(name, 2.0)
        for metric, values in (("bucket_nll_nats", nats), ("bucket_tokens", tokens)):
            rows += [
                {"case": f"pg19/{name}", "metric": metric, "value": value, "bin": bin, "axes": axes}
                for bin, value in enumerate(values)
            ]
        return rows

    def test_sums_by_position(self, tmp_path):
        rows = self.rows("a", [64, 128, 30], [64, 64, 10]) + self.rows("b", [192, 32], [64, 32])
        group = group_of(tmp_path, [Told("transformer", "pg19:bucket=64", STREAM, rows, 2)])
        (source,) = language_sources(group)
        nats, whole = by_position(group, source)
        assert nats["transformer"].to_dict() == {0.0: 2.0, 64.0: pytest.approx(160 / 96), 128.0: 3.0}
        assert whole == 64.0
        (section,) = book_section(group, "x")
        (chart,) = section.charts
        assert [[entry.text for entry in row] for row in chart.table.rows] == [
            ["0", "2.000"], ["64", "1.667"], ["128", "3.000"],
        ]  # fmt: skip
        assert "All texts reach beyond 64 tokens" in chart.note

    def test_no_curve_without_buckets(self, tmp_path):
        run = write_cells(tmp_path / "run", [Told("transformer", "pg19", STREAM, book("a", 2.0), 1)])
        text = build([run], tmp_path / "out").read_text(encoding="utf-8")
        assert "by position" not in text and "Language modelling, book by book" in text


def test_no_language_no_part(tmp_path):
    cell = Told("transformer", "needle", {"length": 64, "depth": 0.5}, case("n", accuracy_strict=1))
    assert book_section(group_of(tmp_path, [cell]), "x") == []
