"""Tensors that still lie in a file: where, of which dtype and shape, and how to fetch one.

The safetensors format (https://huggingface.co/docs/safetensors): 8 bytes header length, a JSON header
{name: {dtype, shape, data_offsets}}, then the data without gaps. We read it ourselves, with every check of
the reference library and a smaller limit for the header, because a mapped file that shrinks kills the
process, and because a plain read fills the memory of the result and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .files import PretrainedError, parse_json, read_at, regular_size, shown

#: The format allows 100 MB; ten thousand tensors need 2 MB, and parsed JSON is larger than its text.
HEADER_LIMIT = 10_000_000

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored(Protocol):
    """A tensor of a checkpoint, known by its header; only `read` costs memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor: ...


@dataclass(frozen=True)
class FileTensor:
    """Row-major little-endian data in a file. `interleaved` heads of that width have their rotary pairs
    as neighbours (0,1), (2,3) … in the rows; `read` brings them into half-split order (i, i + D/2)."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    interleaved: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """A copy in memory of its own. Raises PretrainedError where the file has shrunk since."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        flat = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                got = file.readinto(flat)
        except OSError as error:
            raise PretrainedError(f"{self.path} cannot be read ({error.strerror}).") from None
        if got != self.nbytes:
            raise PretrainedError(f"{self.path} became shorter while it was read.")
        if not self.interleaved:
            return tensor
        pairs = tensor.unflatten(0, (-1, self.interleaved // 2, 2))
        return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def read_header(path: Path) -> dict[str, FileTensor]:
    """Every tensor of a safetensors file, by name. Raises PretrainedError; allocates no tensor."""
    size = regular_size(path)
    if size < 8:
        raise PretrainedError(f"{path} is not a safetensors file: it has {size} bytes.")
    length = int.from_bytes(read_at(path, 0, 8), "little")
    if length > min(size - 8, HEADER_LIMIT):
        what = f"states a header of {length} bytes; it has {size} bytes, and {HEADER_LIMIT} are read at most"
        raise PretrainedError(f"{path} is truncated or not a safetensors file: it {what}.")
    header = parse_json(read_at(path, 8, length), f"the header of {path}")
    header.pop("__metadata__", None)
    start = 8 + length
    placed = sorted((_entry(path, name, entry, start) for name, entry in header.items()), key=_place)
    end = start
    for name, tensor in placed:
        if tensor.offset != end:
            raise PretrainedError(f"tensor {shown(name)} in {path} overlaps another or leaves a gap.")
        end += tensor.nbytes
    if end != size:
        raise PretrainedError(f"{path} has {size} bytes, but its header states {end}.")
    return dict(placed)


def _place(item: tuple[str, FileTensor]) -> tuple[int, int]:
    return item[1].offset, item[1].nbytes


def _entry(path: Path, name: str, entry: Any, start: int) -> tuple[str, FileTensor]:
    def refuse(why: str) -> PretrainedError:
        return PretrainedError(f"tensor {shown(name)} in {path} {why}.")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse("needs exactly dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise refuse(f"has dtype {shown(kind)}; only {', '.join(DTYPES)} are read")
    if not _counts(shape) or len(shape) > 8:
        raise refuse(f"has shape {shown(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"has data_offsets {shown(offsets)}")
    tensor = FileTensor(path, start + offsets[0], DTYPES[kind], tuple(shape))
    if tensor.nbytes != offsets[1] - offsets[0]:
        raise refuse("has other data_offsets than its dtype and shape need")
    return name, tensor


def _counts(values: Any) -> bool:
    """Whether this is a list of sizes that any file could have."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**60 for n in values)
