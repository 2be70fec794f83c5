"""Operations that architectures are built from, and who does them.

    torch    torch's own operations, on every machine; each op's `naive` is its definition
    fused    our Triton kernels (`OP/fused.py`) on CUDA, or in Triton's interpreter, which is for tests:
             gated_retention     retention of prompts and steps             yoco:mixer=retention
             decode_attention    every step, with the scores that a         all that know "fused"
                                 policy evicts by
             window_attention    prompts and blocks of rows in step (of     all; evictors: prompt=bulk, or
                                 unequal length: torch)                     a prompt below the budget
             column_sums         attention received, of the same            h2o, lococo
             lococo_mix          compressions by one convolution            lococo:depth=1
             All else is torch's: matrix products, norms, rotations, the evictions of a step-wise prompt.

A run names one implementation for all of its architectures (`kvmark run --implementation`), rows have it in a
column, and an architecture without kernels refuses "fused". Triton is imported once "fused" is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch

IMPLEMENTATIONS = ("torch", "fused")


def fused(op: str) -> ModuleType:
    """The kernels of an op, e.g. `fused("decode_attention").attend`: the names of its `naive`."""
    return importlib.import_module(f".{op}.fused", __name__)


def refuse(implementation: str, device: torch.device | str, dtype: torch.dtype) -> None:
    """Raises ValueError, one sentence, where an implementation cannot run."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"unknown implementation '{implementation}'; known: {known}.")
    if implementation == "torch":
        return
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the fused kernels need Triton: pip install 'kvmark[kernels]'.")
    if not str(device).startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "Triton kernels run on CUDA; a CPU has its interpreter alone (TRITON_INTERPRET=1), for tests."
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the fused kernels take fp32 and bf16, not {dtype}.")
