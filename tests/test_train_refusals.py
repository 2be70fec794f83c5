"""What `kvmark train` refuses before it spends an hour, and the small print of its cards."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_help import write_recipe
from typer.testing import CliRunner

import models
from harness import train_data
from harness.cli import app
from harness.train import Order, network, train
from harness.train_data import EVALUATION_SPLITS, training_books
from harness.train_recipe import plan_of
from harness.training import only_one, origin
from models.initialisation import induction_heads, induction_note
from models.shapes import SHAPES
from suites.data.pg19_books import BOOKS, official
from suites.documents import book_files, document_of, stem
from suites.text import TextError
from suites.training.mix import TrainingMix

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


@pytest.fixture
def book(tmp_path):
    letters = [chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) + "xy" for i in range(3000)]
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "b.txt").write_text(" ".join(letters * 3))
    return tmp_path / "books"


def test_finished_weights_are_not_overwritten(book, tmp_path):
    out, order = tmp_path / "weights", Order(tokens=2048, induction_heads=0)
    train("transformer", book, out, order, say=lambda line: None)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(ValueError, match="finished training"):
        train("transformer", book, out, Order(tokens=4096), say=lambda line: None)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_card_names_the_commit_that_trained(book, tmp_path, monkeypatch):
    """What lies in the folder when it ends may be another."""
    commits = iter(["before", "after"])
    monkeypatch.setattr("harness.training.checkout", lambda commit: {"commit": next(commits), "dirty": False})
    drawn, draw = [], TrainingMix.batch
    monkeypatch.setattr(
        TrainingMix, "batch", lambda self, step: drawn.append(next(commits)) or draw(self, step)
    )
    card = train("transformer", book, tmp_path / "w", Order(tokens=2048, induction_heads=0), say=print)
    assert drawn == ["after"] and json.loads(card.read_text())["commit"] == "before"


def test_a_training_goes_on_only_in_its_own_shape(book, tmp_path):
    """Sizes that no parameter shows, too: a window, a base of positions."""
    books, hashes = training_books(book)
    shapes = [
        SHAPES["family"],
        replace(SHAPES["family"], window=64),
        replace(SHAPES["family"], rope_base=77.0),
    ]
    plans = [replace(plan_of("yoco", Order(tokens=2048)), shape=shape) for shape in shapes]
    origins = [origin(network(plan, books, hashes, "cpu", "")) for plan in plans]
    assert len({json.dumps(found) for found in origins}) == 3
    assert {key for key in origins[0] if origins[0][key] != origins[1][key]} == {"shape"}


def test_a_folder_that_cannot_be_made_is_found_first(book, tmp_path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with pytest.raises(OSError):
        train("transformer", book, tmp_path / "file" / "below", Order(tokens=2048), say=said.append)
    assert not said, "nothing was trained"


def test_hand_set_heads_need_keys_without_positions(book, tmp_path):
    with pytest.raises(ValueError, match="--induction-heads 0"):
        train("yoco:rope=official", book, tmp_path / "w", Order(tokens=2048), say=lambda line: None)
    induction_heads(models.build("yoco:rope=official", SHAPES["family"]), 0)


def test_cards_say_which_layers_began_with_heads():
    assert "in the upper half" in induction_note(2)
    assert "reads the shared cache" in induction_note(2, self_layers=1)


def test_the_command_of_a_card_has_all_that_was_asked():
    order = Order(tokenizer="/home/me/t.json", allow_pickle=True)
    assert order.command("lococo", "tiny").endswith("--model tiny --tokenizer TOKENIZER_FILE --allow-pickle")


@pytest.mark.parametrize(
    ("spec", "order", "message"),
    [
        ("lococo:budget=32", Order(induction_heads=4), "--induction-heads is for training transformer"),
        (
            "lococo:budget=4096",
            Order(tokens=4096),
            "to 4096 tokens, and lococo:budget=4096 compresses nothing",
        ),
    ],
)
def test_compressors_that_cannot_be_meant(book, tmp_path, spec, order, message):
    """Refused before a budget of steps is spent that no gradient reaches."""
    with pytest.raises(ValueError, match=message):
        train(spec, book, tmp_path / "w", order, say=lambda line: None)
    assert not (tmp_path / "w").exists()


# --- NaN ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_in_one_sentence(book, tmp_path, monkeypatch):
    """Through the command: exit code 1, the checkpoint from before stays, and no card says it is finished."""
    draw = TrainingMix.batch

    def poisoned(self, step):
        drawn = draw(self, step)
        return drawn if step < 3 else replace(drawn, loss_weight_BT=drawn.loss_weight_BT * np.nan)

    monkeypatch.setattr(TrainingMix, "batch", poisoned)
    out = tmp_path / "weights"
    words = ["train", "transformer", "--data", str(book), "--out", str(out), "--tokens", "16384"]
    done = CliRunner().invoke(app, [*words, "--induction-heads", "0", "--checkpoint-s", "0"])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
    assert done.stderr == "kvmark: the training loss became nan; a lower learning rate may help.\n"
    assert [file.name for file in out.iterdir()] == ["transformer.training.pt"]
    saved = torch.load(out / "transformer.training.pt", weights_only=True)
    assert saved["step"] == 3 and all(tensor.isfinite().all() for tensor in saved["model"].values())


# --- two at a time ------------------------------------------------------------------------------


def test_one_training_of_a_name_at_a_time(tmp_path):
    """And what a killed one left half-written goes; files of other names stay."""
    for name in ("a.training.pt.7.tmp", ".a.json.8.tmp", "ab.training.pt.9.tmp"):
        (tmp_path / name).write_text("")
    with only_one(tmp_path, "a"):
        assert [file.name for file in tmp_path.glob("*.tmp")] == ["ab.training.pt.9.tmp"]
        with (
            pytest.raises(ValueError, match=f"'a' is being trained in .* by process {os.getpid()}."),
            only_one(tmp_path, "a"),
        ):
            pass
        with only_one(tmp_path, "b"):
            pass
    with only_one(tmp_path, "a"):
        pass


def test_what_another_process_has_finished_meanwhile_stays(book, tmp_path, monkeypatch):
    """Whether it is finished is asked when nobody else can finish it any more."""
    out, order = tmp_path / "weights", Order(tokens=2048, induction_heads=0)

    @contextlib.contextmanager
    def just_finished(folder, name):
        (folder / f"{name}.json").write_text("{}")
        with only_one(folder, name):
            yield

    monkeypatch.setattr("harness.training.only_one", just_finished)
    with pytest.raises(ValueError, match="finished training"):
        train("transformer", book, out, order, say=lambda line: None)
    assert (out / "transformer.json").read_text() == "{}"


# --- evaluation books ---------------------------------------------------------------------------


@pytest.fixture
def evaluation_book(monkeypatch):
    """An invented book, published with CRLF, that counts as one of PG-19's test split."""
    text = b"".join(b"Line %d of a book.\r\n" % n for n in range(50))
    known = official("test") | {"99999": hashlib.sha256(text).hexdigest()}
    monkeypatch.setattr(train_data, "official", lambda split: known if split == "test" else official(split))
    return text


FORMS = {
    "as published": lambda text: text,
    "zipped": lambda text: text,
    "LF": lambda text: text.replace(b"\r\n", b"\n"),
    "CR": lambda text: text.replace(b"\r\n", b"\r"),
    "CRCRLF": lambda text: text.replace(b"\r\n", b"\r\r\n"),
    "mark": lambda text: b"\xef\xbb\xbf" + text,
    "mark and LF": lambda text: b"\xef\xbb\xbf" + text.replace(b"\r\n", b"\n"),
    "trimmed": lambda text: text.rstrip(),
    "empty lines": lambda text: text + b"\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_an_evaluation_book_is_refused_under_any_name(book, tmp_path, evaluation_book, form):
    text = FORMS[form](evaluation_book)
    if form == "zipped":
        (book / "my-book.txt.gz").write_bytes(gzip.compress(text))
    else:
        (book / "my-book.txt").write_bytes(text)
    with pytest.raises(TextError) as caught:
        training_books(book)
    assert str(caught.value) == (
        "Text 'my-book' is book 99999 of PG-19's test split, which is for evaluation: train on other books "
        "(pg19/train)."
    )


def test_another_edition_of_an_evaluation_book_is_refused_by_its_id(book, tmp_path):
    """By the commands, too, before anything is trained."""
    (book / "356.txt").write_bytes(b"Some other edition.\n" * 200)
    recipe = write_recipe(tmp_path / "mine.toml")
    short = ["--tokens", "4096"]
    for words in (["transformer", *short], ["lococo:budget=32", *short], ["family", "--recipe", str(recipe)]):
        done = CliRunner().invoke(app, ["train", *words, "--data", str(book), "--out", str(tmp_path / "w")])
        assert done.exit_code == 2 and done.stdout == "" and not (tmp_path / "w").exists()
        assert "Text '356' is book 356 of PG-19's validation split" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["356", "pg356", "356-0", "00356", "356.utf8"])
def test_an_id_is_known_in_the_names_that_files_have(book, name):
    (book / f"{name}.txt").write_bytes(b"Some other edition.\n" * 200)
    with pytest.raises(TextError, match="is book 356 of PG-19's validation split"):
        training_books(book)


def test_other_books_are_not_refused(book):
    for name in ("11", "3561", "my356"):
        (book / f"{name}.txt").write_bytes(b"A book of the training split, %s.\r\n" % name.encode() * 50)
    assert {name for name, _ in training_books(book)[0]} == {"11", "3561", "my356", "b"}


def test_shipped_weights_saw_no_evaluation_book():
    """No hash in any card is a checksum of PG-19's 150 evaluation books, nor a name one of their ids."""
    books = {id: sha256 for split in EVALUATION_SPLITS for id, sha256 in official(split).items()}
    assert len(books) == BOOKS["test"] + BOOKS["validation"]
    cards = sorted(WEIGHTS.rglob("*.json"))
    assert cards
    for path in cards:
        seen = json.loads(path.read_text(encoding="utf-8"))["data"]["books_sha256"]
        assert len(seen) > 50 and not {*seen.values()} & {*books.values()} and not {*seen} & {*books}, path


@pytest.mark.skipif("KVMARK_DATA" not in os.environ, reason="KVMARK_DATA is unset: no evaluation books")
def test_shipped_weights_saw_no_evaluation_book_in_another_form():
    """Hashes of the books at hand as their files are and with LF; and each of them would be refused."""
    root, hashes = Path(os.environ["KVMARK_DATA"]) / "pg19", set()
    files = [file for split in EVALUATION_SPLITS for file in book_files(root / split)]
    if not files:
        pytest.skip("KVMARK_DATA has no pg19/test or pg19/validation")
    for file in files:
        document = document_of(file)
        text = document.text.encode("utf-8")
        hashes |= {document.sha256, hashlib.sha256(text).hexdigest()}
        with pytest.raises(TextError, match=f"is book {stem(file)} of PG-19's"):
            train_data.refuse_evaluation_book("renamed", text, hashlib.sha256(text).hexdigest())
    for path in WEIGHTS.rglob("*.json"):
        seen = json.loads(path.read_text(encoding="utf-8"))["data"]["books_sha256"]
        assert not hashes & {*seen.values()}, path
