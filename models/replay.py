"""Decode steps that are recorded once and replayed: CUDA graphs, alike for every architecture.

    step 1 of a kind    runs as ever: kernels are compiled, libraries find their workspaces
    step 2              is captured, and replayed
    from then on        token and position are copied in, and the graph is replayed; counts on the host follow

Steps are of one kind if their keys are equal (`Cache.step_key`): every architecture has one kind in its
steady state but LoCoCo, which has steps that fold, steps whose scores the next fold reads, and others. What
has no key, rows out of step or a policy that need not act yet, runs as ever: logits are the same with graphs
and without.

A captured step works on the tensors that it was captured with. One that replaces a tensor of its state cannot
be replayed; what replaced one between two steps costs the graphs, which are captured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch
from torch import Tensor

from .architecture import Architecture
from .cache import Cache


class Graph(Protocol):
    """What a captured step can do."""

    def replay(self) -> None: ...


#: Runs a step without any effect on the device but to remember it -> the graph, and the step's output.
Capture = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]


def cuda_graph(step: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
    """Capture on the current CUDA device; the output is the graph's own memory."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph, out


class Replayed:
    """`model.decode` for one cache. The logits of a replayed step are overwritten by the next one."""

    def __init__(self, model: Architecture, cache: Cache, capture: Capture = cuda_graph) -> None:
        self.model, self.cache, self.capture = model, cache, capture
        self.graphs: dict[Hashable, tuple[Graph, Tensor] | None] = {}
        self._captured: dict[str, int] = {}  # memory that the graphs work on
        self._sure = False  # whether it is still the cache's
        self._token_B: Tensor | None = None
        self._position_B1: Tensor | None = None

    def __call__(self, token_B: Tensor, valid_B: Tensor | None = None) -> Tensor:
        """As `Architecture.decode`. Raises RuntimeError for a state that replaces its tensors."""
        cache = self.cache
        key = cache.step_key() if valid_B is None else None
        if key is None:
            cache.position_B1, self._sure = None, False
            return self.model.decode(token_B, cache, valid_B)
        if self._token_B is None or self._position_B1 is None:
            self._token_B, self._position_B1 = token_B.clone(), token_B.clone()[:, None]
        if cache.seen[0] >= cache.capacity:
            raise ValueError(f"the cache has a capacity of {cache.capacity} tokens and is full.")
        self._token_B.copy_(token_B)
        cache.position_B1 = self._position_B1.fill_(cache.seen[0])
        if not self._sure and (memory := _memory(cache)) != self._captured:
            self.graphs.clear()
            self._captured = memory
        self._sure = True
        if key not in self.graphs:
            self.graphs[key] = None
            return self._step()
        if (known := self.graphs[key]) is None:
            known = self.graphs[key] = self.capture(self._step)  # which counts the step on the host
            if moved := [name for name, at in _memory(cache).items() if self._captured.get(name) != at]:
                raise RuntimeError(f"a step replaces the tensor {moved[0]}, so it cannot be replayed.")
        else:
            cache.count_step()
        graph, logits_BV = known
        graph.replay()
        return logits_BV

    def _step(self) -> Tensor:
        assert self._token_B is not None
        return self.model.decode(self._token_B, self.cache)


def _memory(cache: Cache) -> dict[str, int]:
    return {
        f"{state}.{name}": tensor.data_ptr()
        for state, held in cache.states.items()
        for name, tensor in held.tensors.items()
    }
