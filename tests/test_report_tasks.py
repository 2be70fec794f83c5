"""Tables of tasks: SCROLLS, lm-eval, RULER, recall, several needles; what a verdict says without a needle."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_tasks import SCROLLS_TASKS, Told, all_suites, case, write_cells

from harness.metrics import METRICS
from harness.report import build, load_run, summary
from harness.report.groups import groups
from harness.report.lm_eval import lm_eval_sections, lm_eval_table
from harness.report.markdown import markdown
from harness.report.scrolls import SEVEN, scrolls_sections, scrolls_tables
from harness.report.statistics import bootstrap, wilson
from harness.report.tasks import task_sections
from harness.report.verdict import by_context
from suites.scoring.corpus import SCROLLS_SEVEN, scrolls_score, task_score

LN2 = math.log(2)


def group_of(folder, cells):
    (group,) = groups(load_run(write_cells(folder, cells)))
    return group


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Every kind of suite and every architecture."""
    folder = tmp_path_factory.mktemp("all")
    return build([write_cells(folder / "run", all_suites())], folder / "out")


def page_of(folder: Path, cells: list[Told]) -> str:
    return build([write_cells(folder / "run", cells)], folder / "out").read_text(encoding="utf-8")


def entry(table, architecture: str, column: str):
    at = [name.split("\n")[0] for name in table.columns].index(column)
    return next(row for row in table.rows if row[0].text == architecture)[at]


def scrolls(architecture: str, task: str, rows: list[dict], **more) -> Told:
    axes = {"task": task, "length": 2048, "prompt": "zeroscrolls"}
    return Told(architecture, "scrolls", axes, rows, **more)


def gold(bits: float, size: float = 10.0) -> dict:
    return {"gold_nll_nats": bits * size * LN2, "gold_tokens": size, "gold_bytes": size}


class TestScrolls:
    ROUGE = [{"rouge1": 0.5, "rouge2": 0.0, "rougeL": 0.4}, {"rouge1": 0.3, "rouge2": 0.2, "rougeL": 0.2}]

    def test_the_seven_are_the_official_ones(self):
        assert SEVEN == SCROLLS_SEVEN

    def test_rouge_is_the_geometric_mean_of_the_means(self, tmp_path):
        rows = [row for n, scores in enumerate(self.ROUGE) for row in case(f"e{n}", **scores, **gold(1))]
        group = group_of(tmp_path, [scrolls("transformer", "qmsum", rows)])
        shown = entry(scrolls_tables(group, "scrolls")[0], "transformer", "qmsum")
        expected = 100 * (0.4 * 0.1 * 0.3) ** (1 / 3)
        assert shown.text == f"{expected:.1f}" == f"{100 * task_score(self.ROUGE):.1f}"
        # Of two examples the interval ends at each drawn twice; the first has no common bigram.
        assert shown.note == f"0.0 to {100 * (0.3 * 0.2 * 0.2) ** (1 / 3):.1f}"
        means_of_each = 100 * (0 + (0.3 * 0.2 * 0.2) ** (1 / 3)) / 2
        assert abs(means_of_each - expected) > 5  # the fixture tells the two apart

    def test_f1_and_exact_match(self, tmp_path):
        f1 = [row for n, value in enumerate((0.2, 0.6)) for row in case(f"e{n}", token_f1=value, **gold(1))]
        match = [row for n in range(4) for row in case(f"e{n}", exact_match=n == 0, **gold(1))]
        group = group_of(
            tmp_path, [scrolls("transformer", "qasper", f1), scrolls("transformer", "quality", match)]
        )
        table = scrolls_tables(group, "scrolls")[0]
        assert table.columns == ["architecture", "qasper\ntoken F1\nn = 2", "quality\nexact match\nn = 4"]
        assert entry(table, "transformer", "qasper").plain == "40.0 (20.0 to 60.0)"
        low, high = wilson(1, 4)
        assert entry(table, "transformer", "quality").plain == f"25.0 ({100 * low:.1f} to {100 * high:.1f})"

    def test_the_mean_needs_all_seven(self, tmp_path):
        values = dict(zip(SCROLLS_TASKS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9), strict=True))
        cells = [
            scrolls(architecture, task, case("e", token_f1=value, **gold(1)))
            for architecture in ("transformer", "tova:budget=8")
            for task, value in values.items()
            if (architecture, task) != ("tova:budget=8", "qmsum")
        ]
        cells.append(scrolls("tova:budget=8", "qmsum", [], status="oom"))
        surrogate = "summ_screen_fd_surrogate_crd3"
        cells.append(scrolls("transformer", surrogate, case("e", token_f1=1, **gold(1))))
        first, others, _ = scrolls_tables(group_of(tmp_path, cells), "scrolls")
        mean = entry(first, "transformer", "mean of the seven").text
        assert mean == "40.0" == f"{100 * scrolls_score(values):.1f}"
        assert entry(first, "tova:budget=8", "mean of the seven").text == "–"
        assert entry(first, "tova:budget=8", "qmsum").text == "oom"
        apart = [name.split("\n")[0] for name in others.columns]
        assert apart == ["architecture", "squality", surrogate]

    def test_no_mean_without_the_seven(self, tmp_path):
        group = group_of(tmp_path, [scrolls("transformer", "qasper", case("e", token_f1=1, **gold(1)))])
        assert not any("mean" in name for name in scrolls_tables(group, "scrolls")[0].columns)

    def test_gold_answers_are_sums_over_sums_with_a_paired_difference(self, tmp_path):
        cells = [
            scrolls(name, "qasper", case("a", token_f1=0, **gold(x)) + case("b", token_f1=0, **gold(y, 30)))
            for name, (x, y) in {"transformer": (1.0, 2.0), "tova:budget=8": (1.5, 2.1)}.items()
        ]
        table = scrolls_tables(group_of(tmp_path, cells), "scrolls")[-1]
        assert entry(table, "transformer", "qasper").plain == "1.750"
        shown = entry(table, "tova:budget=8", "qasper")
        assert (shown.text, shown.note) == ("1.950", "+0.200 · +0.100 to +0.500 · acted in 100 %")

    def test_requests_in_which_the_policy_acted(self, tmp_path):
        rows = case("e", token_f1=1, **gold(1))
        cells = [
            scrolls("tova:budget=8", "qasper", rows, requests=8, acted=3),
            scrolls("tova:budget=8", "quality", rows, requests=8, acted=0),
            scrolls("yoco", "qasper", rows, requests=8, acted=0),
        ]
        for table in scrolls_tables(group_of(tmp_path, cells), "scrolls"):
            assert "acted in 38 %" in entry(table, "tova:budget=8", "qasper").note
            assert "not exercised" in entry(table, "tova:budget=8", "quality").note
            note = entry(table, "yoco", "qasper").note
            assert "acted" not in note and "exercised" not in note

    def test_other_axes_go_down_and_are_not_pooled(self, tmp_path):
        cells = [
            Told("transformer", "scrolls", {"task": "qasper", "length": length}, rows, 1)
            for length, value in ((4096, 0.2), (512, 0.6))
            for rows in [case("e", token_f1=value, **gold(1))]
        ]
        table = scrolls_tables(group_of(tmp_path, cells), "scrolls")[0]
        assert [[e.text for e in row] for row in table.rows] == [
            ["transformer", "512", "60.0"], ["transformer", "4,096", "20.0"],
        ]  # fmt: skip


class TestLmEval:
    def cells(self) -> list[Told]:
        def rows(**numbers: float) -> list[dict]:
            own = [{"metric": name, "value": value} for name, value in numbers.items()]
            return [*own, {"metric": "continuation_s", "value": 3.0, "phase": "score"}]

        return [
            Told(
                "transformer", "lm_eval", {"task": "piqa"},
                rows(acc=0.5, acc_stderr=0.05, sample_len=100), 200,
            ),
            Told(
                "tova:budget=8", "lm_eval", {"task": "piqa"},
                rows(acc=0.4, acc_stderr=0.04, sample_len=100, truncated_requests=3), 200, 50,
            ),
            Told("tova:budget=8", "lm_eval", {"task": "lambada"}, rows(perplexity=31.5), 200, 0),
            Told("transformer", "lm_eval", {"task": "lambada"}, [], status="timeout"),
        ]  # fmt: skip

    def test_numbers_errors_and_requests(self, tmp_path):
        table = lm_eval_table(group_of(tmp_path, self.cells()), "lm_eval")
        assert table.columns == ["architecture", "piqa\nacc\nn = 100", "lambada\nperplexity"]
        assert [[e.plain for e in row] for row in table.rows] == [
            ["transformer", "50.0 % (± 5.0 %)", "timeout"],
            ["tova:budget=8", "40.0 % (± 4.0 % · acted in 25 % · 3 requests cut)", "31.5 (not exercised)"],
        ]

    def test_filters_keep_their_names(self, tmp_path):
        rows = [
            {"metric": "exact_match,strict-match", "value": 0.25},
            {"metric": "exact_match,strict-match_stderr", "value": 0.1},
        ]
        group = group_of(tmp_path, [Told("transformer", "lm_eval", {"task": "gsm8k"}, rows)])
        table = lm_eval_table(group, "lm_eval")
        assert table.columns[1] == "gsm8k\nexact_match,strict-match"
        assert table.rows[0][1].plain == "25.0 % (± 10.0 %)"

    def test_what_is_of_a_hundred_is_no_share(self, tmp_path):
        """SQuAD's F1; one architecture's that happens to be below 1 is of the same kind."""
        cells = [
            Told(architecture, "lm_eval", {"task": task}, [
                {"metric": "f1", "value": value}, {"metric": "f1_stderr", "value": value / 10},
                {"metric": "exact_match", "value": value},
            ])
            for task, values in {"squadv2": (54.3, 0.5), "drop": (1.0, 0.5)}.items()
            for architecture, value in zip(("transformer", "tova:budget=8"), values, strict=True)
        ]  # fmt: skip
        table = lm_eval_table(group_of(tmp_path, cells), "lm_eval")
        assert [[e.plain.partition(" · ")[0] for e in row[1:]] for row in table.rows] == [
            ["54.3 (± 5.43)", "54.3", "100.0 % (± 10.0 %)", "100.0 %"],
            ["0.500 (± 0.0500", "0.500 (acted in 100 %)", "50.0 % (± 5.0 %", "50.0 % (acted in 100 %)"],
        ]


class TestShares:
    def test_several_needles_have_three_measures(self, tmp_path):
        rows = []
        for trial, part in enumerate((1.0, 0.5, 0.0, 0.5)):
            rows += case(f"m{trial}", accuracy_any=part > 0, accuracy_all=part == 1, accuracy_mean=part)
        suite = "needle:needles=2,query=all"
        cells = [
            Told("transformer", suite, {"length": 512, "depth": depth}, chosen, 2)
            for depth, chosen in ((0.0, rows[:6]), (1.0, rows[6:]))
        ]
        group = group_of(tmp_path, cells)
        (section,) = task_sections(group)
        (table,) = section.tables
        assert table.columns == ["architecture", "any found\nn = 4", "all found\nn = 4", "mean recall\nn = 4"]
        shown = [field.plain for field in table.rows[0]]
        low, high = (100 * end for end in wilson(3, 4))
        assert shown[:2] == ["transformer", f"75.0 % ({low:.0f}–{high:.0f} %)"]
        assert shown[2].startswith("25.0 %") and shown[3].startswith("50.0 %")
        page = build([tmp_path], tmp_path / "out").read_text(encoding="utf-8")
        assert "No needle suite" not in page and "Several needles at once" in page

    def test_ruler_by_task_and_length(self, tmp_path):
        cells = []
        for length in (1024, 2048):
            for task, parts in {"multikey": (1.0, 0.0), "multivalue": (0.5, 1.0)}.items():
                rows = []
                for number, part in enumerate(parts):
                    rows += case(f"{number}", ruler_part=part, ruler_all=part == 1)
                cells.append(Told("tova:budget=8", "ruler", {"task": task, "length": length}, rows, 2))
        (section,) = task_sections(group_of(tmp_path, cells))
        whole, part = section.tables
        assert [[e.text for e in row] for row in whole.rows] == [
            ["tova:budget=8", "1,024", "50.0 %", "50.0 %"], ["tova:budget=8", "2,048", "50.0 %", "50.0 %"],
        ]  # fmt: skip
        assert [e.text for e in part.rows[0]][2:] == ["50.0 %", "75.0 %"]
        assert part.rows[0][3].note == "50–100 % · acted in 100 %"

    def test_recall_by_pairs_and_the_price_of_the_right_value(self, tmp_path):
        rows = case("a", recall_accuracy=1, gold_nll_nats=0.5)
        rows += case("b", recall_accuracy=0, gold_nll_nats=1.5)
        cells = [Told("transformer", "recall", {"length": 512, "pairs": n}, rows, 2) for n in (4, 16)]
        group = group_of(tmp_path, cells)
        (section,) = task_sections(group)
        right, nats = section.tables
        assert right.columns == ["architecture", "pairs 4\nn = 2", "pairs 16\nn = 2"]
        assert right.rows[0][1].text == "50.0 %"
        assert nats.rows[0][1].plain == "1.00 (0.500 to 1.500)"
        assert scrolls_sections(group) == []  # a gold answer without bytes is none of SCROLLS's


class TestVerdict:
    def test_only_scrolls(self, tmp_path):
        cells = [cell for cell in all_suites() if cell.suite.startswith("scrolls")]
        run = write_cells(tmp_path / "run", cells)
        told = json.loads((run / "run.json").read_text()) | {"text": None}  # data of the suite's own
        (run / "run.json").write_text(json.dumps(told))
        page = build([run], tmp_path / "out").read_text(encoding="utf-8")
        verdict = page.split("<h2>Verdict</h2>")[1].split("</section>")[0]
        assert "what scrolls:length=2048 scored stands below" in verdict and "live cache" in verdict
        assert "Long documents: SCROLLS" in page and "scrolls:all@0a1b2c3d4e5f" in page.split("<main>")[0]
        text = markdown(load_run(run))
        assert "| architecture | live cache<br>per request |" in text and "mean of the seven" in text
        assert text.count("Weights (reference)") == 1

    def test_only_lm_eval(self, tmp_path):
        cells = [cell for cell in all_suites() if cell.suite.startswith("lm_eval")]
        first, second = summary(load_run(write_cells(tmp_path, cells)))
        assert first.title.endswith("Means over all requests.") and "live cache" in first.columns[1]
        assert any("what lm_eval:tasks=three scored stands below" in note for note in first.notes)
        assert second.columns[1] == "hellaswag\nacc\nn = 100" and len(second.rows) == 7

    def test_bytes_of_untimed_suites_are_per_request(self, tmp_path):
        """A batch of two and a last one of one: the mean counts requests, not batches."""
        cell = scrolls("transformer", "qasper", case("e", token_f1=1, **gold(1)))
        cell.rows.append({"metric": "cache_bytes_live", "value": 1024.0, "batch": 1})
        (found, *_) = summary(load_run(write_cells(tmp_path, [cell])))
        assert found.columns[1] == "live cache\nper request"
        assert found.rows[0][1] == "131 KiB"  # (2 × 200,000 + 1,024) / 3

    def test_task_scores_are_not_listed_again(self, page):
        numbers = page.read_text(encoding="utf-8").split("<h2>All numbers</h2>")[1].split("</section>")[0]
        for name in ("rouge1", "gold_nll_nats", "acc_norm", "ruler_part", "recall_accuracy", "accuracy_mean"):
            assert name not in numbers and f">{METRICS[name].label}<" not in numbers
        (note,) = re.findall(r"Not listed here: .*?<", numbers)
        assert all(METRICS[name].label in note for name in ("watched_held_share", "bucket_nll_nats"))
        assert numbers.count("<tr>") < 120

    @pytest.mark.parametrize("kind", ["needle:", "pg19:", "scrolls", "lm_eval", "ruler", "recall"])
    def test_idle_policies_are_marked_in_every_table(self, tmp_path, kind):
        """Every table of answers that has a number of an idle policy says so beside it, or above it."""
        cells = all_suites(architectures=("transformer", "tova:budget=128"))
        cells = [replace(cell, acted=0) for cell in cells if cell.suite.startswith(kind)]
        answers = (
            "needle, |bits/byte|bits per byte|found|times 100|in no mean|standard error|share of|right value"
        )
        checked = 0
        for section in page_of(tmp_path, cells).split("<section>")[1:]:
            if section.startswith(("<h2>Evicted", "<h2>Cost", "<h2>Reading")):
                continue
            for table in re.findall(r"<table>.*?</table>", section, re.DOTALL):
                lines = [line for line in table.split("<tr>") if "tova:budget=128" in line]
                if re.search(answers, table.partition("<tbody>")[0]) and lines:
                    checked += 1
                    assert all("not exercised" in line for line in lines), table
        assert checked >= 1

    def test_maps_mark_idle_lengths(self, tmp_path):
        rows = [*case("a", accuracy_strict=1), *case("b", accuracy_strict=0)]
        cells = [
            Told("tova:budget=8", "needle", {"length": length, "depth": 0.0}, rows, 2, acted)
            for length, acted in ((128, 0), (512, 2))
        ]
        page = (
            page_of(tmp_path, cells).split("<h2>Needles by length and depth</h2>")[1].split("</section>")[0]
        )
        assert "128 tokens<small>not exercised</small>" in page and "512 tokens</th>" in page
        assert "50 %<small>9–91 %</small><small>1 of 2</small>" in page  # Wilson, cell by cell

    def test_nothing_is_drawn_where_there_are_no_rows(self, tmp_path):
        cells = [Told("transformer", "decode", {"context": 64, "batch": 1})]
        group = group_of(tmp_path / "run", cells)
        assert not (scrolls_sections(group) or lm_eval_sections(group) or task_sections(group))
        page = build([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")
        for heading in ("SCROLLS", "lm-eval", "RULER", "recall", "Evicted", "Language modelling"):
            assert f"<h2>{heading}" not in page and heading not in page.split("<h2>Reading guide")[0]

    def test_contexts_of_tasks_do_not_disturb_the_verdict(self, tmp_path):
        (group,) = groups(load_run(write_cells(tmp_path, all_suites())))
        assert {context for context, _ in by_context(group)} == {128.0, 512.0, 1024.0, 10240.0}


def test_a_bootstrap_of_a_ratio_is_one_of_sums():
    import numpy as np

    columns = np.array([[1.0, 1.0], [9.0, 3.0]])
    assert bootstrap(columns, lambda sums: sums[0] / sums[1]) == (1.0, 3.0)


def test_the_whole_page_keeps_its_size(page):
    assert page.stat().st_size < 700_000
