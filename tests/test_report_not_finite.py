"""Likelihoods that are no numbers: a text that a model could not score never makes its average better."""

from __future__ import annotations

import math

import pytest
from recorded_tasks import Told, case, write_cells

from harness.report import build, load_run, summary
from harness.report.all_numbers import numbers_section
from harness.report.books import book_section, book_table
from harness.report.groups import groups
from harness.report.language import by_position, language, language_sources
from harness.report.quality import quality_section

AXES = {"context": 100, "protocol": "tova"}
SUITE = "pg19:protocol=tova"
BROKEN = "The model's logits were not finite (first at token {} of 100)."


def pieces(book: str, *bits: float) -> list[dict]:
    """Pieces of a book, of 100 bytes each, at so many bits per byte; NaN: not finite."""
    rows = []
    for chunk, value in enumerate(bits):
        counts = {"num_bytes": 100, "num_tokens": 100, "num_words": 10}
        told = {} if math.isfinite(value) else {"message": BROKEN.format(chunk + 7)}
        for row in case(f"{book}/{chunk}", nll_nats=value * 100 * math.log(2), **counts):
            rows.append({**row, **told, "axes": {"book": book, "chunk": chunk}})
    return rows


def told(architecture: str, *books: list[dict]) -> Told:
    return Told(architecture, SUITE, AXES, [row for rows in books for row in rows], len(books))


def group_of(folder, cells):
    (group,) = groups(load_run(write_cells(folder, cells)))
    return group, language_sources(group)[0]


def line(table, architecture: str) -> dict:
    row = next(row for row in table.rows if row[0].text == architecture)
    return dict(zip((name.split("\n")[0] for name in table.columns), row, strict=True))


NAN, FULL = math.nan, told("transformer", pieces("a", 1, 1), pieces("b", 4, 4), pieces("c", 2, 2))
PARTLY = told("tova:budget=8", pieces("a", 2, 2), pieces("b", 4, NAN), pieces("c", 3, 3))
WHOLLY = told("window:budget=8", pieces("a", NAN, 1), pieces("b", math.inf, 1), pieces("c", NAN, 1))


class TestBooks:
    def test_a_book_with_one_broken_piece_is_left_out_whole(self, tmp_path):
        """Its other piece, and the bytes of the broken one, are in no sum; the difference is on two books."""
        group, source = group_of(tmp_path, [FULL, PARTLY])
        tova = line(book_table(group, source), "tova:budget=8")
        assert tova["bits/byte"].text == "2.500" and tova["texts"].text == "2"
        assert tova["bits/byte"].note.endswith("not finite in 1 of 3 texts")
        assert tova["difference to"].text == "+1.000"
        assert tova["token perplexity"].text == f"{2**2.5:.2f}"
        lines = language(group, source).set_index("architecture")
        assert lines.loc["tova:budget=8", "num_bytes"] == 400
        assert lines.loc["transformer", "spoilt"] == ""

    def test_an_architecture_without_any_finite_book_keeps_its_line(self, tmp_path):
        group, source = group_of(tmp_path, [FULL, WHOLLY])
        window = line(book_table(group, source), "window:budget=8")
        assert (window["bits/byte"].text, window["bits/byte"].note) == ("not finite", "3 of 3 texts")
        assert window["word perplexity"].text == "–"

    def test_alone_it_still_makes_a_page(self, tmp_path):
        run = write_cells(tmp_path / "run", [WHOLLY])
        page = build([run], tmp_path / "out").read_text(encoding="utf-8")
        assert "Language modelling, book by book" in page and ">nan<" not in page


class TestElsewhere:
    def test_the_verdict_compares_on_the_books_that_both_have(self, tmp_path):
        write_cells(tmp_path, [FULL, PARTLY, WHOLLY])
        verdict = summary(load_run(tmp_path))[0]
        shown = {row[0]: row[-2] for row in verdict.rows}
        assert shown["tova:budget=8"] == "2.500 (not finite in 1 of 3 texts · +1.000 on 2 texts)"
        assert shown["window:budget=8"] == "not finite (in 3 of 3 texts)"

    def test_the_chart_of_quality_leaves_it_out_and_says_so(self, tmp_path):
        group, _ = group_of(tmp_path, [FULL, PARTLY])
        section = quality_section(group, "x")
        assert "Not drawn on PG-19, tova: tova:budget=8, not finite in 1 of 3 texts." in section.notes
        assert [row[0].text for row in section.charts[0].table.rows] == ["transformer"]

    def test_all_numbers_say_why_once(self, tmp_path):
        group, _ = group_of(tmp_path, [FULL, WHOLLY])
        section = numbers_section(group)
        (note,) = [note for note in section.notes if note.startswith("Unknown")]
        assert "window:budget=8" in note and "(first at token 7 of 100)" in note
        ((_, table),) = [fold for fold in section.folded if "sums" in fold[0]]
        assert "not finite in 3 of 3 texts" in line(table, "window:budget=8")["bits/byte"].note


@pytest.mark.parametrize(("nats", "left"), [([64, NAN, 64], [0.0]), ([64, 64, 64], [0.0, 64.0, 128.0])])
def test_a_curve_ends_where_any_text_was_not_finite(tmp_path, nats, left):
    rows = pieces("a", 1) + pieces("b", 1)
    for book, values in (("a", nats), ("b", [64, 64, 64])):
        axes = {"book": book, "bucket": 64}
        for name, told_ in (("bucket_nll_nats", values), ("bucket_tokens", [64, 64, 64])):
            rows += [
                {"case": book, "metric": name, "value": float(value), "bin": bin, "axes": axes}
                for bin, value in enumerate(told_)
            ]
    group, source = group_of(tmp_path, [Told("transformer", SUITE, AXES, rows, 2)])
    curve, _ = by_position(group, source)
    assert curve["transformer"].dropna().index.tolist() == left
    assert book_section(group, "x")
