"""pytorch_model*.bin: pickles, read only on request, and then by torch's restricted unpickler.

A pickle is a program. `weights_only=True` runs it with a short list of harmless functions, which is a
promise of torch, not of the format: hence the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .files import PretrainedError, read_at, regular_size, shown
from .tensors import DTYPES


@dataclass(frozen=True)
class PickledTensor:
    """A tensor that the unpickler has mapped (zip format) or loaded (the format before it)."""

    tensor: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> Tensor:
        return self.tensor.clone(memory_format=torch.contiguous_format)


def read_pickle(path: Path) -> dict[str, PickledTensor]:
    """Every tensor of one file. Raises PretrainedError, whatever is in it."""
    zipped = read_at(path, 0, min(4, regular_size(path))) == b"PK\x03\x04"
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # a hostile file may break the unpickler in any way
        raise PretrainedError(f"{path} is not a file of tensors alone, or it is damaged.") from None
    if not isinstance(values, dict):
        raise PretrainedError(
            f"{path} must hold a dictionary of tensors, not {shown(type(values).__name__)}."
        )
    for name, tensor in values.items():
        plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.is_meta or tensor.dtype not in DTYPES.values():
            raise PretrainedError(f"entry {shown(name)} in {path} is no plain tensor of floats.")
    return {name: PickledTensor(tensor) for name, tensor in values.items()}
