"""Weights and card belong together: every way in which they can disagree is one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from models.checkpoint import (
    CARD_FIELDS,
    Base,
    WeightsError,
    assign,
    compressor_name,
    content_hash,
    default_folders,
    load,
    load_card,
    save,
)
from models.whole_file import whole_file

CARD = {field: None for field in CARD_FIELDS} | {"steps": 7, "notes": "Hand-set start."}


def network(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width, bias=False), nn.LayerNorm(width))


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "own", "tiny", network().state_dict(), CARD)
    return tmp_path / "own"


def test_round_trip_is_bf16_and_complete(folder):
    state, card = load("tiny", [folder])
    original = network().state_dict()
    assert all(torch.equal(state[name], original[name].bfloat16()) for name in original)
    assert (card["name"], card["format"], card["parameters"], card["steps"]) == ("tiny", 1, 20, 7)
    assert card["dtype"] == "bfloat16" and card == load_card("tiny", [folder])
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_fp32_on_demand(tmp_path):
    """Small changes to a base survive where they are asked to."""
    state = {"w": torch.tensor([1.0, 1.00025])}
    assert save(tmp_path, "tuned", state, CARD, torch.float32)["dtype"] == "float32"
    assert torch.equal(load("tuned", [tmp_path])[0]["w"], state["w"])
    assert not torch.equal(state["w"].bfloat16().float(), state["w"])


def test_weights_that_complete_a_checkpoint_belong_to_it(tmp_path):
    """Named after the base, loaded for its fingerprint, and for no other."""
    base = Base("org/Some Model", "f" * 64)
    name = compressor_name("lococo-32", base.name)
    assert name == "lococo-32--Some-Model" and compressor_name("lococo-32") == "lococo-32"
    for path in ("/data/Some Model", "/data/Some Model/", "C:\\data\\Some Model", "Some Model"):
        assert compressor_name("lococo-32", path) == name
    save(tmp_path, name, network().state_dict(), CARD | {"base": base._asdict()})
    assert load("lococo-32", [tmp_path], base)[1]["name"] == name
    with pytest.raises(WeightsError, match="no weights 'lococo-32--Other'"):
        load("lococo-32", [tmp_path], Base("Other", base.fingerprint))
    with pytest.raises(WeightsError, match="fingerprint ffffffffffff, and 'Some Model' has 0000") as caught:
        load("lococo-32", [tmp_path], Base("Some Model", "0" * 64))
    assert str(caught.value).endswith(".")
    for wrong in (None, "x", {}, {"fingerprint": 7}):
        save(tmp_path, name, network().state_dict(), CARD | {"base": wrong})
        with pytest.raises(WeightsError, match="were trained on"):
            load("lococo-32", [tmp_path], base)


def test_saving_twice_gives_the_same_files(folder, tmp_path):
    state, card = load("tiny", [folder])
    save(tmp_path / "again", "tiny", state, card)
    for name in ("tiny.json", "tiny.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_first_folder_wins(folder, tmp_path):
    other = tmp_path / "shipped"
    save(other, "tiny", network().state_dict(), CARD | {"steps": 8})
    save(other, "shipped-only", network().state_dict(), CARD | {"steps": 9})
    assert load_card("tiny", [folder, other])["steps"] == 7
    assert load_card("shipped-only", [folder, other])["steps"] == 9
    assert [path.name for path in default_folders()] == ["weights", "weights"]


def test_assign_converts_and_copies(folder):
    state, _ = load("tiny", [folder])
    model = network()
    nn.init.zeros_(model[0].weight)
    model[0].weight.requires_grad_(False)
    assign(model, state, "tiny")
    assert model[0].weight.dtype == torch.float32 and not model[0].weight.requires_grad
    assert torch.equal(model[0].weight, state["0.weight"].float())
    half = network().bfloat16()
    assign(half, state, "tiny")
    assert content_hash(half.state_dict()) == content_hash(state)
    with torch.no_grad():
        half[0].weight.zero_()
    assert state["0.weight"].any()


def test_assign_fills_a_meta_model(folder):
    with torch.device("meta"):
        model = network()
    assign(model, load("tiny", [folder])[0], "tiny")
    assert model(torch.ones(1, 3)).isfinite().all()


def test_content_hash_sees_names_dtypes_shapes_and_values():
    state = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    reference = content_hash(state)
    assert content_hash(dict(reversed(state.items()))) == reference
    for change in ({"a": state["a"].view(2, 2)}, {"a": state["a"].half()}, {"a": state["a"] + 1}):
        assert content_hash(state | change) != reference
    assert content_hash({"a": state["a"], "c": state["b"]}) != reference


def edit_card(folder, **changes):
    path = folder / "tiny.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(folder):
    path = folder / "tiny.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "SHA-256 differs"),
        (lambda folder: edit_card(folder, sha256="0"), "SHA-256 differs"),
        (lambda folder: edit_card(folder, format=2), "card of format 2"),
        (lambda folder: (folder / "tiny.json").write_text("{"), "not a readable card"),
        (lambda folder: (folder / "tiny.json").write_text("[]"), "not a readable card"),
        (lambda folder: (folder / "tiny.json").unlink(), "no card beside it"),
        (lambda folder: (folder / "tiny.safetensors").unlink(), "no readable"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "there are no weights 'tiny'"),
    ],
)
def test_weights_that_disagree_with_their_card_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(WeightsError, match=message) as caught:
        load("tiny", [folder])
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state | {"x": torch.ones(1)}, "have tensor 'x' that the model does not know"),
        (lambda state: {"0.weight": state["0.weight"]}, "lack tensor '1.bias' and 1 more"),
        (lambda state: state | {"0.weight": torch.ones(5, 3)}, r"as \(5, 3\), the model needs \(4, 3\)"),
    ],
)
def test_tensors_of_another_model_are_refused(folder, change, message):
    model = network()
    before = content_hash(model.state_dict())
    with pytest.raises(WeightsError, match=message):
        assign(model, change(load("tiny", [folder])[0]), "tiny")
    assert content_hash(model.state_dict()) == before


def test_incomplete_cards_and_broken_tensors_are_not_saved(tmp_path):
    with pytest.raises(WeightsError, match="lacks commit"):
        save(tmp_path, "tiny", {}, {field: 1 for field in CARD_FIELDS if field != "commit"})
    with pytest.raises(WeightsError, match="not finite"):
        save(tmp_path, "tiny", {"a": torch.tensor([float("nan")])}, CARD)
    assert not list(tmp_path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    """Until the last byte the old content stands; a failure leaves it, and nothing beside it."""
    path = tmp_path / "new" / "file"
    for content in (b"old", b"new"):
        with whole_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"old"
        assert path.read_bytes() == content
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]
