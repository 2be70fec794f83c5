"""`--model`: a checkpoint of others, found or fetched once, opened with its own tokenizer.

    locate("path/to/folder")                 what exists is used as it is: a folder, or a llama2.c .bin
    locate("Qwen/Qwen2.5-0.5B@main")         else org/name[@revision] of the Hugging Face hub: from its cache,
                                             and only if that lacks something from the network
    open_model(path)                         -> Opened: checkpoint and tokenizer, read in no other place

The parent locates (`prepare`); workers are told the folder and need no network. Only what is read is
fetched: config, tokenizer, safetensors, and pickles only where they are allowed and there is nothing else.

Raises PretrainedError, TokenizerError or SpecError for what cannot be used (exit code 2),
EnvironmentRefuses where the hub cannot be reached (exit code 3).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.spec import SpecError

if TYPE_CHECKING:
    from models.architecture import Shape
    from models.pretrained import Pretrained
    from suites.suite import Case
    from suites.tokenizer import Tokenizer

READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Opened:
    """A checkpoint and its tokenizer; `revision` is the hub's commit, None where it is not from there."""

    pretrained: Pretrained
    tokenizer: Tokenizer
    revision: str | None

    def fingerprints(self) -> str:
        """Checkpoint and tokenizer in one word: what a worker opens is what was prepared."""
        return f"{self.pretrained.name}@{self.pretrained.fingerprint} with {self.tokenizer.fingerprint}"

    def card(self) -> dict[str, Any]:
        """What a run's manifest says about it."""
        p, t = self.pretrained, self.tokenizer
        return {
            "name": p.name,
            "family": p.family,
            "fingerprint": p.fingerprint,
            "revision": self.revision,
            "context_length": p.context_length,
            "tokenizer": {"name": t.name, "sha256": t.fingerprint, "ids": t.vocab_size, "bos": t.bos},
        }


def open_model(path: Path, tokenizer: str | None = None, allow_pickle: bool = False) -> Opened:
    """Open what `locate` found; `tokenizer` names another file than the checkpoint's own."""
    from models.pretrained import open_checkpoint
    from suites import tokenizers

    pretrained = open_checkpoint(path, allow_pickle)
    repository, revision = _of_cache(path)
    if repository is not None:  # a folder of the hub's cache is called after its commit
        pretrained = dataclasses.replace(pretrained, name=repository)
    file = Path(tokenizer) if tokenizer else tokenizers.find(path, pretrained.shape.vocab)
    own = tokenizers.open_tokenizer(file, pretrained.shape.vocab, pretrained.bos, pretrained.eos)
    return Opened(pretrained, own, revision)


def most_fed(cases: Iterable[Case]) -> int:
    """Tokens of the longest request that a model sees: the last one of a continuation is never fed."""
    return max((max(len(case.prompt), case.num_tokens - 1) for case in cases), default=0)


def beyond(num_tokens: int, context_length: int | None) -> str | None:
    """What to say of requests that are longer than a checkpoint was trained for; None: they are not."""
    if context_length is None or num_tokens <= context_length:
        return None
    return f"{num_tokens:,} tokens, beyond the checkpoint's context of {context_length:,}"


def within_window(shape: Shape, budget: int | None) -> str | None:
    """What to say of a budget that holds all that a checkpoint's own window shows; None: it does not."""
    window = shape.sliding_window
    if not shape.sliding_layers or window is None or budget is None or window > budget:
        return None
    sliding = len(shape.sliding_layers)
    layers = "" if sliding == shape.num_layers else f" in {sliding} layers"
    return (
        f"the checkpoint's own sliding window of {window:,} tokens{layers} lies within the budget of "
        f"{budget:,}: nothing that it shows has to be evicted there"
    )


def locate(path_or_id: str, allow_pickle: bool = False) -> Path:
    """The folder or file of a checkpoint on this machine, fetched if need be."""
    path = Path(path_or_id)
    with contextlib.suppress(OSError):  # a name that no file system allows is no file
        if path.exists():
            return path.absolute()
    found = _HUB_ID.fullmatch(path_or_id)
    if found is None or path.suffix in (".bin", ".safetensors", ".json"):
        raise SpecError(f"There is no checkpoint {path_or_id}, and it is no org/name[@revision] of the hub.")
    return _from_hub(found["id"], found["revision"], allow_pickle)


def _from_hub(repository: str, revision: str | None, allow_pickle: bool) -> Path:
    folder = _fetch(repository, revision, (*READ, *SAFETENSORS), "model.safetensors")
    if allow_pickle and not _has_weights(folder, "model.safetensors"):
        return _fetch(repository, revision, (*READ, *PICKLES), "pytorch_model.bin")
    return folder


def _fetch(repository: str, revision: str | None, patterns: tuple[str, ...], weights: str) -> Path:
    """The cached snapshot if it has what is needed, else what the network makes of it."""
    from huggingface_hub import HfApi, errors, snapshot_download

    from .store import first_line
    from .supervise import EnvironmentRefuses

    cached = _cached(repository, revision, patterns)
    if cached is not None and _has_weights(cached, weights) and _has_tokenizer(cached):
        return cached
    named = f"{repository}@{revision}" if revision else repository
    try:
        HfApi().model_info(repository, revision=revision)  # else an incomplete cache would do for an answer
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except errors.GatedRepoError:
        raise SpecError(
            f"'{named}' is gated: accept its terms on the hub and log in there (hf auth login)."
        ) from None
    except errors.RepositoryNotFoundError:
        raise SpecError(
            f"There is no file or folder '{named}' here, and no such model on the hub (or it is private)."
        ) from None
    except errors.RevisionNotFoundError:
        raise SpecError(f"'{repository}' has no revision '{revision}' on the hub.") from None
    except errors.HFValidationError:
        raise SpecError(f"'{named}' is neither a file or folder nor a name that the hub allows.") from None
    except Exception as error:  # of the connection; which types depends on the client's version
        if cached is not None and _has_weights(cached, weights):
            return cached  # without a tokenizer, which has a sentence of its own
        raise EnvironmentRefuses(
            f"There is no file or folder '{named}', the hub's cache here lacks it, and the hub cannot be "
            f"reached ({type(error).__name__}: {first_line(error)})."
        ) from None


def _cached(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), local_files_only=True
            )
        )
    except errors.IncompleteSnapshotError as error:
        return Path(error.snapshot_path)  # lacks something, which need not be anything that we read
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def _has_weights(folder: Path, name: str) -> bool:
    """Whether a snapshot has config and weights: one file, or every shard that the index names."""
    index = folder / f"{name}.index.json"
    if not (folder / "config.json").exists():
        return False
    if not index.exists():
        return (folder / name).exists()
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).exists() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # damaged, not missing: opening it says how


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))


def _of_cache(path: Path) -> tuple[str | None, str | None]:
    """org/name and commit of a folder models--org--name/snapshots/COMMIT; None and None elsewhere."""
    repository = path.parent.parent.name
    if path.parent.name != "snapshots" or not repository.startswith("models--"):
        return None, None
    return repository.removeprefix("models--").replace("--", "/", 1), path.name
