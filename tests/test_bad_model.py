"""Weights and checkpoints that cannot be used end in one sentence before anything is made or changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_help import (
    DECODE,
    TINY,
    TRANSFORMER,
    desk_with_a_run,
    look_at_own_weights_only,
    refused,
    save_own_weights,
)
from pretrained_help import write_checkpoint
from tokenizer_help import write_byte_bpe

from models.shapes import load_shape


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    return desk_with_a_run(tmp_path, monkeypatch)


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def own_weights(desk) -> Path:
    return save_own_weights(desk)


def edited(folder: Path, **changes) -> None:
    path = folder / "transformer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def other_shape() -> dict:
    return vars(load_shape("family")) | {"ffn_dim": 64}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: edited(folder, sha256="0" * 64),
        lambda folder: (folder / "transformer.safetensors").write_bytes(b"x" * 1000),
        lambda folder: (folder / "transformer.safetensors").unlink(),
        lambda folder: (folder / "transformer.json").write_text("{"),
        lambda folder: (folder / "transformer.json").unlink(),
        lambda folder: edited(folder, format=99),
        lambda folder: edited(folder, shape=other_shape()),
        lambda folder: edited(folder, shape={"name": "x", "dims": 3}),
        lambda folder: edited(folder, shape=None),
    ],
    ids=["hash", "tensors", "no tensors", "bad card", "no card", "format", "network", "key", "no shape"],
)
def test_weights_that_disagree_with_their_card_stop_the_run_before_it_starts(
    desk, own_weights, monkeypatch, damage
):
    look_at_own_weights_only(monkeypatch)
    damage(own_weights)
    assert "transformer" in refused(desk, "run", *TRANSFORMER, *DECODE)


def test_missing_weights_say_how_to_get_them(desk, monkeypatch):
    look_at_own_weights_only(monkeypatch)
    sentence = refused(desk, "run", "--arch", "tova", *DECODE)
    assert "tova" in sentence and "kvmark train" in sentence


# --- a checkpoint of others -----------------------------------------------------------------------


def checkpoint_of_others(folder: Path, family: str = "llama", **changes) -> Path:
    write_checkpoint(folder, family, vocab_size=320, **changes)
    write_byte_bpe(folder)
    return folder


def changed(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda it: (it / "config.json").unlink(), ["config.json"]),
        (lambda it: (it / "config.json").write_text("{"), ["config.json", "JSON"]),
        (lambda it: changed(it, model_type="mamba"), ["mamba"]),
        (lambda it: changed(it, rope_scaling={"rope_type": "longrope", "factor": 2.0}), ["longrope"]),
        (lambda it: (it / "model.safetensors").unlink(), ["model.safetensors"]),
        (lambda it: (it / "model.safetensors").write_bytes(b"x" * 100), ["model.safetensors"]),
        (lambda it: (it / "model.safetensors").rename(it / "pytorch_model.bin"), ["pickle"]),
        (lambda it: (it / "tokenizer.json").unlink(), ["tokenizer.json", "--tokenizer"]),
        (lambda it: (it / "tokenizer.json").write_text("{}"), ["tokenizer.json", "not a readable"]),
        (lambda it: (it / "tokenizer.json").rename(it / "tokenizer.model"), ["SentencePiece"]),
        (lambda it: write_byte_bpe(it, 330), ["330", "320"]),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(desk, command, damage, words):
    damage(checkpoint_of_others(desk / "tiny"))
    sentence = refused(desk, command, *TRANSFORMER, *DECODE, "--model", "tiny")
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gone"], ["gone", "org/name"]),
        (["--model", "good"], ["config.json"]),  # a folder, but a run's
        (["--model", "file.txt"], ["file.txt"]),
        (["--model", "tiny", *TINY], ["model", "shape", "exclude"]),
        (["--model", "tiny", "--tokenizer", "gone.json"], ["gone.json"]),
        (["--model", "tiny", "--tokenizer", "file.txt"], ["file.txt", "tokenizer.json"]),
        (["--tokenizer", "tiny/tokenizer.json"], ["tokenizer", "model"]),
        (["--allow-pickle"], ["allow_pickle", "model"]),
        (["--model", "tiny", "--arch", "yoco"], ["yoco", "weights of its own", "Transformer"]),
        (["--model", "tiny", "--arch", "lococo:budget=8"], ["lococo-8--tiny", "kvmark train"]),
        (["--model", "tiny", "--arch", "tova:budget_bytes=9"], ["tova", "budget_bytes=9", "too small"]),
    ],
)
def test_a_wrong_use_of_a_model_is_one_sentence(desk, arguments, words):
    checkpoint_of_others(desk / "tiny")
    (desk / "file.txt").write_text("no checkpoint")
    sentence = refused(desk, "run", *TRANSFORMER, *DECODE, *arguments)
    assert all(word in sentence for word in words), sentence
