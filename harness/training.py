"""What `kvmark train` does with any training, whatever is trained: run it, write weights and their card."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .environment import checkout, cpu_model, package_version

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.recipe import Recipe


#: Seconds between checkpoints: what a killed training loses at most.
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Training:
    """A network ready to be trained, and what its card will say."""

    name: str
    spec: str
    model: Architecture
    recipe: Recipe
    #: (on_log, on_save, checkpoint_path, origin, source, step_flops, ceiling_flops) -> log
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
    #: (rows, length) -> FLOPs of a step, where they are known
    step_flops: Callable[[int, int], float] | None = None


def carry_out(
    training: Training,
    out: Path,
    hardware: str,
    commit: str | None,
    say: Callable[[str], None],
    *,
    device: str = "cpu",
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Path:
    """Train (or resume), write weights, card and curve; returns the card's path.

    Raises ValueError where what is to be resumed began from another recipe, architecture, base or data, and
    FloatingPointError where it diverges.
    """
    import torch

    from models import checkpoint
    from models.training_log import summarise
    from models.training_run import sources_of
    from models.training_speed import matrix_product_flops

    def on_log(entry: Any) -> None:
        say(f"{training.name}: {entry.tokens:,} tokens, {training.line(entry)}, {speed_line(entry)}")

    make_folder(out)
    with only_one(out, training.name):
        if (finished := out / f"{training.name}.json").exists():
            raise ValueError(f"{finished} is a finished training; choose another --out or delete it.")
        recipe = training.recipe
        source = checkout(commit=commit)  # of what trains, not of what lies here when it ends
        unfinished = out / f"{training.name}.training.pt"
        curve = out / f"{training.name}.curve.parquet"
        dtype = torch.bfloat16 if recipe.autocast_bf16 else torch.float32
        ceiling_flops = matrix_product_flops(device, dtype)
        log = training.fit(
            on_log=on_log,
            on_save=functools.partial(write_curve, curve),
            checkpoint_path=unfinished,
            checkpoint_every_s=checkpoint_every_s,
            origin=origin(training),
            source=source_label(source),
            step_flops=training.step_flops,
            ceiling_flops=ceiling_flops,
        )
        card = {
            "architecture": training.spec,
            "shape": dataclasses.asdict(training.model.shape),
            "recipe": dataclasses.asdict(recipe),
            "seed": recipe.seed,
            "data": training.data,
            "steps": recipe.steps,
            "tokens": recipe.steps * recipe.tokens_per_step,
            "losses": summarise(log),
            **{key: value for key, value in source.items() if key in ("commit", "dirty")},
            "packages": {name: package_version(name) for name in ("torch", "numpy")},
            "hardware": f"{processor(device)}, {hardware}",
            "wall_s": round(log[-1].wall_s, 1),
            "cpu_s": round(log[-1].cpu_s, 1),
            "ceiling_flops": round(ceiling_flops),
            "command": training.command,
            "notes": training.notes,
        } | ({} if training.base is None else {"base": training.base})
        if len(sources := sources_of(unfinished)) > 1:  # interrupted, and went on under other code
            card["sources"] = sources
        stored = torch.float32 if training.exact else checkpoint.DTYPE
        checkpoint.save(out, training.name, training.state(), card, stored)
        write_curve(curve, log)
        unfinished.unlink(missing_ok=True)
        return out / f"{training.name}.json"


def processor(device: str) -> str:
    """What trains, by its own name: on a GPU that and the CPU beside it."""
    import torch

    cpu = cpu_model() or "unknown CPU"
    return f"{torch.cuda.get_device_name(device)}, {cpu}" if device.startswith("cuda") else cpu


def source_label(source: dict[str, Any]) -> str:
    """The commit that a training begins or goes on with, as its checkpoint lists it."""
    return f"{source['commit'] or 'unknown'}{' (changed)' if source['dirty'] else ''}"


def make_folder(out: Path) -> None:
    """Make it; one that cannot be written is found now, not after hours. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(out))


def speed_line(entry: Any) -> str:
    """Speed and the time left, of a log entry, in words."""
    left = "" if entry.eta_s is None else f", {datetime.timedelta(seconds=round(entry.eta_s))} left"
    mfu = "" if entry.mfu is None else f", MFU {100 * entry.mfu:.0f} %"
    return f"{entry.tokens_per_s or 0:,.0f} tokens/s{mfu}, {entry.cpu_s:.0f} CPU-s{left}"


def write_curve(path: Path, log: list[Any]) -> None:
    """The log as one Parquet file that appears whole: what a report of an unfinished training reads."""
    import pyarrow as pa

    from models.training_log import curve

    from .store import write_table

    columns = curve(log)
    if not log:
        return
    whole = ("step", "tokens")
    types = [(name, pa.int64() if name in whole else pa.float64()) for name in columns]
    write_table(path, pa.table(columns, schema=pa.schema(types)))


@contextmanager
def only_one(out: Path, name: str) -> Iterator[None]:
    """Keep out a second training of these weights, and clear what a killed one left half-written.

    Raises ValueError while another process trains them.
    """
    path = out / f".{name}.lock"
    while True:
        with path.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ValueError(f"'{name}' is being trained in {out} by process {lock.read()}.") from None
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # whoever held it has just ended and removed it
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            for left in (*out.glob(f"{name}.*.tmp"), *out.glob(f".{name}.*.tmp")):
                left.unlink(missing_ok=True)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def origin(training: Training) -> dict[str, str]:
    """What decides the result besides the recipe: an unfinished training goes on only where it agrees."""
    data, shape = (
        hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for part in (training.data, dataclasses.asdict(training.model.shape))
    )
    base = {} if training.base is None else {"base": training.base["fingerprint"]}
    return {"architecture": training.spec, "data": data} | base | {"shape": shape}


def books_card(hashes: dict[str, str]) -> dict[str, Any]:
    """The hash of every training text, and one over all of them."""
    lines = "".join(f"{name}:{sha256}\n" for name, sha256 in sorted(hashes.items()))
    return {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "books_sha256": hashes}
