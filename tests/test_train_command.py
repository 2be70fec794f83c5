"""`kvmark train`: what the shipped cards say is what the command would do now, and it resumes; compressors on
a checkpoint are trained in its own tokens, named after it, and loaded on nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pretrained_help import write_checkpoint
from train_help import assert_trained_by, plan_of_command
from typer.testing import CliRunner

from harness import train_recipe
from harness.cli import app
from harness.loading import load_model
from harness.plan import Settings
from harness.train import Order, train
from harness.train_compressors import sequence_tokens
from harness.train_recipe import read_recipe
from models import checkpoint
from models.architectures.lococo import Options
from models.pretrained import open_checkpoint
from suites.training.mix import TrainingMix
from suites.training.text import TrainingText

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "models" / "weights"
CARDS = sorted(WEIGHTS.rglob("*.json"))


def quiet(line: str) -> None:
    pass


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


def tiny_llama(folder: Path, **changes) -> Path:
    """A random Llama in the hub's layout, 640 positions; 257 of its 300 ids have a token: bytes, and BOS."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    sizes = {"vocab_size": 300, "max_position_embeddings": 640, "bos_token_id": 256, "eos_token_id": 256}
    write_checkpoint(folder, "llama", **sizes, **changes)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(BPE({char: id for id, char in enumerate(alphabet)} | {"<s>": 256}, []))
    own.add_special_tokens(["<s>"])
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.save(str(folder / "tokenizer.json"))
    return folder


@contextmanager
def stopped_at(step: int, batches: type, monkeypatch):
    """Whatever trains on `batches` stops where it asks for the batch of `step`; it has saved every step."""
    draw = batches.batch

    def interrupted(self, number):
        if number == step:
            raise KeyboardInterrupt
        return draw(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "batch", interrupted)
        patch.setitem(train.__kwdefaults__, "checkpoint_every_s", 0.0)
        yield


# --- the shipped weights ------------------------------------------------------------------------


def test_weights_are_shipped():
    names = {path.stem for path in CARDS}
    assert {"transformer", "yoco-swa", "yoco-retention", "lococo-128"} <= names
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 8 * 2**20


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card_is_what_its_command_would_do_now(path):
    """Network, recipe and mix in the card are those of its command today, and of the packaged CPU recipe."""
    card = json.loads(path.read_text(encoding="utf-8"))
    assert_trained_by(card, plan_of_command(card["command"]))
    label = path.relative_to(WEIGHTS).with_suffix("").as_posix()
    (plan,) = (member.plan for member in read_recipe("cpu").members if member.label == label)
    assert_trained_by(card, plan)
    assert card["commit"] and len(card["data"]["books_sha256"]) == card["data"]["books"]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_shipped_weights_load_and_state_their_start(path):
    """Hash and shapes agree; the hand-set start is in the notes."""
    card = json.loads(path.read_text(encoding="utf-8"))
    checkpoint.load(path.stem, [WEIGHTS])
    load_model(card["architecture"], Settings())
    assert "induction heads" in card["notes"]


# --- the family ---------------------------------------------------------------------------------


def test_a_network_trains(books, tmp_path):
    """A step of the real command from the recipe's start; the card says how it began."""
    path = train("transformer", books, tmp_path, Order(tokens=2048, induction_heads=0), say=quiet)
    state, card = checkpoint.load("transformer", [tmp_path])
    assert path == tmp_path / "transformer.json" and "embed.weight" in state
    assert card["notes"] == "No hand-set start." and card["steps"] == 1 and "base" not in card
    assert card["command"].endswith("--tokens 2048 --induction-heads 0")
    assert_trained_by(card, plan_of_command(card["command"]))
    assert card["ceiling_flops"] > 1e8


def test_compressors_train_resume_and_run(books, tmp_path, monkeypatch):
    """A few steps of the real command: the base stays frozen, and an interruption changes nothing."""
    recipe = (train_recipe.FOLDER / "cpu.toml").read_text()
    for old, new in ("lengths = [1024, 4096]", "lengths = [256, 512]"), ("step = 4096", "step = 512"):
        assert old in recipe
        recipe = recipe.replace(old, new, 1)
    (tmp_path / "cpu.toml").write_text(recipe)
    monkeypatch.setattr(train_recipe, "FOLDER", tmp_path)
    whole, parts, order = tmp_path / "whole", tmp_path / "parts", Order(tokens=2048)
    train("lococo:budget=32", books, whole, order, say=quiet)

    with stopped_at(2, TrainingMix, monkeypatch), pytest.raises(KeyboardInterrupt):
        train("lococo:budget=32", books, parts, order, commit="earlier", say=quiet)
    assert (parts / "lococo-32.training.pt").exists()
    train("lococo:budget=32", books, parts, order, commit="later", say=quiet)
    a, card = checkpoint.load("lococo-32", [whole])
    b, resumed = checkpoint.load("lococo-32", [parts])
    assert (resumed["commit"], resumed["sources"]) == ("later", ["earlier", "later"])
    assert "sources" not in card
    assert a.keys() == b.keys() and all(name.startswith("compressors.") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (parts / "lococo-32.training.pt").exists()
    assert card["base"] == {
        "name": "transformer",
        "fingerprint": checkpoint.load_card("transformer")["sha256"],
    }


def test_official_recipe_on_the_family(books, tmp_path, monkeypatch):
    """Bytes as text; embedding, norms and LoRA are in the weights, and such a network loads and runs."""
    monkeypatch.chdir(tmp_path)
    spec, out = "lococo:budget=32,trainable=official,lora=2", Path("results/weights")
    train(spec, books, out, Order(tokens=1024, sequences=2), say=quiet)
    state, card = checkpoint.load("lococo-32-official-lora2", [out])
    assert {"embed.weight", "norm.weight", "blocks.0.mixer.qkv.lora.a", "compressors.3.alpha"} <= state.keys()
    assert "head.weight" not in state and card["recipe"]["adamw_lr"] == 0.05 and card["steps"] == 2
    assert "embedding, norms and LoRA were tuned" in card["notes"] and "Hand-set start" in card["notes"]
    assert card["data"]["sequence_tokens"] == 8 * 32 and card["recipe"]["init"] == "official"
    model = load_model(spec, Settings())
    assert torch.equal(model.embed.weight, state["embed.weight"])
    base, _ = checkpoint.load("transformer", [WEIGHTS])
    # Two steps of 2.5e-4, which bf16 would swallow.
    assert 1e-5 < (state["norm.weight"] - base["norm.weight"].float()).abs().max() <= 6e-4
    cache = model.new_cache(1, 200)
    assert model.extend(torch.arange(200)[None], None, cache).isfinite().all()
    assert cache.statistics()["compressions"] == [5]


# --- a checkpoint of somebody else ---------------------------------------------------------------


def loaded_on(folder: Path, spec: str) -> torch.nn.Module:
    """As a run with --model loads it: the checkpoint with the compressors that were trained on it."""
    return load_model(spec, Settings(), pretrained=open_checkpoint(folder))


@pytest.mark.parametrize("recipe", [None, "family"])
def test_compressors_on_a_checkpoint(books, tmp_path, monkeypatch, recipe):
    """Trained in its own tokens on its frozen weights, named after it, and found again with it alone."""
    monkeypatch.chdir(tmp_path)
    folder, spec = tiny_llama(tmp_path / "tiny llama"), "lococo:budget=32,kernel=5"
    order = Order(tokens=3 * 512, sequences=2, model=str(folder), recipe=recipe)
    path = train(spec, books, Path("results/weights"), order, say=quiet)
    assert path.name == "lococo-32-kernel5--tiny-llama.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    assert card["base"] == {"name": "tiny llama", "fingerprint": open_checkpoint(folder).fingerprint}
    assert card["steps"] == 3 and card["shape"]["vocab"] == 300 and card["shape"]["tied"] is True
    assert card["data"]["tokenizer"] == "tokenizer.json" and card["data"]["sequence_tokens"] == 256
    assert (card["recipe"]["adamw_lr"], card["recipe"]["init"], card["recipe"]["carry"]) == (
        (5e-2, "official", False) if recipe is None else (3e-3, "scaled", True)
    )
    assert str(tmp_path) not in json.dumps(card)
    model = loaded_on(folder, spec)
    cache = model.new_cache(1, 300)
    assert model.extend(torch.arange(300)[None], None, cache).isfinite().all()
    assert cache.statistics()["compressions"][0] >= 1

    other = tiny_llama(tmp_path / "other", rms_norm_eps=1e-5)
    with pytest.raises(checkpoint.WeightsError, match="no weights 'lococo-32-kernel5--other'"):
        loaded_on(other, spec)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(checkpoint.WeightsError, match="trained on a checkpoint with the fingerprint"):
        loaded_on(other.rename(tmp_path / "elsewhere" / "tiny llama"), spec)


def test_a_training_goes_on_only_with_its_base_data_and_architecture(books, tmp_path, monkeypatch):
    """Of a training on a checkpoint that was interrupted, whatever changed since is one sentence."""
    spec, folder, out = "lococo:budget=32,kernel=5", tiny_llama(tmp_path / "a" / "tiny"), tmp_path / "out"
    order = Order(tokens=3 * 512, sequences=2, model=str(folder))
    with stopped_at(1, TrainingText, monkeypatch), pytest.raises(KeyboardInterrupt):
        train(spec, books, out, order, say=quiet)
    other = dataclasses.replace(order, model=str(tiny_llama(tmp_path / "b" / "tiny", rms_norm_eps=1e-5)))
    fewer = tmp_path / "fewer"
    shutil.copytree(books, fewer)
    (fewer / "0.txt").unlink()
    fingerprints = [open_checkpoint(Path(each.model)).fingerprint for each in (order, other)]
    for message, data, changed in (
        ("trained with base={}, not {}".format(*fingerprints), books, other),
        ("trained with data=", fewer, order),
        ("trained with seed=0, not 1", books, dataclasses.replace(order, seed=1)),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            train(spec, data, out, changed, say=quiet)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    train(spec, books, out, order, say=quiet)

    # The window is in no name of weights, and yet decides what is learned.
    order = Order(tokens=2 * 2048)
    with stopped_at(1, TrainingMix, monkeypatch), pytest.raises(KeyboardInterrupt):
        train("yoco", books, out, order, say=quiet)
    with pytest.raises(ValueError, match="trained with architecture=yoco, not yoco:window=64"):
        train("yoco:window=64", books, out, order, say=quiet)


def test_official_training_of_a_checkpoint_reaches_its_norms(books, tmp_path, monkeypatch):
    """trainable=official with LoRA on a tied checkpoint: embedding, norms and LoRA move with it."""
    monkeypatch.chdir(tmp_path)
    folder, out = tiny_llama(tmp_path / "tiny"), Path("results/weights")
    spec = "lococo:budget=32,kernel=5,trainable=official,lora=8,rope_factor=2"
    train(spec, books, out, Order(tokens=1024, sequences=1, period=32, model=str(folder)), say=quiet)
    model = loaded_on(folder, spec)
    before = open_checkpoint(folder).state(torch.float32)
    for name in ("embed.weight", "norm.weight", "blocks.1.norm2.weight"):
        assert not torch.equal(model.get_parameter(name), before[name]), name
    assert torch.equal(model.get_parameter("blocks.1.ffn.down.weight"), before["blocks.1.ffn.down.weight"])
    assert model.blocks[0].mixer.qkv.lora.b.abs().max() > 0


@pytest.mark.skipif("KVMARK_DATA" not in os.environ, reason="KVMARK_DATA is unset: no stories260K")
def test_stories260K(books, tmp_path):
    """A real pretrained Llama (GQA, 512 positions, llama2.c's format): a few official steps on it."""
    file = Path(os.environ["KVMARK_DATA"]) / "tiny_lm" / "stories260K.bin"
    if not file.exists():
        pytest.skip("KVMARK_DATA has no tiny_lm/stories260K.bin")
    lines = []
    order = Order(tokens=6 * 1024, sequences=2, period=16, model=str(file))
    train("lococo:budget=32", books, tmp_path, order, say=lines.append)
    _, card = checkpoint.load("lococo-32", [tmp_path], checkpoint.Base(
        "stories260K", open_checkpoint(file).fingerprint))  # fmt: skip
    assert card["name"] == "lococo-32--stories260K" and card["data"]["tokenizer"] == "tok512.bin"
    assert card["data"]["sequence_tokens"] == 512 and card["shape"]["num_kv_heads"] == 4
    assert "nats per target" in lines[-1] and "bits/byte over all tokens" in lines[-1]


# --- what is refused ----------------------------------------------------------------------------


def test_only_architectures_with_weights_of_their_own_train(books, tmp_path):
    with pytest.raises(ValueError, match="no weights of its own"):
        train("tova", books, tmp_path, Order(tokens=2048))


@pytest.mark.parametrize(
    ("spec", "order", "message"),
    [
        ("transformer", Order(recipe="official"), "are for training lococo"),
        ("transformer", Order(model="x"), "are for training lococo"),
        ("lococo", Order(recipe="mine"), "official or family, not 'mine'"),
        ("lococo:trainable=official", Order(recipe="family"), "trained by --recipe official"),
        ("lococo", Order(period=4), "are for plain text"),
        ("lococo:budget=32", Order(recipe="official", sequences=-1), "positive"),
        ("lococo:budget=32", Order(recipe="official", tokens=0), "positive total_tokens"),
        ("lococo:budget=32", Order(recipe="official", period=2), "never compressed to 32 slots; 3 blocks"),
        ("lococo:budget=32,block=65536", Order(recipe="official"), "tokens, a sequence 524,288"),
        ("lococo", Order(model="/no/where.bin"), "no checkpoint"),
    ],
)
def test_wrong_orders_are_sentences(books, tmp_path, spec, order, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(spec, books, tmp_path, order, say=quiet)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "context", "period", "tokens"),
    [
        ({}, None, None, 8 * 256),
        ({}, 1024, None, 4 * 256),
        ({"rope_factor": 2.0}, 1024, None, 8 * 256),
        ({"block": 64}, 4096, None, 8 * 64),
        ({}, 4096, 16, 16 * 256),
        ({}, 512, None, "2 blocks of 256 tokens is never compressed to 256 slots; 3 blocks are needed, 768"),
        ({}, 100, None, "0 blocks of 256 tokens is never compressed"),
        ({}, 1024, 5, "5 blocks of 256 tokens is longer than the context of 1024"),
        ({"budget": 8}, None, 3, "3 blocks of 8 tokens is never compressed to 8 slots; 5 blocks"),
    ],
)
def test_sequences_fit_the_context_and_fold(options, context, period, tokens):
    """As many blocks as asked for or as fit, and enough of them that something is compressed."""
    if "block" in options:
        options = options | {"budget": 128}
    if isinstance(tokens, int):
        assert sequence_tokens(Options(**options), context, period) == tokens
    else:
        with pytest.raises(ValueError, match=tokens):
            sequence_tokens(Options(**options), context, period)


def test_the_command_says_what_is_wrong_in_one_sentence(books, tmp_path, monkeypatch):
    """Through the command line: exit code 2 and no traceback; --help names the options."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    base = ["train", "lococo:budget=32", "--data", str(books)]
    for more in (["--model", "no-such-folder"], ["--recipe", "mine"], ["--period", "0"]):
        done = runner.invoke(app, base + more)
        assert done.exit_code == 2 and "Traceback" not in done.output, (more, done.output)
    done = runner.invoke(app, ["train", "--help"])
    assert all(f"--{name}" in done.output for name in ("model", "recipe", "period", "sequences"))
