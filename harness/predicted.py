"""Bytes at the widest point of a prefill, predicted without memory and without running anything.

    predicted = held beside the model + weights + cache at context + steps + rotary tables + activations

Activations are those of one block of a plain decoder over all tokens of one call (`activation_bytes`): a
prompt in chunks has those of a chunk. A test holds the sum to what a prefill on torch's meta device makes.
Not predicted: probabilities that a scoring policy materialises, workspaces of libraries, fragmentation, a
GPU's context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .plan import Cell, Settings

if TYPE_CHECKING:
    from .runner import Prepared


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
    import models
    from models.shapes import shape_from
    from models.skeleton import without_memory

    from .loading import torch_dtype

    dtype = torch_dtype(settings.dtype)
    with without_memory():
        model = models.build(spec, shape_from(shape), dtype)
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    chunk = settings.prefill_chunk

    def predict(context: int) -> int:
        cache = model.cache_bytes(context + new_tokens + 1, batch, dtype, prompt=context).total
        at_once = min(context, chunk or context)
        tables = model.table_bytes(context + new_tokens + 1, dtype)
        activations = activation_bytes(model, at_once, batch, dtype.itemsize)
        return held_bytes + weights + cache + tables + activations

    return predict


def beyond(prepared: Prepared, limit_bytes: int) -> Iterator[tuple[Cell, int]]:
    """Cells of latency suites whose predicted bytes exceed a limit, each as if alone in its process."""
    for cell in prepared.cells:
        context, batch = cell.axes.get("context"), cell.axes.get("batch")
        if cell.replicate or context is None or batch is None:
            continue
        steps = prepared.suite(cell.suite).options.new_tokens
        shape = prepared.weights[cell.architecture].shape
        predict = predictor(cell.architecture, shape, prepared.settings, int(batch), steps, 0)
        if (size := predict(int(context))) > limit_bytes:
            yield cell, size
