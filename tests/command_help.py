"""Commands asked in this process, the desk they are asked at, and refusals that leave it as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from harness_help import Done, one_sentence, tree
from recorded_run import SMALL, write_run
from typer.testing import CliRunner

import models
from harness import cli
from models.checkpoint import CARD_FIELDS, save
from models.shapes import load_shape

USAGE, ENVIRONMENT = 2, 3
DECODE = ("--suite", "decode:contexts=32")
TRANSFORMER = ("--arch", "transformer")
TINY = ("--shape", "tiny")


def desk_with_a_run(folder: Path, monkeypatch) -> Path:
    """The folder as working directory, with one finished run in it and nothing else."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    write_run(folder / "good", **{**SMALL, "telemetry": False})
    return folder


def ask(*arguments: str) -> Done:
    done = CliRunner().invoke(cli.app, list(arguments))
    error = done.exception
    broke = None if error is None or isinstance(error, SystemExit) else repr(error)
    return Done(done.exit_code, done.stdout, done.stderr, broke)


def refused(desk: Path, *arguments: str, code: int = USAGE) -> str:
    """The sentence of a refusal that left every file as it was."""
    before = tree(desk)
    sentence = one_sentence(ask(*arguments), code)
    assert tree(desk) == before
    return sentence


def save_own_weights(desk: Path) -> Path:
    """Untrained weights of the family's shape with a proper card, in the working directory."""
    shape = load_shape("family")
    card = {field: None for field in CARD_FIELDS} | {"shape": vars(shape), "notes": "untrained"}
    folder = desk / "results" / "weights"
    torch.manual_seed(0)
    save(folder, "transformer", models.build("transformer", shape).state_dict(), card)
    return folder


def look_at_own_weights_only(monkeypatch) -> None:
    """The shipped weights would stand in for missing ones."""
    monkeypatch.setattr("models.checkpoint.default_folders", lambda: [Path.cwd() / "results" / "weights"])
