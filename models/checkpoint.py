"""Trained weights as two files: tensors, and a card that says where they come from.

    <folder>/yoco-swa.safetensors   tensors, bf16 unless the card says fp32
    <folder>/yoco-swa.json          architecture, shape, recipe, data, losses, commit, command, ... and
                                    the SHA-256 of the other file

A card makes its numbers checkable: the hash ties it to the tensors, the command and the data hashes
let others repeat the training. So weights without a card, or whose hash differs, are not loaded.
Own weights (results/weights, not committed) hide shipped ones (models/weights) of the same name.

Weights that complete a checkpoint of somebody else (LoCoCo's compressors on a real model) are named after
it, "lococo-512--Llama-2-7b-hf", and their card's `base` holds its name and fingerprint: on any other
checkpoint, one of the same name included, they are not loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from .whole_file import whole_file

#: 1: first version.
CARD_FORMAT = 1

#: What the trainer must say; format, name, parameters, dtype and sha256 are added by `save`.
CARD_FIELDS = (
    *("architecture", "shape", "recipe", "seed", "data", "steps", "tokens", "losses"),
    *("commit", "hardware", "wall_s", "cpu_s", "command", "notes"),
)

#: Half the size of fp32; quality is measured on what is shipped, so the rounding is in every figure.
#: Fine-tuned norms and embeddings are kept in fp32: bf16 would round most of a small change away.
DTYPE = torch.bfloat16


class WeightsError(ValueError):
    """Weights are missing, damaged or of another network; the message is one sentence."""


class Base(NamedTuple):
    """The checkpoint that weights complete: its name (or path, or hub id) and what identifies its tensors."""

    name: str
    fingerprint: str


def compressor_name(name: str, base: str | None = None) -> str:
    """What weights `name` are called that were trained on the checkpoint `base`; None: on our own family."""
    if base is None:
        return name
    last = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return f"{name}--{re.sub('[^A-Za-z0-9._-]+', '-', last)}"


def default_folders() -> list[Path]:
    """Where weights are looked for, in this order: own ones, then those shipped with the package."""
    return [Path.cwd() / "results" / "weights", Path(__file__).parent / "weights"]


def content_hash(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: independent of file format and order."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # Through bytes: NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    folder: Path,
    name: str,
    state_dict: Mapping[str, Tensor],
    card: Mapping[str, Any],
    dtype: torch.dtype = DTYPE,
) -> dict[str, Any]:
    """Write `name`.safetensors and `name`.json; returns the complete card.

    `state_dict` of any float dtype and device is stored as `dtype`; `card` holds at least CARD_FIELDS.
    Raises WeightsError for a missing field or a tensor that is not finite. Each file appears whole; a
    crash between the two leaves an old card, whose hash then disagrees.
    """
    missing = [field for field in CARD_FIELDS if field not in card]
    if missing:
        raise WeightsError(f"the card of weights '{name}' lacks {', '.join(missing)}.")
    tensors = {}
    for key, value in state_dict.items():
        tensor = value.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
            if not tensor.isfinite().all():
                raise WeightsError(f"tensor '{key}' of weights '{name}' holds values that are not finite.")
        # A copy, because safetensors refuses tensors that share storage (tied or sliced ones).
        tensors[key] = tensor.clone(memory_format=torch.contiguous_format)
    data = safetensors.torch.save(tensors)
    # Computed fields come last: a card read from elsewhere must not bring its old hash along.
    complete = {
        **card,
        "format": CARD_FORMAT,
        "name": name,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtype": str(dtype).removeprefix("torch."),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(complete, indent=1, sort_keys=True, allow_nan=False) + "\n"
    for suffix, content in (("safetensors", data), ("json", text.encode())):
        with whole_file(folder / f"{name}.{suffix}") as file:
            file.write(content)
    return complete


def load_card(name: str, folders: Sequence[Path] | None = None) -> dict[str, Any]:
    """The card of `name` from the first folder that has one. Raises WeightsError if there is none."""
    return _find(name, folders)[1]


def load(
    name: str, folders: Sequence[Path] | None = None, base: Base | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (as stored, on the CPU) and card of `name`; `folders` default to `default_folders()`.

    With `base`, of those trained on that checkpoint (`compressor_name`). Raises WeightsError if a file is
    missing, the tensors are not those that the card describes, or they were trained on another base.
    """
    name = compressor_name(name, base.name if base else None)
    folder, card = _find(name, folders)
    if base is not None:
        check_base(name, card, base)
    path = folder / f"{name}.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"weights '{name}' have a card but no readable {path}.") from error
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise WeightsError(f"{path} is not the file that its card describes: the SHA-256 differs.")
    return safetensors.torch.load(data), card


def assign(model: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> None:
    """Put copies of the tensors into `model`, in the model's dtypes and (unless it is meta) devices.

    Raises WeightsError, naming the first difference, where names or shapes disagree; the model is
    then unchanged.
    """
    expected = model.state_dict()
    for problem, keys in (("lack", expected.keys() - state_dict), ("have", state_dict.keys() - expected)):
        if keys:
            what = f"tensor '{min(keys)}'" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
            tail = "the model needs" if problem == "lack" else "the model does not know"
            raise WeightsError(f"weights '{name}' {problem} {what} that {tail}.")
    tensors = {}
    for key, own in expected.items():
        there, here = tuple(state_dict[key].shape), tuple(own.shape)
        if there != here:
            raise WeightsError(f"weights '{name}' have '{key}' as {there}, the model needs {here}.")
        device = "cpu" if own.is_meta else own.device
        tensors[key] = state_dict[key].to(device, own.dtype, copy=True)
    model.load_state_dict(tensors, assign=True)


def check_base(name: str, card: Mapping[str, Any], base: Base) -> None:
    """Raise WeightsError unless the card says that its weights were trained on `base`."""
    there = card.get("base")
    trained_on = there.get("fingerprint") if isinstance(there, dict) else None
    if trained_on != base.fingerprint:
        raise WeightsError(
            f"weights '{name}' were trained on a checkpoint with the fingerprint {str(trained_on)[:12]}, and "
            f"'{base.name}' has {base.fingerprint[:12]}: train them again with 'kvmark train'."
        )


def _find(name: str, folders: Sequence[Path] | None) -> tuple[Path, dict[str, Any]]:
    folders = default_folders() if folders is None else folders
    for folder in folders:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            card_format, _ = card["format"], card["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is not a readable card of weights.") from error
        if card_format != CARD_FORMAT:
            raise WeightsError(f"{path} is a card of format {card_format}, this kvmark reads {CARD_FORMAT}.")
        return folder, card
    for folder in folders:
        if (folder / f"{name}.safetensors").exists():
            raise WeightsError(f"{folder / name}.safetensors has no card beside it.")
    places = " or ".join(str(folder) for folder in folders) or "no folder"
    raise WeightsError(f"there are no weights '{name}' in {places}: train them with 'kvmark train'.")
