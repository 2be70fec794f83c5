"""--model: policies on checkpoints of others, from the option to the rows, without network."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from harness_help import ROOT, one_sentence, rows, tree
from pretrained_help import write_checkpoint
from test_bad_input import ask
from tokenizer_help import PROSE, write_byte_bpe

import models
from harness.loading import load_model, short, weights_of
from harness.measure import Measurement
from harness.plan import Cell, Plan, Settings
from harness.pretrained import locate, open_model
from harness.rows import base_row, cell_rows
from harness.runner import UsageError, _manifest, prepare
from harness.worker import CONTRACT_VERSION, EXIT_ENVIRONMENT
from models import checkpoint, lookup
from models.shapes import SHAPES
from models.spec import SpecError

STORIES = Path(os.environ.get("KVMARK_DATA", "")) / "tiny_lm" / "stories260K.bin"
NEEDS_STORIES = pytest.mark.skipif(
    not STORIES.is_file(), reason="KVMARK_DATA names no folder with tiny_lm/stories260K.bin"
)
SIZES = {"vocab_size": 320, "max_position_embeddings": 200, "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    (tmp_path / "book.txt").write_text(PROSE)
    return tmp_path


def llama(folder: Path, puts_bos: bool = True, **changes) -> Path:
    """A random Llama with a tokenizer of its own, in the hub's layout."""
    write_checkpoint(folder, "llama", **SIZES | changes)
    write_byte_bpe(folder, puts_bos=puts_bos, add_bos_token=puts_bos)
    return folder


def loaded(path: Path, spec: str, shared=None, **settings):
    opened = open_model(path)
    return load_model(spec, Settings(model=str(path), **settings), shared, opened.pretrained)


# --- loading ----------------------------------------------------------------------------------------


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


def test_labels_name_checkpoint_and_fingerprint(desk):
    path = llama(desk / "tiny")
    opened = open_model(path)
    found = weights_of("tova", Settings(model=str(path)), opened.pretrained)
    assert found.label == f"tiny@{opened.pretrained.fingerprint[:12]}"
    assert found.cards["tiny"]["sha256"] == opened.pretrained.fingerprint
    assert "200" in found.cards["tiny"]["notes"] and found.cards["tiny"]["parameters"] > 0
    assert short("sampled-" + "0" * 64) == "sampled-" + "0" * 12 and short("ab" * 32) == "ab" * 6


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


# --- measuring --------------------------------------------------------------------------------------


def measured(prepared, spec: str, suite_spec: str, axes: dict | None = None) -> list:
    """The rows of the last (or the named) cell, measured in this process as a worker does it."""
    found = [c for c in prepared.cells if (c.architecture, c.suite) == (spec, suite_spec)]
    cell, suite, opened = found[-1], prepared.suite(suite_spec), prepared.opened
    weights = prepared.weights[spec].label
    return Measurement(
        load_model(spec, prepared.settings, None, opened.pretrained), suite, cell, prepared.settings,
        0 if suite.interleaved else None,
        base=lambda cell, **known: base_row("run", cell, prepared.settings, weights=weights, **known),
        on_phase=lambda phase: None, context_length=opened.pretrained.context_length,
    ).measure()  # fmt: skip


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


def test_the_remark_is_no_reason_for_a_missing_number():
    """The report explains numbers that are not there by their message."""
    base = replace(base_row("run", Cell("key", "tova", "pg19", {}), Settings()), message="beyond")
    found = list(cell_rows(base, {"one": 1.0, "none": math.nan}))
    assert [row.message for row in found] == ["beyond", None]


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


# --- the command ------------------------------------------------------------------------------------

SUITES = ("-s", "decode:contexts=48,new_tokens=3", "-s", "needle:lengths=190,depths=0.5,trials=2")
SUITES += ("-s", "pg19:books=1,bytes_per_book=2000")
POLICIES = ("-a", "transformer", "-a", "tova:budget=64")


@pytest.mark.full
@pytest.mark.parametrize("source", ["hub", pytest.param("stories", marks=NEEDS_STORIES)])
def test_one_command_measures_all_suites_and_the_second_one_nothing(hub, desk, source):
    """The cache of the hub is known to this process alone: workers only know where the files lie."""
    path, model = (STORIES, str(STORIES)) if source == "stories" else (cached(hub), "org/tiny")
    command = ("run", "--model", model, *POLICIES, *SUITES, "--text", "book.txt", "--repeats", "1")
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


def test_the_plan_says_what_goes_beyond_the_context(desk):
    llama(desk / "tiny")
    done = ask("plan", "--model", "tiny", "-a", "tova", "-s", "decode", "--contexts", "100,300")
    assert done.code == 0
    assert "goes up to 332 tokens, beyond the checkpoint's context of 200." in done.out


def test_a_model_is_a_key_of_plan_files(desk):
    llama(desk / "tiny")
    (desk / "mine.toml").write_text('architectures = ["tova"]\nsuites = ["decode"]\nmodel = "tiny"\n')
    assert ask("plan", "mine.toml").code == 0
    assert "exclude each other" in one_sentence(ask("plan", "mine.toml", "--shape", "tiny"), 2)


# --- where it comes from ----------------------------------------------------------------------------


@pytest.fixture
def hub(desk, monkeypatch) -> Path:
    """An empty cache of the hub, and no network: whoever asks for it is told so at once."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return desk / "hub"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(hub: Path, branch: str = "main") -> Path:
    """org/tiny as the hub's client keeps it."""
    repository = hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / branch).write_text(COMMIT)
    return llama(repository / "snapshots" / COMMIT)


@pytest.mark.parametrize("asked", ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"])
def test_what_was_downloaded_is_found_without_network(hub, asked):
    folder = cached(hub)
    assert locate(asked) == folder
    opened = open_model(locate(asked))
    assert (opened.pretrained.name, opened.revision) == ("org/tiny", COMMIT)
    prepared = prepare(Plan("p", ("tova",), ("decode",), Settings(model=asked)))
    assert prepared.weights["tova"].label.startswith("org/tiny@")
    assert prepared.plan.settings.model == asked, "the manifest says what was asked for"
    assert prepared.settings.model == str(folder), "a worker is told where it lies"
    assert prepared.opened.card()["revision"] == COMMIT


def test_an_existing_path_is_never_looked_up(hub, desk):
    assert locate(str(llama(desk / "org" / "tiny"))) == desk / "org" / "tiny"
    assert locate("org/tiny") == desk / "org" / "tiny"
    assert open_model(locate("org/tiny")).revision is None


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_an_incomplete_download_is_not_taken_for_the_model(hub, lost):
    (cached(hub) / lost).unlink()
    assert "cannot be reached" in one_sentence(ask(*tova("org/tiny")), 3)


def test_missing_shards_make_a_download_incomplete(hub):
    folder = cached(hub)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "cannot be reached" in one_sentence(ask(*tova("org/tiny")), 3)


def test_a_download_without_tokenizer_gets_the_sentence_about_tokenizers(hub):
    (cached(hub) / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in one_sentence(ask(*tova("org/tiny")), 2)


def tova(model: str, *more: str) -> tuple[str, ...]:
    return ("plan", "--model", model, "-a", "tova", "-s", "decode:contexts=32", *more)


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ("org/gone", 3, "hub cannot be reached"),
        ("org/gone@v1", 3, "org/gone@v1"),
        ("gone", 2, "no checkpoint gone"),
        ("./org/gone", 2, "no checkpoint"),
        ("org/gone.bin", 2, "no checkpoint"),
        ("org/..", 2, "no checkpoint"),
        ("a/b/c", 2, "no checkpoint"),
        ("x" * 5000, 2, "no checkpoint"),
        ("org/--bad..name", 2, "no checkpoint"),
        ("org/bad..name", 2, "hub allows"),
    ],
)
def test_what_is_nowhere_is_one_sentence(hub, asked, code, words):
    assert words in one_sentence(ask(*tova(asked)), code)


@pytest.mark.parametrize(
    ("error", "words"),
    [("RepositoryNotFoundError", "no such model"), ("GatedRepoError", "gated"),
     ("RevisionNotFoundError", "no revision 'v1'")],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_sentence(hub, monkeypatch, error, words):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_, **__):
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    assert words in one_sentence(ask(*tova("org/gone@v1")), 2)


def test_pickles_are_fetched_only_where_they_are_allowed(hub, monkeypatch):
    import huggingface_hub

    asked = []

    def fetch(repository, *, allow_patterns, local_files_only=False, **_):
        asked.append((local_files_only, any("*.bin" in pattern for pattern in allow_patterns)))
        return str(folder)

    folder = cached(hub)
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    locate("org/tiny")
    assert asked == [(True, False), (False, False)]
    asked.clear()
    locate("org/tiny", allow_pickle=True)
    assert asked == [(True, False), (False, False), (True, True), (False, True)]


# --- what is opened is what was prepared -----------------------------------------------------------


def refusal_of_worker(desk: Path, prepared, **changes) -> str:
    """What a worker process says to its job file, which has no cell to measure; "" if all is well."""
    job = {
        "version": CONTRACT_VERSION, "parent_pid": os.getpid(), "run": "r", "out": "r", "text": None,
        "text_label": None, "machine": "m", "weights": {}, "groups": [], "architectures": {},
        "settings": asdict(prepared.settings), "checkpoint": prepared.checkpoint,
    }  # fmt: skip
    (desk / "JOB.json").write_text(json.dumps(job | changes))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.worker", "JOB.json"], cwd=desk, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (EXIT_ENVIRONMENT if done.stderr else 0) and "Traceback" not in done.stderr
    return done.stderr


def test_a_worker_refuses_what_changed_since_it_was_prepared(desk, monkeypatch):
    path = llama(desk / "tiny")
    prepared = prepare(Plan("p", ("tova:budget=8",), ("decode:contexts=20",), Settings(model="tiny")))
    (desk / "mine.py").write_text("pass")
    monkeypatch.setenv("KVMARK_ARCHITECTURES", str(desk / "mine.py"))
    known = {"mine:budget=4": lookup.fingerprint("mine"), "tova:budget=8": None}
    assert refusal_of_worker(desk, prepared, architectures=known) == ""
    said = refusal_of_worker(desk, prepared, architectures={"mine:budget=4": "abc"})
    assert re.fullmatch(
        "the file of architecture 'mine:budget=4' changed from abc to [0-9a-f]{64}[.]\n", said
    )
    for touched in ("tokenizer.json", "config.json"):
        content = (path / touched).read_text()
        (path / touched).write_text(content + " ")
        said = refusal_of_worker(desk, prepared)
        assert said.startswith(f"the checkpoint changed from {prepared.checkpoint} to tiny@"), said
        (path / touched).write_text(content)


def test_the_manifest_names_budgets_and_another_spelling_is_the_same_plan(desk):
    path, out = llama(desk / "tiny"), desk / "r"
    out.mkdir()

    def manifest(model: str, **settings):
        suite = ("decode:contexts=20",)
        prepared = prepare(Plan("p", ("tova:budget=8",), suite, Settings(model=model, **settings)))
        return _manifest(prepared, out)

    first = manifest("tiny")
    assert first["architectures"] == {"tova:budget=8": {"sha256": None, "budget": 8}}
    for spelling in ("./tiny", str(path)):
        again = manifest(spelling, tokenizer="tiny/tokenizer.json")
        assert again["cells"] == first["cells"] and again["created"] == first["created"]
    with pytest.raises(UsageError, match="another plan"):
        manifest("tiny", seed=1)
    write_checkpoint(desk / "b" / "tiny", "llama", **SIZES | {"rms_norm_eps": 1e-5})
    write_byte_bpe(desk / "b" / "tiny")
    with pytest.raises(UsageError, match="another plan"):
        manifest("b/tiny")


def test_a_window_within_the_budget_is_remarked_and_stands_in_the_rows(desk):
    write_checkpoint(desk / "sliding", "mistral", **SIZES | {"sliding_window": 40})
    write_byte_bpe(desk / "sliding")
    specs = ("transformer", "tova:budget=39", "tova:budget=40")
    plan = Plan("p", specs, ("decode:contexts=60,new_tokens=3",), Settings(model="sliding"))
    prepared = prepare(plan)
    (remark,) = prepared.remarks
    assert remark.startswith("tova:budget=40: the checkpoint's own sliding window of 40 tokens lies within")
    for spec in specs:
        found = measured(prepared, spec, prepared.plan.suites[0])
        said = {row.message for row in found if not math.isnan(row.value)}
        assert said == {remark.removeprefix(f"{spec}: ").rstrip(".") if spec == specs[2] else None}
        budgets = [row.value for row in found if row.metric == "budget_tokens"]
        assert budgets == ([] if spec == "transformer" else [float(spec[-2:])])
        kept = {row.metric for row in found if row.metric.startswith("retained")}
        assert bool(kept) is (spec != "transformer"), "a window of the network is no policy"


def test_compressors_that_lack_are_named_with_their_command(desk):
    opened = open_model(llama(desk / "tiny"))
    command = "kvmark train lococo:budget=64 --model ./tiny --data FOLDER"
    with pytest.raises(checkpoint.WeightsError, match=re.escape(command)):
        weights_of("lococo:budget=64", Settings(model="./tiny"), opened.pretrained)
