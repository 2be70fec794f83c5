"""What `kvmark train` refuses before it spends an hour, and the small print of its cards."""

from __future__ import annotations

import pytest

import models
from harness.train import Order, train
from models.initialisation import induction_heads, induction_note
from models.shapes import SHAPES


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
