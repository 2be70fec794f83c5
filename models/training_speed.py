"""How fast a training could be: FLOPs of a step, and what a matrix product reaches on this machine.

    MFU = FLOPs of the steps made / seconds of wall time / FLOP/s of a matrix product in the same dtype

A step counts as three forward passes (one forward, two for the gradients of inputs and weights), each as
many FLOPs as the architecture predicts for feeding the tokens one by one with all logits: matrix products
and attention, nothing element-wise, no optimiser. So MFU says what the rest costs, too.
"""

from __future__ import annotations

import math
import time

import torch

from .architecture import Architecture

#: Positions at which the cost of a token is asked for; between them it changes evenly.
SAMPLES = 256
#: A product is doubled in size until it takes this long; then the fastest of a few counts.
LONG_ENOUGH_S, LARGEST_SIDE, PRODUCTS = 0.01, 8192, 5


def step_flops(model: Architecture, rows: int, length: int) -> float:
    """FLOPs of forward and backward over `rows` sequences of `length` tokens."""
    stride = math.ceil(length / SAMPLES)
    starts = range(0, length, stride)
    parts = [min(stride, length - start) for start in starts]
    forward = sum(
        part * model.decode_flops(start + part // 2) for start, part in zip(starts, parts, strict=True)
    )
    return 3.0 * rows * forward


def matrix_product_flops(device: torch.device | str, dtype: torch.dtype) -> float:
    """FLOP/s of a square product in `dtype`, in well under a second; draws nothing from the global seed."""
    side = 256
    while True:
        a, b = (torch.full((side, side), value, device=device, dtype=dtype) for value in (0.5, 0.25))
        _seconds(a, b)  # the first one of a size sets things up
        if _seconds(a, b) >= LONG_ENOUGH_S or side == LARGEST_SIDE:
            break
        side *= 2
    return 2 * side**3 / min(_seconds(a, b) for _ in range(PRODUCTS))


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
    return max(time.perf_counter() - start, 1e-9)
