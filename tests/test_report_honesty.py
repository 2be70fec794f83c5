"""What a number was judged by, what its interval counts as a sample, and what is no baseline."""

from __future__ import annotations

import dataclasses

import pytest
from recorded_tasks import Told, case, held, write_cells

from harness.report import build, load_run, summary
from harness.report.forensics import findings
from harness.report.grid import grid
from harness.report.groups import groups
from harness.report.heatmap import suite_heatmaps
from harness.report.held import held_sections, held_table, in_words
from harness.report.needles import needle_sections
from harness.report.quality import quality_section
from harness.report.remarks import alerts
from harness.report.scrolls import scrolls_sections
from harness.report.statistics import wilson
from harness.report.tasks import means, task_sections

CELL = {"length": 512, "depth": 0.5}
CITY = "needle:variant=city,needles=4"


def group_of(folder, cells):
    (group,) = groups(load_run(write_cells(folder, cells)))
    return group


class TestSubstringOfCities:
    """Four trials, in three of which the city occurs, and in one of which it stands first."""

    @pytest.fixture
    def cells(self):
        rows = [
            row
            for n, strict in enumerate((1, 0, 0, 0))
            for row in case(f"{n}", accuracy_strict=strict, accuracy_substring=n < 3, evicted_tokens=5)
            + held(f"{n}", {0: 0.5})
        ]
        return [Told("tova:budget=8", CITY, CELL, rows, 4)]

    def test_it_judges_everywhere(self, tmp_path, cells):
        group = group_of(tmp_path, cells)
        (finding,) = findings(group, CITY)
        assert sum(trial.hit for trial in finding.trials) == 3
        (entry,) = suite_heatmaps("x", group, CITY)[0].table.rows[0][1:]
        low, high = wilson(3, 4)
        assert (entry.text, entry.note) == ("75 %", f"{100 * low:.0f}–{100 * high:.0f} % · 3 of 4 · strict 1")
        assert "city, substring (official)" in needle_sections(group, "x")[0].lead
        assert "city, substring (official)" in quality_section(group, "x").charts[0].title
        (verdict, *_) = summary(load_run(tmp_path))
        shown = dict(zip(verdict.columns, verdict.rows[0], strict=True))
        assert shown["needle, city, substring (official)"].startswith("75.0 %")

    def test_of_other_needles_the_strict_score_does(self, tmp_path, cells):
        suite = "needle:needles=4"
        group = group_of(tmp_path, [dataclasses.replace(cells[0], suite=suite)])
        (entry,) = suite_heatmaps("x", group, suite)[0].table.rows[0][1:]
        assert entry.text == "25 %" and entry.note.endswith("1 of 4 · substring 3")


class TestMeanShares:
    def test_a_layer_that_lost_one_head_is_drawn_by_what_it_held(self, tmp_path):
        """85 % held in every trial: lost by the strict rule, but no empty map."""
        rows = [
            row
            for n in range(2)
            for row in case(f"{n}", accuracy_strict=1, evicted_tokens=5) + held(f"{n}", {0: 0.85, 1: 0.75})
        ]
        group = group_of(tmp_path, [Told("snapkv:budget=8", "needle", CELL, rows, 2)])
        (section,) = held_sections(group, "held")
        (chart,) = section.charts
        assert [entry.text for entry in chart.table.rows[0]] == ["all", "85.0 %", "75.0 %"]
        (finding,) = findings(group, "needle")
        table = held_table([finding])
        shown = dict(zip(table.columns, (entry.text for entry in table.rows[0]), strict=True))
        assert shown["held\nmean share"] == "80.0 %" and shown["found\nalthough lost"] == "2"
        assert "some head of some layer" in section.lead and "value that was asked for" in section.lead

    def test_nothing_is_called_evicted_that_only_a_window_left(self, tmp_path):
        rows = case("a", accuracy_strict=0, evicted_tokens=0) + held("a", {0: 0.0, 1: 0.5})
        group = group_of(tmp_path, [Told("transformer:window=8", "needle", CELL, rows, 1)])
        (finding,) = findings(group, "needle")
        assert "Missed: 1 lost, 0 kept" in in_words(finding) and "evicted" not in in_words(finding)
        assert not any("evicted" in column for column in held_table([finding]).columns)


def test_misses_and_maps_of_every_length_and_depth(tmp_path):
    """At depth 0 two were lost, at depth 1 one was kept; shorter lengths have their maps, folded."""
    cells = []
    for length in (256, 512):
        for depth, trials in ((0.0, [(0, 0.5), (0, 0.0), (1, 1.0)]), (1.0, [(0, 1.0), (1, 1.0)])):
            rows = []
            for n, (hit, share) in enumerate(trials):
                id = f"{length}/{depth}/{n}"
                rows += case(id, accuracy_strict=hit, evicted_tokens=5) + held(id, {0: share})
            axes = {"length": length, "depth": depth}
            cells.append(Told("tova:budget=8", "needle", axes, rows, len(trials)))
    run = tmp_path / "run"
    (section,) = held_sections(group_of(run, cells), "held")
    table = dict(section.folded)["Misses by length and depth"]
    shown = [[entry.text for entry in row[1:]] for row in table.rows]
    told = ["2 lost, 0 kept", "0 lost, 1 kept"]
    assert shown == [["256 tokens", *told], ["512 tokens", *told]]
    ((name, (chart,)),) = section.folded_charts
    assert name == "Maps at 256 tokens" and chart.table.rows[0][1].text == "50.0 %"
    page = build([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "<summary>Maps at 256 tokens</summary>" in page
    assert len({file.name for file in (tmp_path / "out" / "figures").glob("*held*.png")}) == 2


class TestSplitContexts:
    @pytest.mark.parametrize(("suite", "mode", "said"), [
        ("needle", "split", True), ("recall", "split, chunks of 64", True),
        ("needle", "truncate", False), ("pg19", "split", False),
    ])  # fmt: skip
    def test_they_are_no_baseline_for_questions(self, tmp_path, suite, mode, said):
        rows = [{**row, "prompt_mode": mode} for row in case("a", accuracy_strict=0)]
        group = group_of(tmp_path, [Told("short:budget=8", suite, CELL, rows, 1)])
        assert any("short:budget=8 begins a new, empty context" in alert for alert in alerts(group)) == said


class TestFewExamples:
    @pytest.mark.parametrize(("count", "said"), [(4, True), (5, False)])
    def test_intervals_over_few_are_said_to_mean_little(self, tmp_path, count, said):
        gold = {"gold_nll_nats": 9, "gold_tokens": 4, "gold_bytes": 4}
        rows = [row for n in range(count) for row in case(f"e{n}", token_f1=n / 9, **gold)]
        axes = {"task": "qasper", "length": 64}
        group = group_of(tmp_path, [Told("transformer", "scrolls", axes, rows, count)])
        (section,) = scrolls_sections(group)
        assert any("Fewer than 5 examples: an interval" in note for note in section.notes) == said


def test_several_needles_by_depth_are_folded(tmp_path):
    """What all depths together hide: at depth 0 nothing is found, at depth 1 everything."""
    cells = [
        Told("transformer", "needle:needles=2,query=all", {"length": length, "depth": depth}, rows, 4)
        for length in (256, 512)
        for depth in (0.0, 1.0)
        for hit in [int(depth)]
        for rows in [
            [
                row
                for n in range(4)
                for row in case(
                    f"{length}/{depth}/{n}", accuracy_any=hit, accuracy_all=hit, accuracy_mean=hit
                )
            ]
        ]
    ]
    (section,) = task_sections(group_of(tmp_path, cells))
    assert [name.split(":")[0] for name, _ in section.folded] == [
        f"{what} by length and depth" for what in ("Any found", "All found", "Mean recall")
    ]
    table = section.folded[1][1]
    assert table.columns == ["architecture", "length", "depth 0\nn = 4", "depth 1\nn = 4"]
    low, high = (f"{100 * end:.0f}" for end in wilson(0, 4))
    shown = [(row[1].text, row[2].text, row[2].note, row[3].text) for row in table.rows]
    assert shown == [(length, "0.0 %", f"{low}–{high} %", "100.0 %") for length in ("256", "512")]


class TestTrialsOfRecall:
    def entry(self, folder, hits: list[list[int]]):
        rows = [
            row
            for trial, queries in enumerate(hits)
            for query, hit in enumerate(queries)
            for row in case(f"recall/trial={trial}/query={query}", recall_accuracy=hit)
        ]
        group = group_of(folder, [Told("transformer", "recall", {"pairs": 8, "length": 64}, rows, 1)])
        (entry,) = means(grid(group, "recall", "pairs"), "recall_accuracy").values()
        return entry

    def test_trials_are_resampled_and_not_queries(self, tmp_path):
        """Two trials, one all right and one all wrong: nothing between none and all can be excluded."""
        entry = self.entry(tmp_path, [[1] * 8, [0] * 8])
        assert (entry.text, entry.note) == ("50.0 %", "0–100 % · n = 16 in 2 trials")

    def test_all_right_counts_trials(self, tmp_path):
        low, _ = wilson(3, 3)
        entry = self.entry(tmp_path, [[1] * 8] * 3)
        assert entry.note == f"{100 * low:.0f}–100 % · n = 24 in 3 trials"

    def test_one_query_each_is_as_before(self, tmp_path):
        low, high = wilson(1, 4)
        entry = self.entry(tmp_path, [[1], [0], [0], [0]])
        assert entry.note == f"{100 * low:.0f}–{100 * high:.0f} % · n = 4"
