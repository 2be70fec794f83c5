"""How much memory a search may fill, and how much of it a context is predicted to need.

    predicted = held beside the model + weights + cache at context + steps + activations of the prompt
    limit     = --memory-limit-bytes; without it on a CPU half of what the machine has available,
                on a GPU what its driver calls free

Activations are those of one block of a plain decoder over all tokens of one call (`activation_bytes`).
Not predicted: probabilities that a scoring policy materialises, workspaces, rotary tables, fragmentation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .environment import ROOT
from .errors import UsageError
from .machine_limits import available_memory_bytes
from .plan import Settings
from .supervise import EnvironmentRefuses

#: Of the memory that is available, what a search on a CPU may take unless it is told.
DEFAULT_SHARE = 0.5
#: The default limit is rounded down to a multiple of this.
ROUND_BYTES = 1 << 26


@dataclass(frozen=True)
class Memory:
    """What a worker may fill. `limit_bytes` counts from zero, `held_bytes` of it are gone at its start."""

    limit_bytes: int
    held_bytes: int


def default_limit_bytes() -> int:
    """A stated share of this machine's available memory. Raises UsageError where that is unknown."""
    available = available_memory_bytes()
    if available is None:
        raise UsageError("This system does not tell how much memory is available; give --memory-limit-bytes.")
    return max(int(available * DEFAULT_SHARE) // ROUND_BYTES, 1) * ROUND_BYTES


def memory_of(settings: Settings) -> Memory:
    """Ask a fresh process on the device. Raises EnvironmentRefuses."""
    done = subprocess.run(
        [
            sys.executable, "-P", "-m", "harness.frontier_probe",
            settings.device, str(settings.threads), settings.dtype,
        ],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(settings.threads)},
    )  # fmt: skip
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["A fresh process ended without a word."]
        raise EnvironmentRefuses(words[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    limits = [size for size in (settings.memory_limit_bytes, told["free_bytes"]) if size is not None]
    return Memory(min(limits), told["held_bytes"] or 0)


def activation_bytes(model: Any, num_tokens: int, batch: int, itemsize: int) -> int:
    """Of one residual block over `num_tokens` tokens per row: what is alive at its widest point.

    The stream before the block and within it, its norm and the block's output (4E), the widest product, and
    what is made of that, which is about as wide again: SwiGLU's gate and up (2F), their activation and
    product (2F); or q, k, v, their rotated copies and the output of attention. A model's last norm and
    logits are of one token.
    """
    blocks = (p for n, p in model.named_parameters() if n not in ("embed.weight", "head.weight"))
    widest = max(parameter.shape[0] for parameter in blocks if parameter.ndim == 2)
    return batch * num_tokens * (4 * model.shape.dim + 2 * widest) * itemsize


def predictor(
    spec: str, shape: dict[str, Any], settings: Settings, batch: int, new_tokens: int, held_bytes: int
) -> Callable[[int], int]:
    """context -> predicted bytes of a process that prefills it and decodes `new_tokens` steps.

    Built without memory; nothing is run.
    """
    import torch

    import models
    from models.shapes import shape_from

    from .loading import torch_dtype

    dtype = torch_dtype(settings.dtype)
    with torch.device("meta"):
        model = models.build(spec, shape_from(shape), dtype)
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    chunk = settings.prefill_chunk

    def predict(context: int) -> int:
        cache = model.cache_bytes(context + new_tokens + 1, batch, dtype, prompt=context).total
        at_once = min(context, chunk or context)
        return held_bytes + weights + cache + activation_bytes(model, at_once, batch, dtype.itemsize)

    return predict
