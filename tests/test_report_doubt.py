"""Suspect and invalid points: what a point's verdict is, and where it shows."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from recorded_run import SMALL, write_run

from harness.report import build, load_run, summary
from harness.report.cost import cost_section
from harness.report.doubt import doubts, notes_of
from harness.report.groups import groups
from harness.report.load import Run
from harness.report.verdict import headline


def rows_of(*verdicts: str | None) -> pd.DataFrame:
    reasons = {"suspect": "spread; foreign_cpu_load", "invalid": "throttled"}
    lines = [{"name": "a", "validity": v, "validity_reasons": reasons.get(v)} for v in verdicts]
    return pd.DataFrame(lines).astype({"validity": object, "validity_reasons": object})


@pytest.mark.parametrize(("verdicts", "found"), [
    (("valid", "valid", "suspect"), None), (("valid", "suspect", "suspect"), "suspect"),
    (("valid", "suspect"), None), (("suspect", "invalid", "valid"), "suspect"),
    (("invalid", "invalid", "valid"), "invalid"), ((None, None, None), None), ((None, "invalid"), None),
])  # fmt: skip
def test_a_point_has_the_worst_verdict_that_more_than_half_share(verdicts, found):
    told = doubts(rows_of(*verdicts), ["name"])
    assert [doubt.verdict for doubt in told.values()] == ([found] if found else [])


def test_a_single_row_spoils_a_mean_that_it_is_in():
    (doubt,) = doubts(rows_of("valid", "valid", "invalid"), ["name"], tolerated=0.0).values()
    assert doubt.verdict == "invalid" and doubt.reasons == ("throttled",)
    assert doubts(rows_of("valid", None), ["name"], tolerated=0.0) == {}


def test_reasons_are_told_once_and_in_words():
    (doubt,) = doubts(rows_of("suspect", "suspect"), ["name"]).values()
    assert doubt.reasons == ("foreign_cpu_load", "spread")
    (note,) = notes_of([doubt, doubt, None])
    assert note.startswith("† suspect: foreign_cpu_load: Other processes") and note.count("spread:") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """The window's prefills are suspect and its caches invalid; nothing else is in doubt."""
    run = load_run(write_run(tmp_path_factory.mktemp("doubt") / "run", **SMALL, with_failures=False))
    window = run.rows["architecture"].str.startswith("window")
    prefill = window & (run.rows["metric"] == "prefill_s")
    live = window & (run.rows["metric"] == "cache_bytes_live")
    rows = run.rows.assign(validity="valid", validity_reasons=None)
    rows["validity"] = rows["validity"].mask(prefill, "suspect").mask(live, "invalid")
    rows["validity_reasons"] = rows["validity_reasons"].astype(object).mask(prefill, "spread")
    rows["validity_reasons"] = rows["validity_reasons"].mask(live, "live_above_predicted")
    return Run(run.manifest, rows, run.telemetry)


def rings(svg: str) -> list[str]:
    """The path of the ring around each point that has one."""
    used = re.findall(r'<use href="#([^"]*)"[^>]*style="fill-opacity: 0; stroke: var\(--window\)', svg)
    return [re.search(f'<path id="{name}" d="([^"]*)"', svg)[1] for name in used]


def test_charts_ring_it_and_name_the_reason(run):
    (group,) = groups(run)
    charts = {chart.title: chart for chart in cost_section(group, "c").charts}
    prefill, live, step = (charts[name].svg for name in ("Prefill", "Live cache", "Decode step"))
    assert [ring.count("L") for ring in rings(prefill)] == [0, 0]  # two contexts; circles
    assert [ring.count("L") for ring in rings(live)] == [2, 2]  # each with the two strokes of a cross
    assert rings(step) == [] and "suspect" not in step
    assert prefill.count("fill: var(--paper); stroke: var(--window)") == 2  # the marks within are hollow
    assert "suspect (table)" in prefill and "invalid (table)" in live and "invalid" not in prefill
    table = charts["Prefill"].table
    shown = {row[0].text: row[1].text for row in table.rows}
    assert shown["window:budget=128"].endswith(" †") and "†" not in shown["transformer"]
    assert any("spread: The middle half" in note for note in table.notes)


def test_the_verdict_marks_it_and_an_invalid_number_is_no_best(run):
    (group,) = groups(run)
    table = headline(group)
    fields = {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    live = fields["window:budget=128"]["live cache"]
    assert live.text.endswith(" ‡") and not live.best  # the smallest, and worth nothing
    assert fields["transformer"]["live cache"].text == "512 KiB"
    (told,) = summary(run)
    assert any(note.startswith("‡ invalid: live_above_predicted") for note in told.notes)
    assert any("‡" in field for row in told.rows for field in row)


def test_a_page_with_doubts_is_drawn(tmp_path):
    folder = write_run(tmp_path / "run", **SMALL, telemetry=False)
    assert "† suspect, ‡ invalid" in build([folder], tmp_path / "out").read_text(encoding="utf-8")
