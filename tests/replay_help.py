"""A CUDA graph's stand-in on any device: operations and kernel launches of a step, remembered and done again.

As in a captured graph, everything that Python computed is frozen, only memory changes; reading the device
back, or making a tensor from Python's numbers, is an error while capturing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

KERNELS = ("gated_retention", "decode_attention", "window_attention", "column_sums", "lococo_mix")
FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "is_nonzero")


def tensors(value) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


class Recorded(TorchDispatchMode):
    """A graph of what runs inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], None]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name.split("::")[1], kwargs or {}
        if name in FORBIDDEN:
            raise AssertionError(f"{name} while capturing")
        out = function(*args, **kwargs)
        inputs = {x.untyped_storage()._cdata for x in tensors((args, kwargs))}
        made = [x for x in tensors(out) if x.untyped_storage()._cdata not in inputs]
        if function._schema.is_mutable:
            self.work.append(lambda: function(*args, **kwargs))
        elif made:

            def again():
                for old, new in zip(tensors(out), tensors(function(*args, **kwargs)), strict=True):
                    old.copy_(new)

            self.work.append(again)
        return out

    def launched(self, launch):
        def remembered(kernel, grid, *arguments, **constants):
            def again():
                with _disable_current_modes():
                    launch(kernel, grid, *arguments, **constants)

            self.work.append(again)
            again()

        return remembered

    def replay(self) -> None:
        for work in self.work:
            work()


def recorder(monkeypatch) -> Callable[[Callable[[], Tensor]], tuple[Recorded, Tensor]]:
    """A `models.replay.Capture`; afterwards the step's effects on `remembered` tensors are undone."""

    def capture(step):
        graph, cache = Recorded(), step.__self__.cache
        held = [x for state in cache.states.values() for x in state.tensors.values()]
        before = [x.clone() for x in held]
        with monkeypatch.context() as patched:
            for op in KERNELS:
                module = importlib.import_module(f"models.kernels.{op}.fused")
                patched.setattr(module, "launch", graph.launched(module.launch))
            with graph:
                out = step()
        for x, old in zip(held, before, strict=True):
            x.copy_(old)
        return graph, out

    return capture


class Listed(TorchDispatchMode):
    """Lists operations and launches with all their sizes, and forgets the tensors."""

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.done: list[tuple] = []
        for op in KERNELS:
            module = importlib.import_module(f"models.kernels.{op}.fused")
            monkeypatch.setattr(module, "launch", self.launched)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.done.append((function, sizes(args), sizes(tuple((kwargs or {}).values()))))
        return function(*args, **(kwargs or {}))

    def launched(self, kernel, grid, *arguments, **constants) -> None:
        self.done.append((kernel, grid, sizes(arguments), tuple(constants.items())))


def sizes(values) -> tuple:
    """Of tensors, in lists, too; other values count as they are."""
    return tuple(
        (x.shape, x.dtype, x.stride()) if isinstance(x, Tensor)
        else sizes(x) if isinstance(x, list | tuple)
        else x
        for x in values
    )  # fmt: skip
