"""Launches of Triton kernels, matrix products inside of them, and which kind of these a dtype gets.

"ieee"   fp32 operands: exact fp32 products, no TF32
"tf32"   bf16 operands on a GPU: bf16 tensor cores, sums in fp32 (the name says nothing about bf16)
"widen"  bf16 operands in Triton's interpreter, whose own product of them is wrong (3.7.1): widened first, as
         products of two bf16 numbers are exact in fp32, these are the numbers of a tensor core
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

#: Kernels run in Python, on any machine: TRITON_INTERPRET was set when this was imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def dot_kind(dtype: torch.dtype) -> str:
    """What a kernel's constant DOT has to be for operands of this dtype."""
    if dtype == torch.float32:
        return "ieee"
    return "widen" if INTERPRETED else "tf32"


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel; on the meta device, where memory is counted and nothing computed, nothing."""
    if not arguments[0].is_meta:
        kernel[grid](*arguments, **constants)


@triton.jit
def product(a, b, DOT: tl.constexpr):
    """a b with fp32 sums, operands of one dtype."""
    if DOT == "widen":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=DOT)
