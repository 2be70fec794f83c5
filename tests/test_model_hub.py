"""--model: where a checkpoint comes from, a path or the hub's cache, and what is said when it is nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_help import ask
from harness_help import one_sentence
from model_help import COMMIT, cached, desk_with_a_book, empty_hub, llama

from harness.plan import Plan, Settings
from harness.pretrained import locate, open_model
from harness.runner import prepare


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch) -> Path:
    return desk_with_a_book(tmp_path, monkeypatch)


@pytest.fixture
def hub(desk, monkeypatch) -> Path:
    return empty_hub(desk, monkeypatch)


def tova(model: str, *more: str) -> tuple[str, ...]:
    return ("plan", "--model", model, "-a", "tova", "-s", "decode:contexts=32", *more)


@pytest.mark.parametrize("asked", ["org/tiny", "org/tiny@main", f"org/tiny@{COMMIT}"])
def test_what_was_downloaded_is_found_without_network(hub, asked):
    folder = cached(hub)
    assert locate(asked) == folder
    opened = open_model(locate(asked))
    assert (opened.pretrained.name, opened.revision) == ("org/tiny", COMMIT)
    prepared = prepare(Plan("p", ("tova",), ("decode",), Settings(model=asked)))
    assert prepared.weights["tova:budget=256"].label.startswith("org/tiny@")
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
