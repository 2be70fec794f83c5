"""Checkpoints that others trained, as weights of our decoder: Llama, Mistral, Qwen2/2.5/3, llama2.c.

    pretrained = open_checkpoint(Path("Qwen2.5-0.5B"))      config and headers are read and compared
    model = models.build("transformer", pretrained.shape)
    checkpoint.assign(model, pretrained.state(torch.float32), pretrained.name)

Nothing is guessed: a config value, a tensor or a file that our decoder does not compute exactly as
`transformers` does is refused in one sentence. No pickle is opened unless asked for.

Files: `config` (config.json -> Shape), `rope`, `folder` (which files), `tensors` (safetensors),
`names` (their names -> ours), `llama2c`, `pickles`, `hashing`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..architecture import Shape
from . import llama2c
from .config import parse
from .files import PretrainedError, read_json
from .folder import read_folder
from .hashing import fingerprint
from .names import HEAD, Parts, compare
from .tensors import FileTensor, Stored

__all__ = ["Pretrained", "PretrainedError", "open_checkpoint"]

CONFIG_LIMIT = 1_000_000


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint whose config and headers fit together; its data is still in the files.

    `eos` are the tokens that end an answer. `context_length` is what the checkpoint says of itself.
    """

    path: Path
    name: str
    family: str
    shape: Shape
    context_length: int | None
    bos: int | None
    eos: tuple[int, ...]
    _files: tuple[Path, ...] = field(repr=False)
    _stored: Mapping[str, Stored] = field(repr=False, compare=False)
    _parts: Mapping[str, Parts] = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Hash of config and tensors (`hashing.py`); read from the files at first use."""
        return fingerprint(self._files, [t for t in self._stored.values() if isinstance(t, FileTensor)])

    def state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Our names -> tensors on the CPU in `dtype` (default: as stored), in memory of their own.

        Read one after the other: beside the result, never more than one fused matrix is held.
        Raises PretrainedError where a file has changed since it was opened.
        """
        state = {}
        for ours, parts in self._parts.items():
            pieces = [self._stored[name].read() for name, _ in parts]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            state[ours] = tensor.to(dtype or tensor.dtype)
        if self.shape.tied and HEAD in self._stored:
            stored, used = self._stored[HEAD].read(), state["embed.weight"]
            if not torch.equal(stored.to(used.dtype), used):
                raise PretrainedError(f"{self.path} says its embeddings are tied, but stores another {HEAD}.")
        return state


def open_checkpoint(path: Path, allow_pickle: bool = False) -> Pretrained:
    """A folder in the layout of Hugging Face's hub, or a llama2.c `.bin` file (format version 0).

    Reads config.json and the headers; no tensor yet. `allow_pickle` also reads pytorch_model*.bin.
    Raises PretrainedError, one sentence that names what is wrong or not supported.
    """
    whole = Path(os.path.abspath(path))  # not resolved: a link's own name is what its user calls it
    folder = os.path.isdir(whole)
    if folder:
        config_file = whole / "config.json"
        values, generation = read_json(config_file, CONFIG_LIMIT), whole / "generation_config.json"
        extra = read_json(generation, CONFIG_LIMIT) if os.path.lexists(generation) else {}
        config = parse(values, whole.name, str(config_file), extra)
        weights, stored = read_folder(whole, allow_pickle)
        files = [config_file, *weights]
    elif whole.suffix == ".bin":
        config, stored = llama2c.read(whole)
        files = [whole]
    else:
        raise PretrainedError(f"{path} is neither a checkpoint's folder nor a llama2.c .bin file.")
    name = whole.name if folder else whole.stem
    parts = compare(stored, config.shape, str(path))
    return Pretrained(
        whole, name, config.family, config.shape, config.context_length, config.bos, config.eos,
        tuple(files), stored, parts,
    )  # fmt: skip
