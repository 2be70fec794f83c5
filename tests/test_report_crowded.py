"""The plan of many budgets, drawn: its long specs leave room for the axes, and its lines are policies."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from recorded_tasks import Told, case, write_cells

import models
from harness.report import load_run, summary
from harness.report.budget_lines import over_budgets
from harness.report.budgets import absent_alerts, near, policies, policy_names, rest, said, slices
from harness.report.by_budget import budget_section, bytes_section
from harness.report.canvas import wrapped
from harness.report.cost import cost_section
from harness.report.groups import Group, groups
from harness.report.load import TELEMETRY_COLUMNS, Run
from harness.report.measured import measures
from harness.report.needles import needle_sections
from harness.report.quality import quality_section
from harness.report.sections import sections
from harness.report.style import css
from harness.report.timeline import timelines

PLAN = Path(__file__).parents[1] / "harness" / "plans" / "quality.toml"
JOBS, SECONDS = 50, 12
SUITE = "needle:lengths=2048,variant=keyed"
FAILED, IDLE = "yoco:mixer=retention", "tova:budget=1024"


def specs() -> list[str]:
    return [models.canonical_spec(s) for s in tomllib.loads(PLAN.read_text("utf-8"))["architectures"]]


def lococos(group: Group) -> list[str]:
    return [spec for spec in group.architectures if spec.startswith("lococo")]


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Group:
    """Everybody on one suite: one failed, one had nothing to do, budgets in bytes were asked nothing."""
    cells = []
    for spec in specs():
        rows = case("one", accuracy_strict=1, accuracy_substring=1) + case("two", accuracy_strict=0)
        state = {"status": "oom"} if spec == FAILED else {"acted": 0} if spec == IDLE else {}
        asked = rows if "budget_bytes" not in spec else []
        cells.append(Told(spec, SUITE, {"length": 2048, "depth": 0.5}, asked, **state))
    (found,) = groups(load_run(write_cells(tmp_path_factory.mktemp("plan") / "run", cells)))
    return found


@pytest.fixture(scope="module")
def parts(group) -> dict[str, list]:
    """Part of the page -> its charts."""
    scores = measures(group)
    return {
        "budget": budget_section(group, "b", scores)[0].charts,
        "bytes": bytes_section(group, "y", scores).charts,
        "cost": cost_section(near(group), "c").charts,
        "maps": needle_sections(near(group), "n", rest(group))[0].charts,
    }


def texts(svg: str) -> list[tuple[float, float, str, str]]:
    """(left end, right end, text, style) of what is written along the x axis, in points."""
    found = []
    for mark, text in re.findall(r"<text ([^>]*)>([^<]*)</text>", svg):
        if "rotate(-90" in mark or not text.strip():
            continue
        size = float(re.search(r"([\d.]+)px", mark)[1])
        place = re.search(r'translate\(([-\d.]+) |x="([-\d.]+)"', mark)
        weight = "bold" if re.search(r"\b(bold|700)\b", mark) else "normal"
        font = FontProperties(family="DejaVu Sans", weight=weight)
        width = TextPath((0, 0), text.strip(), size=size, prop=font).get_extents().x1
        start = float(place[1] or place[2]) - ("middle" in mark) * width / 2 - ("anchor: end" in mark) * width
        found.append((start, start + width, text.strip(), mark))
    return found


def plot_area(svg: str) -> tuple[float, float]:
    """(width, height) of the axes, in points."""
    path = re.search(r'id="[^"]*patch_1">\s*<path d="([^"]*)"', svg)[1]
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    x, y = numbers[::2], numbers[1::2]
    return max(x) - min(x), max(y) - min(y)


class TestLegibility:
    """Drawing itself warns, and so fails, where axes collapse."""

    @pytest.mark.parametrize("part", ["budget", "bytes", "cost"])
    def test_a_long_legend_leaves_the_axes_their_height(self, parts, part):
        (chart,) = parts[part]
        width, height = plot_area(chart.svg)
        assert height > 1.9 * 72 and width > 3.5 * 72

    def test_maps_are_as_wide_with_a_long_name_as_with_a_short_one(self, parts):
        areas = {chart.title: plot_area(chart.svg) for chart in parts["maps"]}
        (long,) = (area for title, area in areas.items() if "lococo" in title)
        assert long == pytest.approx(areas["transformer"], rel=0.1)

    @pytest.mark.parametrize("part", ["budget", "bytes", "cost", "maps"])
    def test_nothing_written_is_cut(self, parts, part):
        for chart in parts[part]:
            width = float(re.search(r'width="([\d.]+)pt"', chart.svg)[1])
            written = texts(chart.svg)
            assert len(written) > 3
            cut = [text for left, right, text, _ in written if left < -1 or right > width + 1]
            assert not cut, (chart.title, width)

    def test_names_are_broken_behind_commas_and_nothing_of_them_is_lost(self):
        for spec in [*specs(), "short", "x" * 80, "yoco:" + "y" * 80 + ",local=3"]:
            for width in (20, 34):
                lines = wrapped(spec, width).split("\n")
                assert "".join(lines) == spec and max(map(len, lines)) <= width
        assert wrapped("lococo:budget=128,block=16,sinks=4", 20).split("\n")[0] == "lococo:budget=128,"

    def test_first_columns_of_tables_are_wrapped(self):
        rule = re.search(r"tbody th\{([^}]*)\}", css())[1]
        assert "nowrap" not in rule and "overflow-wrap:anywhere" in rule and "max-width" in rule


class TestLines:
    def test_lococo_is_one_line_beside_the_official_one(self, group):
        official, ours = (specs for name, specs in policies(group).items() if name.startswith("lococo"))
        assert len(official) == 1 and len(ours) == 3 and len({policy_names(group)[s] for s in ours}) == 1

    def test_at_one_budget_the_options_that_follow_it_tell_apart(self, group):
        run = Run({"cells": []}, group.rows, group.run.telemetry)

        def lines(*told: str) -> list[int]:
            own = Group(run, "quality", group.rows, list(told))
            return [len(specs) for specs in policies(own).values()]

        assert lines("lococo:budget=64,local=40", "lococo:budget=128,local=90") == [2]
        assert lines("lococo:budget=64,local=40", "lococo:budget=64,local=8") == [1, 1]
        assert lines("lococo:budget=64", "lococo:budget=128,local=90") == [1, 1]
        assert lines("tova:budget=64,local=40", "tova:budget=128,local=90") == [1, 1]

    def test_the_verdict_shows_the_lococo_of_the_others_budget(self, group):
        own = [spec for spec in near(group).architectures if "budget" in spec]
        assert {re.search(r"budget=(\d+)", spec)[1] for spec in own} == {"256"} and len(own) == 9
        official, *ours = lococos(group)
        assert [s for s in own if s.startswith("lococo")] == [ours[1]]
        folded = {spec for _, part in slices(group) for spec in part.architectures}
        assert {official, ours[0], ours[2]} <= folded
        assert {*near(group).architectures, *rest(group).architectures} == {*group.architectures}
        assert "variants whose nearest is farther" in said(group)
        (alert,) = absent_alerts(group)
        assert "maps: lococo, whose nearest budget is 128 tokens" in alert and ours[1] in alert
        (verdict, *_) = sections(group, "x")
        assert alert in verdict.alerts and alert in summary(group.run)[0].notes
        assert absent_alerts(near(group)) == []

    def test_a_family_without_that_budget_is_shown_at_its_nearest(self, group):
        less = [spec for spec in group.architectures if spec != lococos(group)[2]]
        few = Group(group.run, group.axis, group.rows, less)
        shown = [spec for spec in near(few).architectures if spec.startswith("lococo")]
        assert shown == [spec for spec in lococos(few) if "budget=128" in spec] and len(shown) == 2

    def test_asked_again_it_is_the_same_group(self, group):
        assert near(group) is near(group) and rest(group) is rest(group) and slices(group) is slices(group)
        assert near(near(group)) is near(group)


class TestPoints:
    @pytest.mark.parametrize("part", ["budget", "bytes"])
    def test_hollow_means_that_the_policy_had_nothing_to_do(self, parts, part):
        (chart,) = parts[part]
        assert len(re.findall(r"<use[^>]*fill: var\(--paper\)", chart.svg)) == 1

    def test_variants_of_a_family_have_markers_of_their_own(self, parts):
        (chart,) = parts["budget"]
        shapes = set(re.findall(r'<path id="[^"]*" d="([^"]*)" style="stroke: var\(--lococo\)', chart.svg))
        assert {shape.count("L") for shape in shapes} == {3, 7}  # a diamond and a star of four points

    def test_points_stand_beside_their_budget_and_not_between_two(self, group):
        frame = pd.DataFrame({"architecture": [spec for spec in specs() if "budget=256" in spec]})
        frame = frame.assign(value=0.5, low=0.4, high=0.6, idle=False, doubt=None)
        svg = over_budgets("x", "x", "accuracy_strict", frame, group).svg
        axes = svg.partition("legend_1")[0]
        x = sorted(map(float, re.findall(r'<use[^>]*x="([\d.]+)"[^>]*style="fill: var\(--(?!muted)', axes)))
        octave = plot_area(svg)[0] / 0.6439  # the axis reaches from 256 / 1.25 to 256 * 1.25
        assert len(x) == len(frame) and all(after > before for before, after in pairwise(x))
        assert 0.05 < (x[-1] - x[0]) / octave < 0.17

    def test_what_has_no_point_is_named_whatever_it_is(self, group):
        note = next(n for n in budget_section(group, "x", measures(group))[0].notes if "No point" in n)
        missing = [spec for spec in group.architectures if "budget_bytes" in spec] + [FAILED]
        assert all(spec in note for spec in missing) and "h2o:budget=64" not in note

    def test_each_kind_of_budget_has_a_column(self, group):
        told = [IDLE, "transformer", "h2o:budget_bytes=617472"]
        frame = pd.DataFrame({"architecture": told}).assign(
            value=0.5, low=0.4, high=0.6, idle=False, doubt=None
        )
        table = over_budgets("x", "x", "accuracy_strict", frame, group).table
        assert table.columns == ["policy", "1,024 tokens", "no budget", "budget in bytes"]
        shown = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
        assert shown["h2o:budget_bytes=617472"] == ["–", "–", "50.0 %"]
        assert shown["transformer"] == ["–", "50.0 %", "–"] and shown["tova"] == ["50.0 %", "–", "–"]

    def test_hollow_is_explained_where_it_is_seen(self, group):
        assert "hollow" in bytes_section(group, "x", measures(group)).lead
        assert "hollow" in budget_section(group, "x", measures(group))[0].lead
        assert "ollow" not in cost_section(near(group), "c").lead + quality_section(near(group), "q").lead


@pytest.fixture(scope="module")
def memory():
    """Jobs of two phases each, sampled fifty times a second; the memory jumps once, for one sample."""
    lines, cells = [], []
    for job in range(JOBS):
        key, at = f"{job:03d}", 1000.0 * job
        cells.append({"key": key, "architecture": "transformer", "suite": "pg19", "axes": {}})
        for start, phase in ((0.0, "prefill"), (8.0, "score")):
            mark = {"kind": "mark", "cell": key, "phase": phase, "architecture": "transformer"}
            lines.append({"job": key, "t_s": at + start, **mark})
        for n in range(SECONDS * 50 + 1):
            high = 9e9 if (job, n) == (7, 333) else 1e9 + (n * 7919 + job * 104729) % 1000 * 5e6
            lines.append({"job": key, "t_s": at + n / 50, "kind": "sample", "rss_bytes": high})
    telemetry = pd.DataFrame(lines).reindex(columns=TELEMETRY_COLUMNS)
    rows = pd.DataFrame({"architecture": ["transformer"], "cell": ["000"]})
    (chart,) = timelines("m", Run({"cells": cells}, rows, telemetry))
    return chart


class TestTimeline:
    def test_the_axis_tells_seconds_of_work(self, memory):
        """So many pixels are a second by the ticks; the last job ends within a tenth of the work."""
        ticks = sorted((float(text), (left + right) / 2) for left, right, text, _ in texts(memory.svg)
                       if text.isdigit())  # fmt: skip
        second = (ticks[-1][1] - ticks[0][1]) / (ticks[-1][0] - ticks[0][0])
        drawn = [x for line in curves(memory.svg) for x, _ in line]
        assert 1 <= (max(drawn) - min(drawn)) / second / (JOBS * SECONDS) < 1.11

    def test_a_chart_holds_what_can_be_seen_of_it(self, memory):
        """The one sample of 30,000 that stands out is drawn."""
        points = [point for line in curves(memory.svg) for point in line]
        assert len(points) < 1500 and len(curves(memory.svg)) == JOBS and memory.svg.count("<path") < 120
        highest, second, *_ = sorted(y for _, y in points)
        assert highest < second - 20

    def test_its_table_counts_every_sample(self, memory):
        rows = {row[1].text: [entry.text for entry in row] for row in memory.table.rows}
        assert rows["prefill"][4] == f"{JOBS * 401:,}" and rows["score"][4] == f"{JOBS * 201:,}"
        assert rows["prefill"][3] == "8.38 GiB" and rows["score"][3] == "5.58 GiB"


def curves(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each line in ink within the axes."""
    lines = re.findall(r'<path d="([^"]*)" clip-path[^>]*style="fill: none; stroke: currentColor', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", line)] for line in lines]
