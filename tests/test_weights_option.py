"""`--weights FOLDER`: networks of ours from there and nowhere else; numbers belong to what is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_help import DECODE, TINY, TRANSFORMER, ask, desk_with_a_run, refused, save_own_weights

import models
from harness.loading import load_model, weights_of
from harness.plan import Plan, Settings
from harness.runner import prepare
from models.checkpoint import load_card

WEIGHTS = Path(models.__file__).parent / "weights"


@pytest.fixture
def desk(tmp_path, monkeypatch):
    return desk_with_a_run(tmp_path, monkeypatch)


@pytest.fixture
def folder(desk):
    return save_own_weights(desk).rename(desk / "mine")


def prepared(**settings):
    return prepare(Plan("p", ("transformer",), ("decode:contexts=32",), Settings(**settings)))


def test_networks_are_those_of_the_folder(desk, folder):
    settings, shipped = Settings(weights="mine"), Settings()
    sha256 = load_card("transformer", [folder])["sha256"]
    found = weights_of("transformer", settings)
    assert found.label == f"transformer@{sha256[:12]}" != weights_of("transformer", shipped).label
    ours, theirs = (load_model("transformer", s).head.weight for s in (settings, shipped))
    assert not (ours == theirs).all()
    # A policy on them, too.
    assert sha256[:12] in weights_of("tova:budget=8", settings).label


def test_compressors_of_another_transformer_are_refused(desk, folder):
    """They belong to the weights that they were trained on, whatever the names say."""
    for file in WEIGHTS.glob("lococo-128.*"):
        shutil.copy(file, folder)
    sentence = refused(desk, "run", "--arch", "lococo:budget=128", *DECODE, "--weights", "mine")
    trained_on, there = (
        load_card(name, [place])["sha256"][:12]
        for name, place in (("transformer", WEIGHTS), ("transformer", folder))
    )
    assert f"fingerprint {trained_on}, and 'transformer' has {there}" in sentence


def test_where_the_folder_lies_does_not_matter_to_numbers(desk, folder):
    before = [cell.key for cell in prepared(weights="mine").cells]
    folder.rename(desk / "moved")
    assert [cell.key for cell in prepared(weights="moved").cells] == before
    assert [cell.key for cell in prepared().cells] != before


def test_a_run_says_whose_weights_it_measured(desk, folder):
    done = ask(
        "run", *TRANSFORMER, *DECODE, "--repeats", "1", "--weights", "mine", "--out", "out", "--no-report"
    )
    assert done.code == 0 and "untrained" in done.out
    assert "Rows: out" in done.out and "Report:" not in done.out and not (desk / "reports").exists()


def test_a_record_does_not_say_where_they_lay_and_goes_on_under_any_spelling(desk, folder):
    command = ("run", *TRANSFORMER, *DECODE, "--repeats", "1", "--out", "out", "--no-report", "--weights")
    assert ask(*command, str(folder.resolve())).code == 0
    assert str(desk) not in (desk / "out" / "run.json").read_text(encoding="utf-8")
    done = ask(*command, "mine")
    assert done.code == 0 and "1 of 1 cells were measured before" in done.out


def test_what_is_not_there_is_not_taken_from_elsewhere(desk, folder):
    sentence = refused(desk, "run", "--arch", "yoco", *DECODE, "--weights", "mine")
    assert "no weights 'yoco-swa' in mine" in sentence
    assert "no weights 'transformer' in nowhere" in refused(
        desk, "plan", *TRANSFORMER, *DECODE, "--weights", "nowhere"
    )


def test_weights_go_with_neither_a_shape_nor_a_model(desk, folder):
    for other in (TINY, ("--model", "mine")):
        assert "not with model, nor with shape" in refused(
            desk, "run", *TRANSFORMER, *DECODE, *other, "--weights", "mine"
        )
