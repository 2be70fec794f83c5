"""Which files of a folder hold the weights: one, or shards that an index names.

    model.safetensors | model.safetensors.index.json {"weight_map": {tensor: file}} and its files
    pytorch_model.bin | pytorch_model.bin.index.json, if pickle is allowed

An index names files beside it and nothing else; every tensor must lie in the shard that the index says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .files import PretrainedError, read_json, shown
from .pickles import read_pickle
from .tensors import Stored, read_header

INDEX_LIMIT = 10_000_000


def read_folder(folder: Path, allow_pickle: bool) -> tuple[list[Path], dict[str, Stored]]:
    """(weight files, tensors by name); data stays in the files. Raises PretrainedError."""
    kinds: list[tuple[str, Callable[[Path], Mapping[str, Stored]]]] = [("model.safetensors", read_header)]
    if allow_pickle:
        kinds.append(("pytorch_model.bin", read_pickle))
    for name, read in kinds:
        single, index = folder / name, folder / f"{name}.index.json"
        # A dangling link (a hub cache cut short) is to be named, not passed over: lexists.
        if os.path.lexists(single):
            return [single], dict(read(single))
        if os.path.lexists(index):
            return _shards(index, Path(name).suffix, read)
    if any(folder.glob("pytorch_model*.bin")):
        raise PretrainedError(
            f"{folder} has its weights only as a pickle, which can run code: "
            "allow pickle (--allow-pickle) if you trust its source."
        )
    raise PretrainedError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json.")


def _shards(
    index: Path, suffix: str, read: Callable[[Path], Mapping[str, Stored]]
) -> tuple[list[Path], dict[str, Stored]]:
    places = read_json(index, INDEX_LIMIT).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise PretrainedError(f"{index} needs a weight_map from tensors to files.")
    for file in places.values():
        # Only names of files beside the index: no folder, no '..', nothing that begins with a dot.
        if not isinstance(file, str) or not re.fullmatch(
            r"\w[\w.-]{0,200}" + re.escape(suffix), file, re.ASCII
        ):
            raise PretrainedError(f"{index} names {shown(file)}, which is no {suffix} file beside it.")
    files = sorted({index.parent / file for file in places.values()})
    tensors: dict[str, Stored] = {}
    for path in files:
        for name, tensor in read(path).items():
            if places.get(name) != path.name:
                raise PretrainedError(f"tensor {shown(name)} lies in {path}, but its index does not say so.")
            tensors[name] = tensor
    for name, file in places.items():
        if name not in tensors:
            raise PretrainedError(f"tensor {shown(name)} is missing in {index.parent / file}.")
    return files, tensors
