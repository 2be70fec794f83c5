"""`kvmark train`: wires a recipe, the training mix and a network, and writes weights with their card.

    kvmark train transformer --data FOLDER              the family's three networks …
    kvmark train yoco:mixer=retention --data FOLDER
    kvmark train lococo:budget=128 --data FOLDER        … and compressors on the frozen Transformer

Weights go to `results/weights/` (they hide shipped ones of the same name) unless `out` says else.
The training books must not be evaluation books; the card lists the hash of every one of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from .environment import checkout, cpu_model
from .loading import check_device
from .store import write_table

FAMILY_LENGTHS, FAMILY_SHARES = (256, 512, 1024, 2048), (0.4, 0.3, 0.2, 0.1)
#: Compressors need long sequences: trained on 1,024 tokens only (6 compressions) they blew up at 8,192
#: (DECISIONS.md has the tries).
LOCOCO_TOKENS, LOCOCO_LR, LOCOCO_TOKENS_PER_STEP = 6_000_000, 3e-3, 4096
LOCOCO_LENGTHS, LOCOCO_SHARES = (1024, 4096), (0.5, 0.5)


def train(
    spec: str,
    data: Path,
    out: Path,
    *,
    tokens: int | None = None,
    seed: int = 0,
    induction_heads: int = 2,
    device: str = "cpu",
    threads: int = 1,
    commit: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train one member of the family; returns the path of its card.

    Raises SpecError, TextError, WeightsError or ValueError with one sentence for bad input.
    """
    import torch

    import models
    from models import checkpoint
    from models.compressor_training import by_blocks, freeze_all_but_compressors
    from models.initialisation import INDUCTION_NOTE
    from models.shapes import SHAPES
    from models.spec import SpecError, split_spec
    from models.training import fit, prepare
    from models.training_log import summarise
    from suites.text import load_books
    from suites.training_mix import TrainingMix

    spec = models.canonical_spec(spec)
    module, options = models.parse(spec)
    name = module.Model.weight_names(options)[-1]
    kind = split_spec(spec)[0]
    if kind not in ("transformer", "yoco", "lococo"):
        raise SpecError(f"'{kind}' has no weights of its own; train transformer, yoco or lococo.")
    check_device(device)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    books, hashes = load_books(data)
    folders = [out, *checkpoint.default_folders()]
    model = models.build(spec, SHAPES["family"])

    def on_log(entry: Any) -> None:
        say(
            f"{name}: {entry.tokens:,} tokens, {entry.bits_per_byte or float('nan'):.3f} bits/byte (running),"
            f" needle digits {entry.digit_accuracy}, {entry.tokens_per_cpu_s or 0:,.0f} tokens/CPU-s,"
            f" {entry.cpu_s:.0f} CPU-s"
        )

    start = time.monotonic()
    recipe, lengths, shares = recipe_of(kind, tokens, seed, induction_heads)
    mix_seed = seed + 1 if kind == "lococo" else seed  # compressors see other sequences than their base did
    mix = TrainingMix([book for _, book in books], mix_seed, recipe.tokens_per_step, lengths, shares)
    if kind == "lococo":
        base, base_card = checkpoint.load("transformer", folders)
        compressors = {k: v for k, v in model.state_dict().items() if k.startswith("compressors.")}
        checkpoint.assign(model, base | compressors, "transformer")
        freeze_all_but_compressors(model)
        log = fit(
            model, mix.batch, recipe, device=device, on_log=on_log,
            checkpoint_path=out / f"{name}.training.pt", backward=by_blocks,
        )  # fmt: skip
        state = {k: v for k, v in model.state_dict().items() if k.startswith("compressors.")}
        notes = (
            "Compressors on the frozen 'transformer' weights (trainable=compressor), trained block by block "
            f"through the measured cache; base weights sha256 {base_card['sha256']}. {base_card['notes']}"
        )
    else:
        prepare(model, recipe)
        log = fit(
            model, mix.batch, recipe, device=device, on_log=on_log,
            checkpoint_path=out / f"{name}.training.pt",
        )  # fmt: skip
        state = model.state_dict()
        notes = INDUCTION_NOTE.format(heads=induction_heads) if induction_heads else "No hand-set start."
    card = {
        "architecture": spec,
        "shape": dataclasses.asdict(SHAPES["family"]),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "data": mix.card() | {"sha256": _combined(hashes), "books_sha256": hashes},
        "steps": recipe.steps,
        "tokens": recipe.steps * recipe.tokens_per_step,
        "losses": summarise(log),
        **{key: value for key, value in checkout(commit=commit).items() if key in ("commit", "dirty")},
        "hardware": f"{cpu_model() or 'unknown CPU'}, {threads} thread(s), {device}",
        "wall_s": round(time.monotonic() - start, 1),
        "cpu_s": round(log[-1].cpu_s, 1),
        "command": _command(spec, tokens, seed, induction_heads),
        "notes": notes,
    }
    checkpoint.save(out, name, state, card)
    write_table(
        out / f"{name}.curve.parquet",
        pa.Table.from_pylist(
            [{k: v for k, v in dataclasses.asdict(entry).items() if not isinstance(v, dict)} for entry in log]
        ),
    )
    (out / f"{name}.training.pt").unlink(missing_ok=True)
    return out / f"{name}.json"


def recipe_of(
    kind: str, tokens: int | None, seed: int, induction_heads: int
) -> tuple[Any, tuple[int, ...], tuple[float, ...]]:
    """Recipe, sequence lengths and their shares of one kind of training. Raises ValueError."""
    from models.training import Recipe

    if kind == "lococo":
        recipe = Recipe(
            total_tokens=LOCOCO_TOKENS if tokens is None else tokens,
            tokens_per_step=LOCOCO_TOKENS_PER_STEP,
            autocast_bf16=False,
            adamw_lr=LOCOCO_LR,
            betas=(0.9, 0.999),
            weight_decay=0.0,
            seed=seed,
            induction_heads=0,
        )
        return recipe, LOCOCO_LENGTHS, LOCOCO_SHARES
    total = Recipe.total_tokens if tokens is None else tokens
    recipe = Recipe(total_tokens=total, seed=seed, induction_heads=induction_heads)
    return recipe, FAMILY_LENGTHS, FAMILY_SHARES


def _command(spec: str, tokens: int | None, seed: int, induction_heads: int) -> str:
    parts = [f"kvmark train {spec} --data PG19_TRAIN_FOLDER --seed {seed}"]
    if tokens is not None:
        parts.append(f"--tokens {tokens}")
    if induction_heads != 2:
        parts.append(f"--induction-heads {induction_heads}")
    return " ".join(parts)


def _combined(hashes: dict[str, str]) -> str:
    return hashlib.sha256("".join(f"{k}:{v}\n" for k, v in sorted(hashes.items())).encode()).hexdigest()
