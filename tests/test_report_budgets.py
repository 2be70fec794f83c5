"""Runs with many budgets of one policy: what is shown first, what over budgets, and which tokens to keep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_tasks import Told, case, write_cells

from harness.report import build, load_run, summary
from harness.report.budgets import budget_of, is_crowded, near, once, policy, rest, said, slices
from harness.report.by_budget import budget_section, bytes_section
from harness.report.groups import groups, needle_suites
from harness.report.kept import PAPER, equal_bytes_section, kept_section
from harness.report.measured import measures
from harness.report.verdict import headline

LN2 = math.log(2)
NEEDLE, KEYED = "needle:lengths=512+1024", "needle:lengths=1024,variant=keyed"
PIECES = {"context": 512, "protocol": "tova"}
BUDGETS = (64, 128, 512)
LOCOCO_BYTES = 40_000  # what `recorded_tasks` writes as live cache of whatever has a budget
#: Bits per byte by policy and budget; books differ by as much for all, so pairs tell more than intervals.
BITS = {"tova": 2.1, "window": 2.2, "random": 2.2, "h2o": 2.5}


def book(name: str, bits: float) -> list[dict]:
    rows = case(f"pg19/{name}", nll_nats=bits * 100 * LN2, num_bytes=100, num_tokens=100, num_words=10)
    return [{**row, "axes": {"book": name}} for row in rows]


def books(policy_: str, budget: int) -> list[dict]:
    """Five books; `random` is worse than the window on as many as it is better."""
    sway = (0.05, -0.05, 0.04, -0.04, 0.0) if policy_ == "random" else (0.0,) * 5
    bits = BITS[policy_] + 8 / budget
    return [row for n, s in enumerate(sway) for row in book(f"b{n}", bits + n / 5 + s)]


def needles(length: int, hits: int) -> list[dict]:
    rows = []
    for trial in range(10):
        rows += case(f"{length}-{trial}", accuracy_strict=trial < hits, accuracy_substring=trial < hits)
    return rows


def cells() -> list[Told]:
    specs = [
        "transformer",
        *(f"{p}:budget={b}" for p in ("tova", "window", "random", "h2o") for b in BUDGETS),
    ]
    found = [
        Told(spec, NEEDLE, {"length": length, "depth": 0.5}, needles(length, 10 - place % 7),
             acted=0 if "budget=512" in spec and length == 512 else None)
        for place, spec in enumerate(specs) for length in (512, 1024)
    ]  # fmt: skip
    found += [Told(spec, KEYED, {"length": 1024, "depth": 0.5}, needles(1024, 5)) for spec in specs]
    for spec in specs:
        name, _, budget = spec.partition(":budget=")
        own = books(name, int(budget)) if budget else [r for n in range(5) for r in book(f"b{n}", 2 + n / 5)]
        found.append(Told(spec, "pg19:protocol=tova,chunk=512", PIECES, own, requests=2))
    equal = {"lococo:budget=64": 2.0, f"window:budget_bytes={LOCOCO_BYTES}": 2.1, "h2o:budget_bytes=999": 2.1}
    for spec, bits in equal.items():
        rows = [row for n in range(5) for row in book(f"b{n}", bits + n / 5)]
        if spec.endswith("=999"):  # the median of a batch of two holds what it was given
            rows += [{"metric": "cache_bytes_live", "value": 2 * 999.0}] * 3
        found.append(Told(spec, "pg19:protocol=tova,chunk=512", PIECES, rows, requests=2))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    run = write_cells(tmp_path_factory.mktemp("crowd") / "run", cells())
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    manifest["architectures"] = {f"window:budget_bytes={LOCOCO_BYTES}": {"budget": 150}}
    manifest["weights"]["reference"]["trained_length"] = 512
    manifest["suites"] = {KEYED: {"training": "nobody was trained on the template"}}
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def group(folder):
    (found,) = groups(load_run(folder))
    return found


def texts(table) -> list[list[str]]:
    return [[entry.text for entry in row] for row in table.rows]


class TestWhichAreShown:
    def test_policies_are_specs_without_their_budget(self, group):
        assert policy("h2o:budget=64,select=head") == "h2o:select=head"
        assert policy("h2o:budget_bytes=99") == policy("h2o:budget=3") == "h2o"
        assert policy("yoco:mixer=retention") == "yoco:mixer=retention"
        assert budget_of(group, f"window:budget_bytes={LOCOCO_BYTES}") == 150
        assert budget_of(group, "transformer") is None

    def test_one_eighth_of_the_longest_prompt_comes_first(self, group):
        """1/8 of 1,024 tokens; whoever lacks that budget is shown at its nearest."""
        assert is_crowded(group)
        shown = near(group).architectures
        assert shown == ["transformer", *(f"{p}:budget=128" for p in ("tova", "window", "random", "h2o")),
                         "lococo:budget=64"]  # fmt: skip
        others = rest(group).architectures
        assert {*shown, *others} == {*group.architectures} and {*shown} & {*others} == {"transformer"}

    def test_every_spec_is_in_the_first_table_or_in_a_folded_one(self, group):
        titles = dict(slices(group))
        assert list(titles) == ["Budgets of 64 tokens", "Budgets of 512 tokens", "Budgets in bytes"]
        tables = [headline(near(group)), *(headline(part) for part in titles.values())]
        assert {row[0].text for table in tables for row in table.rows} == {*group.architectures}

    def test_two_budgets_are_no_crowd(self, tmp_path):
        two = [cell for cell in cells() if "budget=512" not in cell.architecture]
        (few,) = groups(load_run(write_cells(tmp_path / "few", two)))
        assert not is_crowded(few) and near(few) is few and rest(few) is None
        assert budget_section(few, "x", measures(few)) == []

    def test_the_terminal_says_what_it_leaves_out(self, folder):
        first = summary(load_run(folder))[0]
        (note,) = [note for note in first.notes if "Each policy at one budget" in note]
        assert len(first.rows) == 6 and "1/8 of the longest prompt (128 tokens" in note
        # There nothing is below, and no part has a name.
        assert "below" not in note and "“" not in note and "folded tables of the report" in note

    def test_without_questions_the_longest_context_decides(self, tmp_path):
        read = [cell for cell in cells() if cell.suite.startswith("pg19")]
        (less,) = groups(load_run(write_cells(tmp_path / "read", read)))
        assert "1/8 of the longest context (64 tokens" in said(less)

    def test_what_is_found_out_is_kept_by_module_and_name(self, group):
        found = [lambda group, n=n: n for n in range(2)]
        for n, find in enumerate(found):
            find.__module__, find.__qualname__ = f"module_{n}", "_looks"
        assert [once(find)(group) for find in found] == [0, 1]


class TestKeyedLeads:
    def test_it_is_the_first_section_and_the_column(self, group):
        assert needle_suites(group)[0] == KEYED
        (column,) = [name for name in headline(near(group)).columns if name.startswith("needle")]
        assert column.startswith("needle, strict\nkeyed, among others")

    def test_lengths_beyond_training_are_marked(self, folder, tmp_path):
        text = build([folder], tmp_path).read_text(encoding="utf-8")
        head = text.split("<h2>Verdict</h2>")[1].split("</section>")[0]
        assert "sequences of up to 512 tokens. Beyond the trained length, and so extrapolation" in head
        assert f"1,024 tokens of {NEEDLE}" in head
        assert "Nobody was trained on the template." in text
        assert "Needle, strict, 1,024 tokens (beyond the trained length)" in text
        assert len(text) < 5e6


class TestOverBudgets:
    def test_a_chart_per_suite_and_length_with_every_budget(self, group):
        (part,) = budget_section(group, "x", measures(group))
        titles = [chart.title for chart in part.charts]
        assert titles[0].startswith("Needle, strict, variant=keyed, 1,024 tokens")
        assert len(titles) == 4
        tokens = next(chart for chart in part.charts if "Needle, strict, 512" in chart.title).table
        rows = {row[0]: row for row in texts(tokens)}
        assert tokens.columns == ["policy", "64 tokens", "128 tokens", "512 tokens", "no budget"]
        assert rows["transformer"] == ["transformer", "–", "–", "–", "100.0 %"]
        assert rows["tova"][1:4] == ["90.0 %", "80.0 %", "70.0 %"]

    def test_an_idle_budget_is_hollow_and_says_so(self, group):
        (part,) = budget_section(group, "x", measures(group))
        chart = next(chart for chart in part.charts if "Needle, strict, 512" in chart.title)
        idle = [[entry.text for entry in row if "not exercised" in entry.note] for row in chart.table.rows]
        assert [len(marks) for marks in idle] == [1, 1, 1, 1, 0]
        assert chart.svg.count("fill: var(--paper)") >= 4

    def test_what_has_no_point_is_named(self, tmp_path):
        missing = [c for c in cells() if not (c.suite == KEYED and c.architecture == "tova:budget=64")]
        (less,) = groups(load_run(write_cells(tmp_path / "less", missing)))
        (part,) = budget_section(less, "x", measures(less))
        assert any("variant=keyed" in note and "tova:budget=64" in note for note in part.notes)

    def test_a_place_that_only_a_budget_in_bytes_scored_has_no_chart(self, tmp_path):
        stated = f"window:budget_bytes={LOCOCO_BYTES}"
        others = [replace(cell, status="oom") if cell.suite == KEYED else cell for cell in cells()]
        others.append(Told(stated, KEYED, {"length": 1024, "depth": 0.5}, needles(1024, 5)))
        run = write_cells(tmp_path / "bytes", others)
        manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
        manifest["architectures"] = {stated: {"budget": 150}}
        (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
        (less,) = groups(load_run(run))
        (part,) = budget_section(less, "x", measures(less))
        assert len(part.charts) == 3 and not any("keyed" in chart.title for chart in part.charts)
        assert any("keyed" in note and "tova:budget=64" in note for note in part.notes)

    def test_against_bytes_those_in_bytes_are_on_their_policys_line(self, group):
        part = bytes_section(group, "x", measures(group))
        chart = next(chart for chart in part.charts if "Bits/byte" in chart.title)
        names = [row[0] for row in texts(chart.table)]
        assert f"window:budget_bytes={LOCOCO_BYTES}" in names and "lococo:budget=64" in names
        assert "window:budget_bytes" not in chart.svg and ">window<" in chart.svg


class TestWhichTokensToKeep:
    def test_pairs_tell_what_intervals_do_not(self, group):
        (part,) = kept_section(group)
        quarter, eighth, paper = part.tables
        assert quarter.caption.startswith("128 of 512 tokens kept (1/4)")
        assert eighth.caption.startswith("64 of 512 tokens kept (1/8)")
        rows = {row[0].text: row for row in quarter.rows}
        perplexity = 2 ** (2.1 + 8 / 128 + 0.4)
        assert rows["tova:budget=128"][1].text == f"{perplexity:.2f}"
        assert rows["tova:budget=128"][3].text == "−0.100" and rows["tova:budget=128"][3].note
        low, high = map(float, rows["tova:budget=128"][2].note.split(" to "))
        assert low < 2.2625 + 0.4 < high  # the window's value: books differ by more than policies
        said = {name: rows[f"{name}:budget=128"][4].text for name in ("tova", "random", "h2o")}
        assert said == {"tova": "better than window", "random": "cannot be told from window",
                        "h2o": "worse than window"}  # fmt: skip

    def test_the_order_is_stated_in_words(self, group):
        (part,) = kept_section(group)
        note = part.notes[0]
        chain = note.partition("(< : fewer bits, ≈ : cannot be told apart): ")[2]
        assert "tova < " in chain and chain.count("≈") == 1 and chain.split(".")[0].endswith("< h2o")
        assert "cannot be told apart" in note and ("window and random" in note or "random and window" in note)

    def test_figures_of_the_paper_are_labelled_and_as_published(self, group):
        (part,) = kept_section(group)
        table = part.tables[-1]
        assert table.caption.startswith("Paper, not measured here") and "2401.06104" in table.caption
        assert all("paper" in name for name in table.columns)
        rows = {row[0]: row[1:] for row in texts(table)}
        assert rows["TOVA-layer"] == ["9.53", "8.32", "7.71", "7.41", "7.25", "7.17", "7.16"]
        assert rows["Window"][0] == "4,812" and rows.keys() == PAPER.keys()

    def test_nothing_without_pieces_or_a_window(self, tmp_path):
        others = [cell for cell in cells() if not cell.architecture.startswith("window")]
        (less,) = groups(load_run(write_cells(tmp_path / "less", others)))
        assert kept_section(less) == []


class TestEqualBytes:
    def test_only_policies_with_its_bytes_are_compared(self, group):
        (part,) = equal_bytes_section(group)
        ((row,),) = [part.tables[0].rows]
        assert [entry.text for entry in row] == [
            "lococo:budget=64", f"window:budget_bytes={LOCOCO_BYTES}", "−0.100", "better than window", "5",
            "39.1 KiB", "39.1 KiB", "2.400", "2.500", "150 tokens",
        ]  # fmt: skip
        assert row[2].note == "−0.100 to −0.100"

    def test_nothing_where_nobody_has_its_bytes(self, tmp_path):
        others = [cell for cell in cells() if "bytes" not in cell.architecture]
        (less,) = groups(load_run(write_cells(tmp_path / "less", others)))
        assert equal_bytes_section(less) == []
