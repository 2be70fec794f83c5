"""--model: policies on checkpoints of others, from the weights to the rows, without network."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_help import ask
from harness_help import one_sentence, rows, tree
from model_help import cached, desk_with_a_book, empty_hub, llama, measured
from tokenizer_help import PROSE

import models
from harness.loading import load_model, weights_of
from harness.plan import Plan, Settings
from harness.pretrained import open_model
from harness.runner import prepare
from models import checkpoint
from models.shapes import SHAPES
from models.spec import SpecError

STORIES = Path(os.environ.get("KVMARK_DATA", "")) / "tiny_lm" / "stories260K.bin"
NEEDS_STORIES = pytest.mark.skipif(
    not STORIES.is_file(), reason="KVMARK_DATA names no folder with tiny_lm/stories260K.bin"
)


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    return desk_with_a_book(tmp_path, monkeypatch)


@pytest.fixture
def hub(desk, monkeypatch) -> Path:
    return empty_hub(desk, monkeypatch)


def loaded(path: Path, spec: str, shared=None, **settings):
    opened = open_model(path)
    return load_model(spec, Settings(model=str(path), **settings), shared, opened.pretrained)


# --- loading --------------------------------------------------------------------------------------


def policies() -> list[str]:
    """Everything that runs on a Transformer's weights alone."""
    found = []
    for name in models.names():
        module, options = models.parse(name)
        if module.Model.weight_names(options) == ("transformer",):
            found.append(name)
    return found


def test_every_policy_runs_on_a_checkpoint_and_holds_its_tensors_once(desk):
    path, shared = llama(desk / "tiny"), {}
    assert {"transformer", "tova", "h2o", "window", "random", "snapkv"} <= set(policies())
    tokens_BT = torch.arange(40)[None]
    reference = loaded(path, "transformer", shared)(tokens_BT)
    held = len(shared)
    for spec in policies():
        model = loaded(path, spec, shared)
        assert torch.equal(model(tokens_BT), reference), spec
        assert len(shared) == held
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_budgets_in_bytes_are_resolved_in_the_dtype_of_the_run(desk):
    """The cache of the run fits, and half as wide numbers leave room for more tokens."""
    path, budgets = llama(desk / "tiny"), {}
    for dtype in ("fp32", "bf16"):
        model = loaded(path, "tova:budget_bytes=20000", dtype=dtype)
        budgets[dtype] = model.options.budget
        assert model.embed.weight.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        assert model.new_cache(1, 5000).live_bytes().total <= 20_000
    assert budgets["bf16"] > 1.5 * budgets["fp32"]


def test_a_budget_in_bytes_finds_the_weights_of_its_budget_in_tokens():
    """LoCoCo's weights are named after the budget, which depends on shape and dtype."""
    for dtype, torch_dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = models.build("lococo:budget=128", SHAPES["family"])
        held = model.cache_bytes(1 << 20, 1, torch_dtype).total
        settings = Settings(dtype=dtype)
        found = weights_of(f"lococo:budget_bytes={held}", settings)
        assert found == weights_of("lococo:budget=128", settings)
        loaded = load_model(f"lococo:budget_bytes={held}", settings)
        assert loaded.options.budget == 128 and "lococo-128@" in found.label


def test_pickles_are_read_where_they_are_allowed(desk):
    path = llama(desk / "tiny")
    tensors = safetensors.torch.load_file(path / "model.safetensors")
    reference = loaded(path, "transformer")(torch.arange(9)[None])
    torch.save(tensors, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    plan = Plan("p", ("transformer",), ("decode",), Settings(model="tiny", allow_pickle=True))
    prepared = prepare(plan)
    model = load_model("transformer", prepared.settings, None, prepared.opened.pretrained)
    assert torch.equal(model(torch.arange(9)[None]), reference)


def test_weights_of_its_own_do_not_go_with_a_model(desk):
    opened = open_model(llama(desk / "tiny"))
    with pytest.raises(SpecError, match="yoco.*weights of its own; --model holds a Transformer"):
        weights_of("yoco:mixer=retention", Settings(model="tiny"), opened.pretrained)


def compressors_for(opened, folder: Path, spec: str, fingerprint: str) -> None:
    module, options = models.parse(spec)
    state = models.build(spec, opened.pretrained.shape).state_dict()
    name = checkpoint.compressor_name(module.Model.weight_names(options)[-1], opened.pretrained.name)
    card = {field: None for field in checkpoint.CARD_FIELDS}
    card |= {"notes": "for a test", "base": {"name": opened.pretrained.name, "fingerprint": fingerprint}}
    added = {key: value for key, value in state.items() if key.startswith("compressors.")}
    checkpoint.save(folder, name, added, card)


def test_lococo_takes_compressors_of_this_very_checkpoint(desk):
    path, spec = llama(desk / "tiny"), "lococo:budget=8"
    opened, own = open_model(path), desk / "results" / "weights"
    settings = Settings(model=str(path))
    with pytest.raises(checkpoint.WeightsError, match="lococo-8--tiny.*kvmark train"):
        weights_of(spec, settings, opened.pretrained)
    compressors_for(opened, own, spec, "another")
    with pytest.raises(checkpoint.WeightsError, match="fingerprint another"):
        weights_of(spec, settings, opened.pretrained)
    compressors_for(opened, own, spec, opened.pretrained.fingerprint)
    label = weights_of(spec, settings, opened.pretrained).label
    sha256 = checkpoint.load_card("lococo-8--tiny")["sha256"]
    assert label == f"tiny@{opened.pretrained.fingerprint[:12]}+lococo-8--tiny@{sha256[:12]}"
    # In either order the base is held once, and the compressors are nobody else's.
    for order in ((spec, "transformer"), ("transformer", spec)):
        shared: dict = {}
        held = {name: {p.data_ptr() for p in loaded(path, name, shared).parameters()} for name in order}
        assert held["transformer"] < held[spec]
        assert len(held[spec]) == len(shared)


def test_compressors_that_lack_are_named_with_their_command(desk):
    opened = open_model(llama(desk / "tiny"))
    command = "kvmark train lococo:budget=64 --model ./tiny --data FOLDER"
    with pytest.raises(checkpoint.WeightsError, match=re.escape(command)):
        weights_of("lococo:budget=64", Settings(model="./tiny"), opened.pretrained)


# --- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("puts_bos", [True, False])
def test_all_suites_run_on_a_checkpoints_own_tokens(desk, puts_bos):
    path = llama(desk / "tiny", puts_bos)
    plan = Plan(
        "p",
        ("tova:budget=64",),
        ("decode:contexts=150,new_tokens=4", "needle:lengths=190,depths=0.5,trials=2", "pg19:books=1"),
        Settings(model=str(path)),
        text="book.txt",
    )
    prepared = prepare(plan)
    assert prepared.tokenizer.bos == (0 if puts_bos else None)
    values = {}
    for suite in prepared.plan.suites:
        found = measured(prepared, "tova:budget=64", suite)
        assert {row.axis for row in found} == {"quality"}
        assert {row.weights for row in found} == {prepared.weights["tova:budget=64"].label}
        assert {row.evictions > 0 for row in found} == {True}
        # Only pg19 reads beyond 200 tokens, and every number of it says so.
        said = {row.message for row in found if not math.isnan(row.value)}
        assert len(said) == 1 and (said == {None}) is not suite.startswith("pg19"), said
        layers = {row.layer for row in found if row.metric == "retained_recent_share"}
        assert layers == {0, 1}
        values |= {(suite.partition(":")[0], row.metric): row.value for row in found}
    assert values["needle", "accuracy_strict"] in (0, 1)
    text = PROSE.encode()[:8192].decode(errors="ignore")
    ids, given = prepared.tokenizer.encode(text), 0 if puts_bos else 1
    first = prepared.tokenizer.decode(ids[:given])
    assert values["pg19", "num_bytes"] == len(text.encode()) - len(first)
    assert values["pg19", "num_tokens"] == len(ids) - given
    assert prepared.remarks == (
        f"pg19:books=1 goes up to {values['pg19', 'num_tokens']:,.0f} tokens, beyond the checkpoint's "
        "context of 200.",
    )


@NEEDS_STORIES
def test_a_published_model_scores_its_published_story(desk):
    """pg19 on the story that the model itself tells greedily: the known mean log-probability, per byte."""
    story = json.loads((STORIES.parent / "reference.json").read_text())
    (desk / "story.txt").write_text(story["text"], newline="")
    plan = Plan(
        "p", ("transformer", "window:budget=300"), ("pg19",), Settings(model=str(STORIES)), text="story.txt"
    )
    prepared = prepare(plan)
    assert prepared.remarks == ()
    for spec in prepared.plan.architectures:
        found = {row.metric: row.value for row in measured(prepared, spec, "pg19")}
        mean = story["mean_logprob_of_greedy_tokens"]
        assert found["num_tokens"] == len(story["token_ids"]) - 1
        assert found["nll_nats"] == pytest.approx(-mean * found["num_tokens"], rel=1e-4)
        num_bytes = len(story["text"].encode())
        assert found["bits_per_byte"] == pytest.approx(found["nll_nats"] / math.log(2) / num_bytes)


# --- the command ----------------------------------------------------------------------------------

SUITES = ("-s", "decode:contexts=48,new_tokens=3", "-s", "needle:lengths=190,depths=0.5,trials=2")
SUITES += ("-s", "pg19:books=1,bytes_per_book=2000")
POLICIES = ("-a", "transformer", "-a", "tova:budget=64")


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("hub", marks=pytest.mark.full),
        pytest.param("stories", marks=[pytest.mark.slow, NEEDS_STORIES]),
    ],
)
def test_one_command_measures_all_suites_and_the_second_one_nothing(hub, desk, source):
    """The cache of the hub is known to this process alone: workers only know where the files lie."""
    path, model = (STORIES, str(STORIES)) if source == "stories" else (cached(hub), "org/tiny")
    command = (
        "run",
        "--model",
        model,
        *POLICIES,
        *SUITES,
        "--text",
        "book.txt",
        "--repeats",
        "1",
        "--no-report",
    )
    done = ask(*command, "--out", "r")
    assert (done.code, done.broke) == (0, None), done.err
    found = rows(desk / "r")
    assert set(found.status) == {"ok"} and found.cell.nunique() == 6
    assert {label.split("@")[0] for label in found.weights} == {open_model(path).pretrained.name}
    manifest = json.loads((desk / "r" / "run.json").read_text())
    assert manifest["model"]["fingerprint"] == open_model(path).pretrained.fingerprint
    assert manifest["model"]["tokenizer"]["name"] in ("tokenizer.json", "tok512.bin")
    before = tree(desk / "r" / "cells")
    again = ask(*command, "--out", "r")
    assert again.code == 0 and "6 of 6 cells were measured before" in again.out
    assert tree(desk / "r" / "cells") == before


def test_a_model_is_a_key_of_plan_files(desk):
    llama(desk / "tiny")
    (desk / "mine.toml").write_text('architectures = ["tova"]\nsuites = ["decode"]\nmodel = "tiny"\n')
    assert ask("plan", "mine.toml").code == 0
    assert "exclude each other" in one_sentence(ask("plan", "mine.toml", "--shape", "tiny"), 2)
