"""Which weights these are: SHA-256 over what was read, computed when asked for, once per process and file.

Up to 2 GiB: over the files as they are, config.json first. Above that, "sampled-" and SHA-256 over names,
sizes, config, headers and 16 evenly spaced blocks of every tensor: seconds instead of minutes for 100 GB,
and any training that touched a tensor as a whole still changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from .files import read_at, regular_size
from .tensors import FileTensor

FULL_LIMIT = 2 * 2**30
BLOCK, BLOCKS = 4096, 16

_known: dict[tuple, str] = {}


def fingerprint(files: Sequence[Path], tensors: Sequence[FileTensor]) -> str:
    """Hex digits, perhaps after "sampled-". `tensors` say where data lies in files above the limit.

    Raises PretrainedError where a file cannot be read any more.
    """
    sizes = [regular_size(path) for path in files]
    key = tuple((str(path), size, path.stat().st_mtime_ns) for path, size in zip(files, sizes, strict=True))
    if key not in _known:
        full = sum(sizes) <= FULL_LIMIT
        digest = hashlib.sha256()
        for path, size in zip(files, sizes, strict=True):
            digest.update(f"{path.name}|{size}|".encode())
            mine = [tensor for tensor in tensors if tensor.path == path]
            for offset, length in _everything(size) if full else _sampled(size, mine):
                digest.update(read_at(path, offset, length))
        _known[key] = ("" if full else "sampled-") + digest.hexdigest()
    return _known[key]


def _everything(size: int) -> Iterator[tuple[int, int]]:
    step = 2**24
    return ((offset, min(step, size - offset)) for offset in range(0, size, step))


def _sampled(size: int, tensors: Sequence[FileTensor]) -> Iterator[tuple[int, int]]:
    """What lies before the first tensor, and blocks of each; a file without tensors (config) in full."""
    yield from _everything(min((tensor.offset for tensor in tensors), default=size))
    for tensor in tensors:
        length = min(BLOCK, tensor.nbytes)
        spread = tensor.nbytes - length
        for offset in sorted({spread * i // (BLOCKS - 1) for i in range(BLOCKS)}):
            yield tensor.offset + offset, length
