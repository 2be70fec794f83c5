"""α and entropy per layer of LoCoCo's compressors: from folders of curves, and from the cards of a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from recorded_run import SMALL, write_run

from harness.loading import told
from harness.report import build, build_curves, load_run
from harness.report.compressors import in_lines, layers
from harness.report.training import folder_curves, run_curves, training_section
from harness.training import write_curve
from models.training_log import LogEntry, summarise

LAYERS, SLOTS = 3, 32
SPEC = "lococo:budget=128,block=16,slack=0,sinks=4,heavy=0.875,local=108,alpha=bounded,kernel=1"
WHAT = "Compressors on the frozen 'transformer' weights (trainable=compressor), trained"
NOTES = f"{WHAT}; base 12. Hand-set start: 2 heads."


def mixed(step: int, first: float = 0.5) -> dict[str, float]:
    """What a log entry has of each layer: α moves by 0.1 a step and layer, entropy falls from log(slots)."""
    columns: dict[str, float] = {}
    for n in range(LAYERS):
        share = 1 / (1 + n * step)
        columns |= {f"alpha_{n}": first + 0.1 * n * step, f"entropy_{n}": share * math.log(SLOTS)}
        columns[f"entropy_share_{n}"] = share
    return columns


def log(steps: int = 4, more=mixed) -> list[LogEntry]:
    return [
        LogEntry(
            step, step * 4096, 3.0, 2.5 - 0.1 * step, None, {}, None, 1.0, None, 1.0, 1.0, more=more(step)
        )
        for step in range(1, steps + 1)
    ]


def write(folder: Path, name: str, entries: list[LogEntry], card: dict | None = None) -> None:
    """A curve as a training writes it, and a card where it has ended."""
    write_curve(folder / f"{name}.curve.parquet", entries)
    if card is not None:
        losses = {"losses": summarise(entries)}
        (folder / f"{name}.json").write_text(json.dumps(card | losses), encoding="utf-8")


def card(**changes) -> dict:
    data = {"lengths": [1024, 2048], "shares": {"needle": 0.25, "prose": 0.75, "recall": 0.0}}
    told_ = {"architecture": SPEC, "seed": 0, "recipe": {"induction_heads": 0}, "data": data, "notes": NOTES}
    return told_ | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "trained"
    path.mkdir()
    write(path, "transformer", log(more=lambda step: {}), card(architecture="transformer", notes=""))
    write(path, "lococo-128", log(), card())
    write(path, "lococo-64", log(3, lambda step: mixed(step, -0.3)))
    return path


def texts(table) -> dict[str, list[str]]:
    return {row[0].text: [entry.plain for entry in row[1:]] for row in table.rows}


def test_each_compressor_has_a_chart_of_its_layers(folder):
    _, part = training_section(folder_curves([folder]), "t")
    assert [chart.slug for chart in part.charts] == ["t-mixed-0", "t-mixed-1"]
    chart = part.charts[0]
    assert all(f">layer {n}<" in chart.svg for n in range(LAYERS)) and "layer 3" not in chart.svg
    for said in ("α, weight of the mixture", "entropy, share of its maximum", "tokens trained on"):
        assert said in chart.svg
    assert chart.table.columns[:2] == ["tokens", "α\nlayer 0"]
    assert texts(chart.table)["12,288"] == ["0.500", "0.800", "1.100", "100.0 %", "25.0 %", "14.3 %"]
    assert list(texts(chart.table)) == ["4,096", "8,192", "12,288", "16,384"]
    assert len(set(re.findall(r"stroke: (var\(--other-\d\)); stroke-width: 1.2", chart.svg))) == LAYERS


def test_the_last_entry_stands_layer_by_layer_and_in_a_sentence(folder):
    _, part = training_section(folder_curves([folder]), "t")
    trained, last = part.tables
    assert last.columns == ["weights", "layer 0", "layer 1", "layer 2"]
    assert texts(last)["lococo-128"][1] == "0.900 (20.0 % · 0.69 nats)"
    assert texts(last)["lococo-64 (not finished)"][0] == "−0.300 (100.0 % · 3.5 nats)"
    assert part.notes[0] == (
        "lococo-128: α ends at 0.500 to 1.300 over the layers, the entropy at 11.1 % to 100.0 % of its "
        "maximum, as of an even mixture of 1.5 to 32 slots."
    )
    assert len(trained.rows) == len(last.rows) == len(part.notes) == 2  # the Transformer mixes nothing


def test_what_a_compressor_was_trained_on_is_told(folder):
    _, part = training_section(folder_curves([folder]), "t")
    rows, columns = texts(part.tables[0]), part.tables[0].columns
    assert columns[-1] == "bits/byte\ntraining text, through\nthe compressed cache"
    assert rows["lococo-128"][0] == (
        f"sequences of up to 2,048 tokens (75.0 % prose, 25.0 % needle · {WHAT})"
    )
    assert rows["lococo-128"][1:] == ["16,384", "2.100"]
    assert rows["lococo-64 (not finished)"][0] == "–"
    assert "no held-out figure" in part.tables[0].notes[0]


def test_compressors_and_networks_share_no_chart(folder):
    """They were trained on other sequences, and lococo-64, which is not finished, is one of them, too."""
    part, _ = training_section(folder_curves([folder]), "t")
    networks, compressors = part.charts
    assert [chart.slug for chart in part.charts] == ["t-0", "t-3"]
    assert compressors.title.startswith("Compressors: ") and "none of their numbers compares" in part.lead
    assert {row[0].text for row in networks.table.rows} == {"transformer"}
    assert {row[0].text for row in compressors.table.rows} == {"lococo-128", "lococo-64 (not finished)"}
    alone = [curve for curve in folder_curves([folder]) if curve.name == "transformer"]
    assert "compressor" not in training_section(alone, "t")[0].lead


def ticks(chart) -> list[str]:
    """Labels of the axis of α."""
    return re.findall(r">(−?\d\.\d+)</text>", chart.svg)


def test_beyond_one_alpha_is_drawn_and_not_cut_off(folder):
    """The axis holds 0 to 1 for all, and whatever lies outside."""
    curves = {curve.name.split()[0]: curve for curve in folder_curves([folder])}
    assert max(value for _, value in curves["lococo-128"].series("alpha_2")) == pytest.approx(1.3)
    _, part = training_section(list(curves.values()), "t")
    first, second = map(ticks, part.charts)
    assert (first[0], first[-1]) == ("0.00", "1.25") and (second[0], second[-1]) == ("−0.25", "1.00")


def test_a_run_whose_cards_tell_it_shows_it_and_others_do_not_change(tmp_path):
    run = write_run(tmp_path / "run", **SMALL, telemetry=False)
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = {"lococo-128": told(card(losses=summarise(log(more=lambda step: {}))))}
    (run / "run.json").write_text(json.dumps(manifest | {"weights": before}), encoding="utf-8")
    assert len(training_section(run_curves(load_run(run)), "t")) == 1
    now = {"lococo-128": told(card(losses=summarise(log(50))))}
    (run / "run.json").write_text(json.dumps(manifest | {"weights": now}), encoding="utf-8")
    _, part = training_section(run_curves(load_run(run)), "t")
    assert len(part.charts[0].table.rows) == 17  # every third, the last among them
    assert "sequences of up to 2,048 tokens" in texts(part.tables[0])["lococo-128"][0]
    text = build([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "<h2>Training: what the compressors mix</h2>" in text
    assert (tmp_path / "out" / "figures" / "training-mixed-0.png").exists()


def test_entries_of_before_and_entropy_before_the_first_fold_are_gaps(tmp_path):
    """A resumed training's first entries have no columns; nothing is mixed where nothing was folded."""
    nothing = {f"{name}_0": math.nan for name in ("entropy", "entropy_share")}
    entries = log(2, lambda step: {}) + log(3, lambda step: {"alpha_0": 0.5} | nothing)[2:]
    write(tmp_path, "lococo-64", entries)
    (curve,) = folder_curves([tmp_path])
    assert layers(curve) == [0] and curve.series("alpha_0") == [(12288, 0.5)]
    _, part = training_section([curve], "t")
    assert texts(part.tables[1])["lococo-64 (not finished)"] == ["0.500"]
    assert [row[1].text for row in part.charts[0].table.rows] == ["–", "–", "0.500"]
    assert part.notes[0].endswith("α ends at 0.500 over the layers; no entropy is known.")
    assert build_curves([tmp_path], tmp_path / "out").exists()


def test_long_names_are_broken_between_their_options():
    name = "lococo-128-heavy0.875-kernel1-block16-local108-bounded-sinks4-slack0"
    first, second = in_lines(name).split("\n")
    assert first == "lococo-128-heavy0.875-kernel1-block16-local108-" and first + second == name
    assert in_lines(SPEC).replace("\n", "") == SPEC and in_lines("yoco") == "yoco"
