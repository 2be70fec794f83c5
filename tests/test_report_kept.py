"""What is called better, worse, ordered or at equal bytes, where something is missing or was never tried."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from recorded_tasks import Told, case, held, write_cells

from harness.report.books import book_table
from harness.report.groups import groups
from harness.report.held import MAPS, held_sections
from harness.report.kept import equal_bytes_section, kept_section
from harness.report.language import language_sources
from harness.report.load import load_run
from harness.report.measured import measures
from harness.report.quality import quality_section
from harness.report.statistics import student, t95
from harness.report.verdict import headline

LN2 = math.log(2)
PIECES, SUITE = {"context": 512, "protocol": "tova"}, "pg19:protocol=tova,chunk=512"
STEADY = {"tova": 2.1, "window": 2.2, "h2o": 2.3}


def group_of(folder, cells: list[Told], trained: int | None = None, notes: str = ""):
    run = write_cells(folder / "run", cells)
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    manifest["weights"]["reference"] |= {"notes": notes} | ({"trained_length": trained} if trained else {})
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    (found,) = groups(load_run(run))
    return found


def books(bits: list[float], lost: tuple[int, ...] = ()) -> list[dict]:
    """A book per number, of 100 bytes at so many bits each; those in `lost` were not finite."""
    rows = []
    for n, value in enumerate(bits):
        nats = math.nan if n in lost else value * 100 * LN2
        found = case(f"b{n}", nll_nats=nats, num_bytes=100, num_tokens=100, num_words=10)
        rows += [{**row, "axes": {"book": f"b{n}"}} for row in found]
    return rows


def pieces(count: int = 5, lost: dict = {}, idle: tuple = (), bits: dict = STEADY) -> list[Told]:  # noqa: B006
    """A transformer at 2 bits per byte, and each policy at 1/4 and 1/8."""
    told = [Told("transformer", SUITE, PIECES, books([2 + n / 5 for n in range(count)]), count)]
    for name, value in bits.items():
        values = value if isinstance(value, list) else [value + n / 5 for n in range(count)]
        acted = 0 if name in idle else None
        told += [
            Told(f"{name}:budget={b}", SUITE, PIECES, books(values, lost.get(name, ())), count, acted)
            for b in (64, 128)
        ]
    return told


def quarter(folder, cells: list[Told], **more) -> tuple[dict[str, list], str, str]:
    """(rows by policy, what is said of the order, caption) of the table at 1/4."""
    (part,) = kept_section(group_of(folder, cells, **more))
    table = part.tables[0]
    return {row[0].text.partition(":")[0]: row for row in table.rows}, part.notes[0], table.caption


class TestOrder:
    def test_whoever_never_evicted_has_no_place_in_it(self, tmp_path):
        bits = {"snapkv": 2.0, **STEADY}
        rows, said, _ = quarter(tmp_path, pieces(bits=bits, idle=("snapkv",)))
        assert "best to worst (< : fewer bits, ≈ : cannot be told apart): tova < window < h2o." in said
        assert said.endswith("Not ordered, never exercised: snapkv.")
        assert rows["snapkv"][4].text == "not exercised" and rows["tova"][4].text == "better than window"

    def test_an_idle_window_is_no_rival(self, tmp_path):
        rows, said, _ = quarter(tmp_path, pieces(idle=("window",)))
        assert rows["tova"][4].text == "window not exercised" and "tova < h2o." in said

    def test_totals_of_other_books_are_not_ordered(self, tmp_path):
        """h2o lost its two worst books: of those that are left its total is the best of all."""
        rows, said, _ = quarter(tmp_path, pieces(lost={"h2o": (3, 4)}))
        assert float(rows["h2o"][2].text) < float(rows["window"][2].text)
        assert "told apart): tova < window. Every neighbour differs" in said
        assert said.endswith("Not ordered, without a score of each of the 5 books: h2o.")
        assert rows["h2o"][4].text == "worse than window" and rows["h2o"][5].text == "3"

    def test_shared_books_are_counted_where_the_window_lost_some(self, tmp_path):
        rows, _, _ = quarter(tmp_path, pieces(lost={"window": (0,)}))
        assert rows["tova"][5].text == "4 of 5"

    @pytest.mark.parametrize("lost", [("window",), tuple(STEADY)])
    def test_nothing_finite_to_compare_with(self, tmp_path, lost):
        rows, said, _ = quarter(tmp_path, pieces(lost=dict.fromkeys(lost, range(5))))
        assert [entry.text for entry in rows["window"]][1:] == ["not finite", "–", "–", "–", "–"]
        assert [entry.text for entry in rows["transformer"]][3:] == ["–", "–", "5"]
        if len(lost) == 1:
            assert "tova < h2o." in said and rows["tova"][3].plain == rows["tova"][4].plain == "–"
        else:
            assert said.startswith("No order at 128 tokens (1/4): fewer than two")
            assert "tova, window, h2o" in said

    def test_what_failed_is_called_by_its_status(self, tmp_path):
        """And who was asked nothing there by nothing: only what was scored can have been not finite."""
        cells = [
            replace(cell, status="timeout") if cell.architecture.startswith("h2o") else cell
            for cell in pieces(lost={"tova": range(5)})
        ]
        cells.append(Told("random:budget=128", "needle", {"length": 512, "depth": 0.5}, case("n"), 1))
        rows, _, _ = quarter(tmp_path, cells)
        told = {name: [entry.text for entry in row[1:]] for name, row in rows.items()}
        assert [told[name][0] for name in ("h2o", "tova", "random")] == ["timeout", "not finite", "–"]
        assert rows["h2o"][1].failed and told["h2o"][1:] == ["–"] * 4

    def test_another_network_is_called_neither_better_nor_worse(self, tmp_path):
        """Its number stays. Compressors beside the window's own weights leave the network what it is."""
        values = books([2.05 + n / 5 for n in range(5)])
        more = [Told(spec, SUITE, PIECES, values, 5) for spec in ("yoco", "lococo:budget=128")]
        group = group_of(tmp_path, pieces() + more)
        same, rows = "reference@00ff00ff", group.rows
        labels = {"yoco": "yoco-swa@11", "lococo:budget=128": f"{same}+lococo-128@22"}
        rows = rows.assign(weights=rows["architecture"].map(labels).fillna(same))
        (part,) = kept_section(replace(group, rows=rows))
        found = {row[0].text: [entry.text for entry in row[3:5]] for row in part.tables[0].rows}
        assert found["yoco"] == ["−0.150", "another network"]
        assert found["lococo:budget=128"] == ["−0.150", "better than window"]
        assert found["transformer"] == ["−0.200", "better than window"]

    @pytest.mark.parametrize("count", [1, 2])
    def test_too_few_books_for_an_interval(self, tmp_path, count):
        rows, said, _ = quarter(tmp_path, pieces(count))
        assert rows["tova"][3].plain == "−0.100" and rows["tova"][4].text == "no interval"
        assert "tova, window, h2o. No intervals over fewer than 3 books." in said and "holds 0" not in said

    def test_the_words_and_the_verdict_are_of_one_mind(self, tmp_path):
        """Better on each of four books: resampling never reaches 0, Student's interval does."""
        gain = (0.001, 0.05, 0.2, 0.2)
        bits = {"tova": [2.2 + n / 5 - g for n, g in enumerate(gain)], "window": 2.2, "h2o": 2.2}
        cells = pieces(4, bits=bits)
        rows, said, _ = quarter(tmp_path, cells)
        low, high = map(float, rows["tova"][3].note.replace("−", "-").split(" to "))
        assert low < 0 < high and rows["tova"][4].text == "cannot be told from window"
        assert "<" not in said.partition("): ")[2]
        (alone,) = groups(load_run(write_cells(tmp_path / "alone", cells[1:])))
        assert not any(row[-2].best for row in headline(alone).rows)

    def test_lengths_beyond_training_and_locos_slots_are_said(self, tmp_path):
        cells = pieces()
        _, _, caption = quarter(tmp_path, cells, trained=256)
        assert caption.startswith("128 of 512 tokens (beyond the trained length) kept (1/4), ")
        group = group_of(tmp_path / "again", cells, trained=256)
        assert (
            "512 tokens (beyond the trained length)" in book_table(group, language_sources(group)[0]).caption
        )
        (part,) = kept_section(group)
        assert "LoCoCo's budget is its memory" in part.lead and "Student's" in part.lead


class TestEqualBytes:
    def rivals(self, folder, holds: dict[str, float], idle: tuple[str, ...] = (), failed=(), **more):
        """LoCoCo holds 40,000 bytes; `holds` says what others do."""
        cells = [Told("lococo:budget=64", SUITE, PIECES, books([2 + n / 5 for n in range(5)]), 5)]
        for place, (spec, live) in enumerate(holds.items()):
            rows = books([2.1 + place + n / 5 for n in range(5)])
            rows += [{"metric": "cache_bytes_live", "value": 2 * live}] * 3
            state = {"acted": 0 if spec in idle else None, "status": "crash" if spec in failed else "ok"}
            cells.append(Told(spec, SUITE, PIECES, rows, 5, **state))
        found = equal_bytes_section(group_of(folder, cells, **more))
        return [[entry.text for entry in row[1:4]] for part in found for row in part.tables[0].rows], found

    def test_what_is_held_decides_and_not_what_was_stated(self, tmp_path):
        holds = {"window:budget_bytes=40000": 40_100.0, "h2o:budget_bytes=40001": 30_000.0,
                 "tova:budget_bytes=50000": 39_900.0, "random:budget_bytes=50001": 50_001.0}  # fmt: skip
        rows, _ = self.rivals(tmp_path, holds)
        assert rows == [
            ["window:budget_bytes=40000", "−0.100", "better than window"],
            ["h2o:budget_bytes=40001", "–", "h2o holds other bytes"],
            ["tova:budget_bytes=50000", "−2.100", "better than tova"],
        ]

    def test_an_idle_rival_is_no_rival(self, tmp_path):
        spec = "snapkv:budget_bytes=40000"
        rows, _ = self.rivals(tmp_path, {spec: 40_000.0}, idle=(spec,))
        assert rows == [[spec, "−0.100", "snapkv not exercised"]]

    def test_a_rival_that_crashed_is_no_rival_and_not_called_not_finite(self, tmp_path):
        """Nothing was counted of it: that both hold the same bytes is not known."""
        spec = "window:budget_bytes=40000"
        rows, (part,) = self.rivals(tmp_path, {spec: 40_000.0}, failed=(spec,))
        assert rows == [[spec, "–", "bytes of window not counted"]]
        (row,) = part.tables[0].rows
        told = dict(zip(part.tables[0].columns, (entry.text for entry in row), strict=True))
        assert told["rival's bytes"] == "–" and told["rival's bits/byte"] == "crash"

    def test_lengths_beyond_training_are_marked(self, tmp_path):
        _, (part,) = self.rivals(tmp_path, {"window:budget_bytes=40000": 40_000.0}, trained=256)
        assert part.tables[0].caption.endswith("512 tokens (beyond the trained length).")
        assert part.tables[0].columns[:4] == ["LoCoCo", "rival", "difference", "in words"]


class TestStudent:
    def test_cases_of_one_size_make_the_paired_interval(self):
        first, second = np.array([1.0, 2.5, 2.0, 4.0]), np.array([0.5, 2.6, 1.0, 2.9])
        gap = first - second
        half = 3.182 * gap.std(ddof=1) / 2
        found = student(np.stack([first, second, np.ones(4)], 1), lambda s: (s[0] - s[1]) / s[2])
        assert found == pytest.approx((gap.mean() - half, gap.mean() + half))

    @pytest.mark.parametrize(("freedom", "point"), [(10, 2.228), (11, 2.201), (29, 2.045), (67, 1.996)])
    def test_points(self, freedom, point):
        assert t95(freedom) == pytest.approx(point, abs=0.0006)

    @pytest.mark.parametrize("sway", [0.0, 0.5])
    def test_equal_policies_are_called_different_in_one_run_of_twenty(self, sway):
        """Five books: resampling them would say so in one of six."""
        rng, missed = np.random.default_rng(0), 0
        for _ in range(1000):
            size = np.exp(sway * rng.normal(size=5))
            low, high = student(np.stack([rng.normal(size=5) * size, size], 1), lambda s: s[0] / s[1])
            missed += not low <= 0 <= high
        assert 0.03 < missed / 1000 < 0.09

    def test_nothing_without_three_cases_or_bytes(self):
        assert all(map(math.isnan, student(np.ones((2, 2)), lambda s: s[0] / s[1])))
        assert all(map(math.isnan, student(np.eye(3)[:, :2], lambda s: s[0] / (s[0] - 1))))


class TestPartlyFailed:
    """Depth 10 % failed for one policy: at the depths that are left it found everything."""

    @pytest.fixture
    def group(self, tmp_path):
        def needles(depth: float, hits: int) -> list[dict]:
            ids = [f"{depth}/{n}" for n in range(10)]
            return [
                row
                for n, id in enumerate(ids)
                for row in case(id, accuracy_strict=n < hits, accuracy_substring=n < hits)
            ]

        cells = []
        for name in ("transformer", "window:budget=64", "window:budget=128", "window:budget=256"):
            for depth, hits in ((0.1, 0), (0.9, 10)):
                failed = name == "window:budget=128" and depth == 0.1
                axes = {"length": 1024, "depth": depth}
                rows, status = ([], "oom") if failed else (needles(depth, hits), "ok")
                cells.append(Told(name, "needle:depths=0.1+0.9", axes, rows, 10, status=status))
        return group_of(tmp_path, cells)

    def test_it_has_no_point_over_budgets(self, group):
        (measure,) = measures(group)
        found = measure.at(1024.0, "").set_index("architecture")
        assert "window:budget=128" not in found.index and set(found["n"]) == {20}
        assert found["value"].unique().tolist() == [0.5]

    def test_nor_over_bytes_and_that_is_said(self, group):
        part = quality_section(group, "x")
        assert "window:budget=128" not in [row[0].text for row in part.charts[0].table.rows]
        assert any("window:budget=128, with 10 trials at 1,024 tokens" in note for note in part.notes)

    def test_a_book_that_was_never_read_is_another_mix_too(self, tmp_path):
        cells = pieces()
        cells[1].rows[:] = cells[1].rows[:-4]
        (measure,) = measures(group_of(tmp_path, cells))
        assert cells[1].architecture not in set(measure.frame["architecture"])
        assert set(measure.frame["n"]) == {5}


@pytest.mark.parametrize(("lengths", "few"), [((256, 512), False), ((256, 512), True), ((512,), False)])
def test_parts_of_what_was_held_tell_how_the_networks_began(tmp_path, lengths, few):
    cells = [
        Told("tova:budget=8", "needle", {"length": length, "depth": 0.5}, rows, 1)
        for length in lengths
        for rows in [case(f"{length}", accuracy_strict=1, evicted_tokens=5) + held(f"{length}", {0: 0.5})]
    ]
    (part,) = held_sections(group_of(tmp_path, cells, notes="A hand-set start."), "x", few)
    assert part.notes[-1] == "Network began with hand-set induction heads: see the verdict."
    folded = len(lengths) > 1 and not few
    assert bool(part.folded_charts) == ("(shorter ones folded)" in part.lead) == folded
    assert part.lead.endswith(MAPS.format(" (shorter ones folded)" * folded).strip())
