"""Evicted, or kept but not used: what the report says of the things that trials watched."""

from __future__ import annotations

import pytest
from recorded_tasks import Told, case, held, write_cells

from harness.report import build, load_run
from harness.report.forensics import findings
from harness.report.groups import groups
from harness.report.held import held_sections, held_table, in_words, names, where

NEEDLE = "needle:trials=4"
CELL = {"length": 512, "depth": 0.5}


def found_in(folder, cells: list[Told]):
    (group,) = groups(load_run(write_cells(folder, cells)))
    return group, findings(group, cells[0].suite)


def told(architecture: str, trials: list[tuple], axes: dict = CELL, evicted: float | None = 9.0) -> Told:
    """A needle cell; each trial is (hit, layer -> share) and maybe what was held when the prompt ended."""
    rows = []
    for number, (hit, shares, *before) in enumerate(trials):
        id = f"n/{axes}/{number}"
        rows += case(id, accuracy_strict=hit, **({} if evicted is None else {"evicted_tokens": evicted}))
        rows += held(id, shares, before=before[0] if before else None)
    return Told(architecture, NEEDLE, axes, rows, len(trials))


FULL = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}
HOLE = FULL | {2: 0.25}


class TestCounts:
    def test_four_kinds_of_trials(self, tmp_path):
        trials = [(0, HOLE), (0, HOLE), (0, FULL), (1, HOLE), (1, FULL), (1, FULL)]
        _, (finding,) = found_in(tmp_path, [told("probe:budget=8", trials)])
        table = held_table([finding])
        row = dict(zip(table.columns, (entry.text for entry in table.rows[0]), strict=True))
        assert row == {
            "architecture": "probe:budget=8",
            "length": "512 tokens",
            "trials": "6",
            "found": "3",
            "missed\nlost": "2",
            "missed\nkept but not used": "1",
            "found\nkept": "2",
            "found\nalthough lost": "1",
            "held\nmean share": "90.6 %",
            "where it was lost": "layer 2 (3 of 6)",
        }
        words = in_words(finding)
        assert "tokens of the asked value were evicted in layer 2 (3 of 6)." in words
        assert "Held in every trial: layers 0, 1, 3." in words
        assert "Missed: 2 lost, 1 kept but not used. Found: 1 although lost, 2 kept." in words

    def test_all_that_was_asked_for_has_to_be_held(self, tmp_path):
        """Two spans: the second is gone from layer 1, and a part of an answer is no hit."""
        rows = case("m", accuracy_any=1, accuracy_all=0, accuracy_mean=0.5, evicted_tokens=3)
        rows += held("m", FULL, span=0) + held("m", FULL | {1: 0.0}, span=1)
        cells = [Told("probe:budget=8", "needle:needles=2,query=all", CELL, rows, 1)]
        _, (finding,) = found_in(tmp_path, cells)
        assert finding.count(hit=False, kept=False) == 1 and where(finding) == "layer 1 (1 of 1)"

    def test_what_went_while_answering_is_told_apart(self, tmp_path):
        _, (finding,) = found_in(tmp_path, [told("probe:budget=8", [(0, HOLE, FULL), (0, HOLE, HOLE)])])
        assert "In 1 of these trials they went only while the answer was produced." in in_words(finding)

    def test_many_layers_are_summed_up(self, tmp_path):
        trials = [(0, {layer: float(layer > number) for layer in range(32)}) for number in range(8)]
        _, (finding,) = found_in(tmp_path, [told("probe:budget=8", trials)])
        assert where(finding) == "8 of 32 layers, most often layer 0 (8 of 8)"

    def test_lengths_and_depths_stand_apart(self, tmp_path):
        cells = [
            told("probe:budget=8", [(0, HOLE)], {"length": length, "depth": depth})
            for length in (256, 512)
            for depth in (0.0, 1.0)
        ]
        group, found = found_in(tmp_path, cells)
        assert [(finding.context, len(finding.trials)) for finding in found] == [(256.0, 2), (512.0, 2)]
        (section,) = held_sections(group, "held")
        assert [name for name, _ in section.folded] == ["At 256 tokens", "Misses by length and depth"]
        (chart,) = section.charts
        assert [[entry.text for entry in row] for row in chart.table.rows] == [
            ["0 %", "100.0 %", "100.0 %", "25.0 %", "100.0 %"],
            ["100 %", "100.0 %", "100.0 %", "25.0 %", "100.0 %"],
            ["all", "100.0 %", "100.0 %", "25.0 %", "100.0 %"],
        ]


class TestWords:
    def test_mixtures_are_not_known(self, tmp_path):
        cells = [told("transformer", [(1, FULL)], evicted=0), told("lococo:budget=8", [(1, {}), (0, {})])]
        group, (full, mixed) = found_in(tmp_path, cells)
        assert where(mixed) == "not known: slots hold mixtures"
        assert "whether the asked value was still held is not known: slots hold mixtures" in in_words(mixed)
        assert [entry.text for entry in held_table([mixed]).rows[0]][3:8] == ["1", "–", "–", "–", "–"]
        assert where(full) == "nowhere; layers 0–3 held it"
        (section,) = held_sections(group, "held")
        assert not section.charts  # nothing was lost: nothing to draw

    def test_a_shared_cache_is_named_and_windows_evict_nothing(self, tmp_path):
        kept = {0: 0.0, 1: 0.0, None: 1.0}
        _, (finding,) = found_in(tmp_path, [told("yoco", [(1, kept), (0, kept)], evicted=0)])
        assert finding.count(hit=False, kept=True) == 1 and finding.count(hit=True, kept=True) == 1
        words = in_words(finding)
        assert "beyond the own window of layers 0, 1 (2 of 2)" in words and "evicted in" not in words
        assert "Held in every trial: the shared cache." in words
        assert "beyond their own window, nothing was evicted" in where(finding)

    def test_a_window_that_no_other_state_makes_up_for_is_a_loss(self, tmp_path):
        _, (finding,) = found_in(tmp_path, [told("transformer", [(0, {0: 0.0, 1: 0.0})], evicted=0)])
        assert finding.count(hit=False, kept=False) == 1

    def test_a_loss_that_nobody_counted_is_an_eviction(self, tmp_path):
        _, (finding,) = found_in(tmp_path, [told("probe:budget=8", [(0, HOLE)], evicted=None)])
        assert where(finding) == "layer 2 (1 of 1)"

    def test_a_policy_without_work_says_so(self, tmp_path):
        _, (finding,) = found_in(tmp_path, [told("probe:budget=8", [(0, FULL)], evicted=0)])
        assert where(finding) == "nowhere; layers 0–3 held it; not exercised"

    @pytest.mark.parametrize(
        ("states", "text"),
        [
            (["2"], "layer 2"),
            (["0", "1", "2", "5"], "layers 0–2, 5"),
            (["0", "1", "shared"], "layers 0, 1 and the shared cache"),
            (["shared"], "the shared cache"),
        ],
    )
    def test_names(self, states, text):
        assert names(states) == text


class TestSuites:
    def test_tasks_have_a_folded_table_and_unwatched_ones_no_line(self, tmp_path):
        cells = []
        for task in ("multikey", "commonwords"):
            rows = case(f"r/{task}", ruler_all=0, ruler_part=0.5, evicted_tokens=4)
            rows += held(f"r/{task}", HOLE) if task == "multikey" else []
            cells.append(Told("probe:budget=8", "ruler", {"task": task, "length": 1024}, rows, 1))
        group, found = found_in(tmp_path, cells)
        assert [finding.kind for finding in found] == ["multikey"]
        (section,) = held_sections(group, "held")
        ((name, table),) = section.folded
        assert name == "At 1,024 tokens" and not section.tables and not section.charts
        assert [entry.text for entry in table.rows[0]][:3] == ["probe:budget=8", "multikey", "1,024 tokens"]

    def test_other_axes_are_not_pooled(self, tmp_path):
        cells = [
            Told("probe:budget=8", "recall", {"pairs": pairs, "length": 512}, rows, 1)
            for pairs in (4, 16)
            for rows in [case(f"q/{pairs}", recall_accuracy=1) + held(f"q/{pairs}", FULL)]
        ]
        _, found = found_in(tmp_path, cells)
        assert [finding.kind for finding in found] == ["pairs 4", "pairs 16"]

    def test_nothing_is_drawn_where_nothing_was_watched(self, tmp_path):
        run = write_cells(tmp_path / "run", [Told("transformer", NEEDLE, CELL, case("n", accuracy_strict=1))])
        text = build([run], tmp_path / "out").read_text(encoding="utf-8")
        assert "<h2>Evicted" not in text and "Needles by length and depth" in text


def test_a_needle_that_a_real_cache_evicts_in_layer_2(tmp_path):
    """Rows as the harness measures them, of a hand-built cache; the page says which layer lost it."""
    import torch

    from harness.measure import Measurement
    from harness.plan import Cell, Settings
    from harness.rows import base_row
    from harness.store import write_rows
    from models.architectures.transformer import FullCache
    from models.architectures.window import BudgetedWindow
    from models.decoder import Decoder
    from models.shapes import SHAPES
    from suites.suite import Case, Context, Suite
    from suites.tokenizer import ByteTokenizer

    class Holed(Decoder):
        prompt_mode = "stepwise"

        def layer_cache(self, heads, layer, request):
            return BudgetedWindow(heads, request, 1, 8) if layer == 2 else FullCache(heads, request)

    class Hidden(Suite):
        """Two prompts of 40 tokens: one hides something early, the other at its end."""

        def cases(self, cell):
            for number, start in enumerate((5, 36)):
                span = ((start, start + 3),)
                yield Case(f"n{number}", tuple(range(40 + number)), max_new_tokens=1, axes=cell, watched=span)

        def score(self, case, answer):
            return {"accuracy_strict": float(case.id == "n1")}

    torch.manual_seed(0)
    settings, axes = Settings(shape="tiny"), {"length": 41, "depth": 0.5}
    run = write_cells(tmp_path / "run", [Told("holed", "needle", axes, [])])
    (cell,) = load_run(run).cells
    rows = Measurement(
        Holed(SHAPES["tiny"], None).eval(), Hidden(Suite.Options(), Context(ByteTokenizer(), None)),
        Cell(cell["key"], "holed", "needle", axes), settings, None,
        base=lambda cell, **known: base_row("run", cell, settings, **known),
        on_phase=lambda phase: None,
    ).measure()  # fmt: skip
    write_rows(run / "cells" / f"{cell['key']}.parquet", rows)
    text = build([run], tmp_path / "out").read_text(encoding="utf-8")
    part = text.split("<h2>Evicted, or kept but not used?</h2>")[1].split("</section>")[0]
    assert "tokens of the asked value were evicted in layer 2 (1 of 2)." in part
    assert "Held in every trial: layers 0, 1, 3." in part
    assert "Missed: 1 lost, 0 kept but not used. Found: 0 although lost, 1 kept." in part
    assert "<td>layer 2 (1 of 2)</td>" in part and part.count("<figure") == 1
