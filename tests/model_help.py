"""Small checkpoints of others, on disk or in the hub's cache, and their cells measured in this process."""

from __future__ import annotations

from pathlib import Path

from pretrained_help import write_checkpoint
from tokenizer_help import PROSE, write_byte_bpe

from harness.loading import load_model
from harness.measure import Measurement
from harness.rows import base_row

SIZES = {"vocab_size": 320, "max_position_embeddings": 200, "bos_token_id": 0, "eos_token_id": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def desk_with_a_book(folder: Path, monkeypatch) -> Path:
    """The folder as working directory, with book.txt in it and nothing else."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KVMARK_DATA", raising=False)
    (folder / "book.txt").write_text(PROSE)
    return folder


def llama(folder: Path, puts_bos: bool = True, **changes) -> Path:
    """A random Llama with a tokenizer of its own, in the hub's layout."""
    write_checkpoint(folder, "llama", **SIZES | changes)
    write_byte_bpe(folder, puts_bos=puts_bos, add_bos_token=puts_bos)
    return folder


def empty_hub(desk: Path, monkeypatch) -> Path:
    """An empty cache of the hub, and no network: whoever asks for it is told so at once."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return desk / "hub"


def cached(hub: Path, branch: str = "main") -> Path:
    """org/tiny as the hub's client keeps it."""
    repository = hub / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / branch).write_text(COMMIT)
    return llama(repository / "snapshots" / COMMIT)


def measured(prepared, spec: str, suite_spec: str) -> list:
    """The rows of the last cell, measured in this process as a worker does it."""
    found = [c for c in prepared.cells if (c.architecture, c.suite) == (spec, suite_spec)]
    cell, suite, opened = found[-1], prepared.suite(suite_spec), prepared.opened
    weights = prepared.weights[spec].label
    return Measurement(
        load_model(spec, prepared.settings, None, opened.pretrained), suite, cell, prepared.settings,
        0 if suite.interleaved else None,
        base=lambda cell, **known: base_row("run", cell, prepared.settings, weights=weights, **known),
        on_phase=lambda phase: None, context_length=opened.pretrained.context_length,
    ).measure()  # fmt: skip
