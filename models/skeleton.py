"""Networks without memory: what a network is made of and what its cache would take, before any weights.

Torch's meta device alone would do. But `torch.nn.init` then runs Python references of its kernels, which
import torch's compiler: two seconds in every process that only counts parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoValues(TorchFunctionMode):
    """Leaves tensors as they are where `torch.nn.init` would fill them."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Networks built in here have names, shapes and dtypes, and no storage."""
    with torch.device("meta"), _NoValues():
        yield
