"""Budgets in bytes: `budget_bytes=N` becomes the largest `budget` whose cache fits.

What counts is the whole cache of one request when a prompt has been read, as the architecture itself
predicts it: keys and values, metadata and recurrent state, in the dtype of the run. So two policies
under one `budget_bytes` may differ in tokens (scores cost memory, too), not in memory. What a policy
lets grow after the prompt (SnapKV keeps its answer) comes on top.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from .architecture import Shape
from .skeleton import without_memory


def room_of(options: Any) -> int:
    """What options that must fit into the budget are compared with: not known yet while it is in bytes."""
    return options.budget if options.budget_bytes is None else 10**12


def resolve(module: Any, options: Any, shape: Shape, dtype: torch.dtype) -> Any:
    """Options with `budget` set and `budget_bytes` gone. Raises ValueError where nothing fits."""
    limit = getattr(options, "budget_bytes", None)
    if limit is None:
        return options

    def with_budget(budget: int) -> Any:
        return dataclasses.replace(options, budget=budget, budget_bytes=None)

    def size(budget: int) -> int | None:
        """Bytes at this budget; None where the policy refuses it as too small."""
        try:
            small = with_budget(budget)
        except ValueError:
            return None
        with without_memory():
            model = module.Model(shape, small)
        # Longer than any budget, and all of it a prompt: the steady state.
        return model.cache_bytes(4 * limit, 1, dtype, prompt=4 * limit).total

    low, high = 0, limit  # `low` fits or is refused as too small; a slot has at least one byte
    while low < high:
        middle = (low + high + 1) // 2
        held = size(middle)
        low, high = (middle, high) if held is None or held <= limit else (low, middle - 1)
    if low == 0 or size(low) is None:
        smallest = next(b for b in itertools.count(max(low, 1)) if size(b) is not None)
        needed = size(smallest)
        raise ValueError(f"budget_bytes={limit} is too small: a budget of {smallest} takes {needed} bytes.")
    return with_budget(low)
