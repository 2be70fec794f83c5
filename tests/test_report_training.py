"""Training in the report: from the cards that a run carries, and from folders of weights."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from recorded_run import SMALL, write_run
from typer.testing import CliRunner

from harness.cli import app
from harness.loading import told
from harness.report import build, build_curves, load_run
from harness.report.training import Curve, folder_curves, run_curves, training_section
from harness.store import StoreError, write_table

SHIPPED = Path(__file__).resolve().parent.parent / "models" / "weights"


def entries(last: float, tokens: int = 4096) -> list[dict]:
    return [
        {"step": step, "tokens": step * tokens // 4, "loss": 3.0, "bits_per_byte": last + 1 - step / 4,
         "digit_accuracy": None if step == 1 else step / 4, "dense_accuracy": 0.5, "digits_256": step / 4,
         "tokens_per_s": 900.0}
        for step in range(1, 5)
    ]  # fmt: skip


def weights(
    folder: Path, name: str, last: float, heads: int = 2, seed: int = 0, card: bool = True, **more
) -> None:
    write_table(folder / f"{name}.curve.parquet", pa.Table.from_pylist(entries(last)))
    told_ = {"architecture": name.partition(".")[0], "seed": seed, "recipe": {"induction_heads": heads}}
    told_ |= more
    if card:
        (folder / f"{name}.json").write_text(json.dumps(told_ | {"hardware": "a toaster"}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "trained"
    path.mkdir()
    for seed, last in enumerate((2.0, 2.2, 2.4)):
        weights(path, f"transformer.{seed}", last, seed=seed)
    weights(path, "yoco.free", 2.6, heads=0)
    weights(path, "yoco.half", 3.0, card=False)
    return path


def texts(table) -> dict[str, list[str]]:
    return {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}


def test_a_folder_has_a_line_per_training_and_the_spread_over_seeds(folder):
    (part,) = training_section(folder_curves([folder]), "t")
    ends, seeds = part.tables
    rows = texts(ends)
    assert rows["transformer.1"][:5] == ["transformer", "yes", "1", "4,096", "2.200"]
    assert rows["yoco.free"][1] == "no" and rows["yoco.half (not finished)"][1] == "–"
    assert "answers\n256 tokens" in ends.columns
    assert texts(seeds)["transformer"][:3] == ["4,096", "0, 1, 2", "2.200 (2.000 to 2.400)"]
    assert list(texts(seeds)) == ["transformer"]  # one seed has no spread
    bits, digits, _ = part.charts
    assert "yoco, no hand-set start" in bits.svg
    first = [row for row in digits.table.rows if row[0].text == "transformer.0"]
    assert [row[2].text for row in first] == ["–", "50.0 %", "75.0 %", "100.0 %"]


def dashes(chart) -> dict[str, str]:
    """Line -> its dashes, by the legend."""
    handles = chart.svg.partition("legend_1")[2]
    lines = re.findall(r'style="(fill: none; [^"]*stroke-width: 1.6[^"]*)"', handles)
    names = re.findall(r"<text[^>]*>([^<]*)</text>", handles)
    found = [re.search(r"stroke-dasharray: ([\d.,]*)", mark) for mark in lines]
    return dict(zip(names, [match[1] if match else "" for match in found], strict=True))


def test_a_start_that_nobody_tells_is_neither_solid_nor_dashed(folder):
    """A training that is not finished has no card; beside a finished one it is a line of its own."""
    weights(folder, "yoco", 2.5)
    (folder / "yoco.half.curve.parquet").rename(folder / "yoco~.curve.parquet")
    (part,) = training_section(folder_curves([folder]), "t")
    drawn = dashes(part.charts[0])
    assert drawn["transformer"] == drawn["yoco"] == ""
    assert len({"", drawn["yoco, no hand-set start"], drawn["yoco~, start not known"]}) == 3
    assert "of dotted ones the start is not known" in part.lead


def test_variants_of_a_family_have_markers_of_their_own():
    """Dashes tell the start, so nothing else is left; and a variant looks alike in each chart."""
    specs = ["lococo", *(f"lococo:budget={n}" for n in range(3))]
    curves = [Curve(spec, spec, 2, 0, entries(2.0)) for spec in specs]
    curves[0] = replace(curves[0], points=[{"tokens": 1, "bits_per_byte": 2.0}])
    (part,) = training_section(curves, "t")
    found = [
        set(re.findall(r'<path id="[^"]*" d="([^"]*)" style="stroke: var\(--lococo\)', chart.svg))
        for chart in part.charts
    ]
    assert [len(shapes) for shapes in found] == [4, 3, 3] and found[1] < found[0]


def seeds(folder: Path) -> list[list[str]]:
    """Seeds and bits per byte of each line of the spread, and the caption."""
    (part,) = training_section(folder_curves([folder]), "t")
    return [[row[2].text, row[3].text, table.caption] for table in part.tables[1:] for row in table.rows]


def test_the_same_seed_again_is_no_further_sample(tmp_path):
    weights(tmp_path, "transformer.0", 2.0)
    weights(tmp_path, "transformer.1", 2.9)
    weights(tmp_path, "transformer.half", 3.9, card=False)
    assert seeds(tmp_path) == []
    weights(tmp_path, "transformer.2", 2.2, seed=1)
    ((told_, bits, caption),) = seeds(tmp_path)
    assert (told_, bits) == ("0, 1", "2.100 (2.000 to 2.200)")
    assert "no finding" not in caption  # two seeds tell nothing
    weights(tmp_path, "transformer.3", 2.4, seed=2)
    ((told_, _, caption),) = seeds(tmp_path)
    assert told_ == "0, 1, 2" and caption.endswith("inside it is no finding.")


@pytest.mark.parametrize(("more", "alike"), [
    ({"recipe": {"induction_heads": 2, "muon_lr": 0.5}}, False),
    ({"data": {"seed": 1, "lengths": [256]}}, False),
    ({"trained_length": 512}, False),
    ({"recipe": {"induction_heads": 2, "seed": 1, "log_every_s": 5}, "data": {"seed": 1}}, True),
    ({"seed": None}, False),
], ids=str)  # fmt: skip
def test_only_trainings_that_are_alike_but_for_the_seed_have_a_spread(tmp_path, more, alike):
    weights(tmp_path, "transformer.0", 2.0, data={"seed": 0})
    weights(tmp_path, "transformer.1", 2.4, **{"seed": 1, "data": {"seed": 1}} | more)
    assert bool(seeds(tmp_path)) == alike


def test_speed_is_named_by_what_it_is_a_share_of(folder):
    """No figure without its definition."""
    (part,) = training_section(folder_curves([folder]), "t")
    assert part.tables[0].notes == []  # nobody told it
    points = [point | {"mfu": 0.25} for point in entries(2.0)]
    write_table(folder / "yoco.free.curve.parquet", pa.Table.from_pylist(points))
    (part,) = training_section(folder_curves([folder]), "t")
    ends = part.tables[0]
    at = ends.columns.index("speed /\nmatrix product")
    assert {row[0].text: row[at].text for row in ends.rows}["yoco.free"] == "25.0 %"
    assert "MFU" not in ends.columns and "same machine" in ends.notes[0]


def test_two_folders_keep_their_names_apart_and_make_one_page(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    weights(other, "transformer.0", 1.5)
    result = CliRunner().invoke(
        app, ["report", "--curves", str(folder), "--curves", str(other), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "trained/transformer.0" in text and "other/transformer.0" in text and "How the weights" in text
    assert str(tmp_path) not in text
    assert sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())[0] == "training-0.png"
    assert build_curves([folder, other], tmp_path / "again").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "broken", ["nothing", "curve", "card", "rows", "both", "neither"],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_sentence(folder, tmp_path, broken):
    asked = ["--curves", str(folder)]
    if broken == "nothing":
        for file in folder.iterdir():
            file.unlink()
    elif broken == "curve":
        (folder / "yoco.free.curve.parquet").write_bytes(b"PAR1 no")
    elif broken == "card":
        (folder / "yoco.free.json").write_text("{", encoding="utf-8")
    elif broken == "rows":
        write_table(folder / "yoco.free.curve.parquet", pa.table({"a": [1]}))
    else:
        asked = [] if broken == "neither" else [*asked, str(tmp_path)]
    result = CliRunner().invoke(app, ["report", *asked, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("kvmark: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_carries_its_cards_curves(tmp_path):
    """What `run.json` keeps of a shipped card is enough to draw it; a run of before is drawn without."""
    run = write_run(tmp_path / "run", **SMALL, telemetry=False)
    assert run_curves(load_run(run)) == []
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    card = json.loads((SHIPPED / "transformer.json").read_text(encoding="utf-8"))
    manifest["weights"] = {"transformer": told(card)}
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    (curve,) = run_curves(load_run(run))
    assert curve.points == card["losses"]["curve"] and curve.seed == card["seed"]
    assert curve.heads == card["recipe"]["induction_heads"]
    kept = manifest["weights"]["transformer"]
    assert kept["trained_length"] == max(card["data"]["lengths"])
    assert kept["data"]["shares"] == card["data"]["shares"] and "books_sha256" not in kept["data"]
    text = build([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "<h2>Training</h2>" in text and "no figures of text that was held out" in text


def test_cards_of_others_say_no_more_than_before():
    assert told({"sha256": "1", "notes": "a checkpoint"}) == {
        "sha256": "1", "notes": "a checkpoint", **dict.fromkeys(["parameters", "tokens", "command", "commit"])
    }  # fmt: skip


def test_a_folder_without_curves_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no curve of a training"):
        folder_curves([tmp_path])
