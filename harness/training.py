"""What `kvmark train` does with any training, whatever is trained: run it, write weights and their card."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import checkout, cpu_model

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """A network ready to be trained, and what its card will say."""

    name: str
    spec: str
    model: Architecture
    recipe: Recipe
    #: (on_log, checkpoint_path, origin) -> log
    fit: Callable[..., list[Any]]
    #: what is saved, asked for when the training is over
    state: Callable[[], dict[str, Any]]
    data: dict[str, Any]
    notes: str
    command: str
    #: one line for people of a log entry
    line: Callable[[Any], str]
    #: name and fingerprint of the frozen weights that the trained ones belong to
    base: dict[str, str] | None = None
    #: whether weights are kept in fp32
    exact: bool = False


def carry_out(
    training: Training, out: Path, hardware: str, commit: str | None, say: Callable[[str], None]
) -> Path:
    """Train (or resume), write weights, card and curve; returns the card's path.

    Raises ValueError where what is to be resumed began from another recipe, architecture, base or data.
    """
    import pyarrow as pa
    import torch

    from models import checkpoint
    from models.training_log import summarise

    from .store import write_table

    def on_log(entry: Any) -> None:
        speed = f"{entry.tokens_per_cpu_s or 0:,.0f} tokens/CPU-s, {entry.cpu_s:.0f} CPU-s"
        say(f"{training.name}: {entry.tokens:,} tokens, {training.line(entry)}, {speed}")

    start, recipe = time.monotonic(), training.recipe
    unfinished = out / f"{training.name}.training.pt"
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is found now, not after hours
    if not os.access(out, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))
    if (finished := out / f"{training.name}.json").exists():
        raise ValueError(f"{finished} is a finished training; choose another --out or delete it.")
    log = training.fit(on_log=on_log, checkpoint_path=unfinished, origin=origin(training))
    card = {
        "architecture": training.spec,
        "shape": dataclasses.asdict(training.model.shape),
        "recipe": dataclasses.asdict(recipe),
        "seed": recipe.seed,
        "data": training.data,
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.tokens_per_step,
        "losses": summarise(log),
        **{key: value for key, value in checkout(commit=commit).items() if key in ("commit", "dirty")},
        "hardware": f"{cpu_model() or 'unknown CPU'}, {hardware}",
        "wall_s": round(time.monotonic() - start, 1),
        "cpu_s": round(log[-1].cpu_s, 1),
        "command": training.command,
        "notes": training.notes,
    } | ({} if training.base is None else {"base": training.base})
    dtype = torch.float32 if training.exact else checkpoint.DTYPE
    checkpoint.save(out, training.name, training.state(), card, dtype)
    rows = [{k: v for k, v in dataclasses.asdict(e).items() if not isinstance(v, dict)} for e in log]
    write_table(out / f"{training.name}.curve.parquet", pa.Table.from_pylist(rows))
    unfinished.unlink(missing_ok=True)
    return out / f"{training.name}.json"


def origin(training: Training) -> dict[str, str]:
    """What decides the result besides the recipe: an unfinished training goes on only where it agrees."""
    data = hashlib.sha256(json.dumps(training.data, sort_keys=True).encode()).hexdigest()
    base = {} if training.base is None else {"base": training.base["fingerprint"]}
    return {"architecture": training.spec, "data": data} | base


def books_card(hashes: dict[str, str]) -> dict[str, Any]:
    """The hash of every training text, and one over all of them."""
    lines = "".join(f"{name}:{sha256}\n" for name, sha256 in sorted(hashes.items()))
    return {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "books_sha256": hashes}
