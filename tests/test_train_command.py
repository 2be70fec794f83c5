"""`kvmark train`: what the shipped cards say is what the command would do now, and it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from harness.train import recipe_of, train
from models import checkpoint

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "models" / "weights"
CARDS = sorted(WEIGHTS.glob("*.json"))


@pytest.fixture
def books(tmp_path):
    """Ten small invented books with enough distinct words for keys."""
    folder = tmp_path / "books"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(letters[i] for i in torch.randint(26, (5,), generator=generator)) for _ in range(3500)]
    for n in range(10):
        picked = torch.randint(len(words), (2500,), generator=generator).tolist()
        text = " ".join([*words[n * 350 : (n + 1) * 350], *(words[i] for i in picked)])
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")
    return folder


def test_weights_are_shipped():
    names = {path.stem for path in CARDS}
    assert {"transformer", "yoco-swa", "yoco-retention", "lococo-128"} <= names
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 8 * 2**20


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_is_what_its_command_would_do_now(path):
    """Recipe and sequence lengths in the card are those that `kvmark train` uses today."""
    card = json.loads(path.read_text(encoding="utf-8"))
    kind = card["architecture"].partition(":")[0]
    recipe, lengths, shares = recipe_of(kind, None, card["seed"], card["recipe"]["induction_heads"])
    if kind != "lococo":
        recipe = dataclasses.replace(recipe, induction_heads=card["recipe"]["induction_heads"])
    assert card["recipe"] == json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert card["data"]["lengths"] == list(lengths)
    assert card["data"]["length_probabilities"] == list(shares)
    assert card["tokens"] == recipe.steps * recipe.tokens_per_step
    assert card["commit"] and len(card["data"]["books_sha256"]) == card["data"]["books"]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_shipped_weights_load_and_state_their_start(path):
    """Hash and shapes agree; the hand-set start is in the notes."""
    from harness.loading import load_model
    from harness.plan import Settings

    card = json.loads(path.read_text(encoding="utf-8"))
    checkpoint.load(path.stem, [WEIGHTS])
    load_model(card["architecture"], Settings())
    assert "induction heads" in card["notes"]


def test_compressors_train_resume_and_run(books, tmp_path, monkeypatch):
    """A few steps of the real command: the base stays frozen, and an interruption changes nothing."""
    from harness import train as module

    monkeypatch.setattr(module, "LOCOCO_TOKENS_PER_STEP", 512)
    monkeypatch.setattr(module, "LOCOCO_LENGTHS", (256, 512))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    say = lambda line: None  # noqa: E731
    train("lococo:budget=32", books, whole, tokens=2048, say=say)

    calls = 0
    real = module.recipe_of

    def interrupted_fit(*args, **kwargs):
        nonlocal calls

        batches = args[1]

        def stop_at_two(step):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return batches(step)

        return training_fit(args[0], stop_at_two, *args[2:], **kwargs | {"checkpoint_every_s": 0.0})

    from models import training

    training_fit = training.fit
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", interrupted_fit)
        with pytest.raises(KeyboardInterrupt):
            train("lococo:budget=32", books, parts, tokens=2048, say=say)
    assert (parts / "lococo-32.training.pt").exists() and real is module.recipe_of
    train("lococo:budget=32", books, parts, tokens=2048, say=say)
    a, _ = checkpoint.load("lococo-32", [whole])
    b, _ = checkpoint.load("lococo-32", [parts])
    assert a.keys() == b.keys() and all(name.startswith("compressors.") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (parts / "lococo-32.training.pt").exists()


def test_only_architectures_with_weights_of_their_own_train(books, tmp_path):
    with pytest.raises(ValueError, match="no weights of its own"):
        train("tova", books, tmp_path, tokens=2048)
