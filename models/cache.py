"""What is remembered between calls, counted to the byte.

    Cache                     one per batch of requests
      └── LayerState …        named states: "0.attention", "0.convolution", "shared", …
            ├── LayerCache    a state that *owns attention*: it appends, attends, scores and evicts
            └── ConvState     the last K-1 inputs of a short convolution

Each state declares its tensors (batch dimension first) with a kind: `payload` (keys, values, memory
slots), `metadata` (positions, scores, free lists) or `state` (convolution tails, retention states).
Whatever a state keeps per row on the host lies in `rows`. Declaring both is all it takes for
`fork`, `select` and byte counting to work.

`live_bytes` does not trust the declaration: it walks everything a state holds and counts unique
storages, since a slice keeps its whole parent alive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["payload", "metadata", "state"]


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache by kind; `total` is what one pays."""

    payload: int = 0
    metadata: int = 0
    state: int = 0

    @property
    def total(self) -> int:
        return self.payload + self.metadata + self.state


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a state keeps: shape without the batch dimension, dtype, kind, initial value."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Kind
    fill: float = 0


@dataclass(frozen=True)
class Request:
    """What a cache is asked for: rows, tokens per row, storage, and what the caller knows of each row.

    `seeds` (one per row) drive random policies; `prompts` are prompt lengths, None if not declared.
    """

    batch: int
    capacity: int
    dtype: torch.dtype
    device: torch.device | str
    seeds: list[int]
    prompts: list[int] | None = None
    implementation: str = "torch"


class Ragged:
    """Right-padded rows: row b of this call has `lengths[b]` valid tokens, then padding."""

    def __init__(self, lengths: list[int], mask_BT: Tensor) -> None:
        self.lengths, self.mask_BT = lengths, mask_BT

    def columns(self, start: int, stop: int) -> Ragged:
        """The same rows, tokens start..stop-1 only."""
        width = stop - start
        lengths = [min(max(length - start, 0), width) for length in self.lengths]
        return Ragged(lengths, self.mask_BT[:, start:stop])


def row_lengths(valid: Ragged | None, batch: int, num_tokens: int) -> list[int]:
    """Valid tokens per row of this call."""
    return [num_tokens] * batch if valid is None else valid.lengths


class LayerState:
    """Tensors with a batch dimension, and host integers per row, that live between calls."""

    #: How many layers read this state in one decode step (YOCO's shared cache has several).
    readers: int = 1
    #: Slots that one query attends to at most, or in the mean of a cycle; None: every token so far.
    reach: int | None = None
    #: KV elements per slot that a reading query touches (2 * G * D); 0 for recurrent states.
    slot_elements: int = 0
    #: Who computes: see `models.kernels`.
    implementation: str = "torch"

    def __init__(self, batch: int, specs: dict[str, TensorSpec], device: torch.device | str) -> None:
        self.specs = specs
        self.tensors = {
            name: torch.full((batch, *spec.shape), spec.fill, dtype=spec.dtype, device=device)
            for name, spec in specs.items()
        }
        self.rows: dict[str, list[int]] = {"seen": [0] * batch}

    @property
    def batch(self) -> int:
        return len(self.rows["seen"])

    @property
    def fused(self) -> bool:
        return self.implementation == "fused"

    def uniform(self, valid: Ragged | None) -> bool:
        """Whether all rows are in step, so that one slice serves them all."""
        seen = self.rows["seen"]
        return valid is None and all(n == seen[0] for n in seen)

    def count(self, lengths: list[int]) -> None:
        """Note that row b has seen `lengths[b]` more tokens."""
        self.rows["seen"] = [n + length for n, length in zip(self.rows["seen"], lengths, strict=True)]

    def step_key(self) -> Hashable:
        """What host counts decide about the next decode step of rows in step: steps with equal keys do the
        same work on the same tensors, which they change in place. None: this step cannot be replayed."""
        return None

    def count_step(self) -> None:
        """Note on the host that a step was replayed."""
        self.count([1] * self.batch)

    def evicted(self) -> list[int]:
        """Slots per row that this state has given up so far: tokens dropped, or folded into others."""
        return [0] * self.batch

    def kept_positions(self) -> Tensor | None:
        """True positions of the tokens held now, (B,P,S), -1 in empty slots; None where slots have none.

        P is 1 where all KV heads of the layer hold the same tokens, else the number of KV heads.
        """
        return None

    def statistics(self) -> dict[str, list[float]]:
        """Further numbers that the policy wants recorded, one per row of the batch."""
        return {}

    def derive(self, change: Callable[[Tensor], Tensor], rows: list[int]) -> LayerState:
        """A copy with every tensor changed and the host integers of `rows`."""
        other = copy.copy(self)
        other.tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        other.rows = {name: [values[r] for r in rows] for name, values in self.rows.items()}
        return other


class LayerCache(LayerState):
    """The seam of every cache policy: it owns attention for its layer.

    By convention keys and values are the tensors "k" and "v", (B,G,S,D).
    """

    def attend(
        self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, positions_BT: Tensor, valid: Ragged | None
    ) -> Tensor:
        """Append this call's keys and values, attend to what is held, then evict by the policy's rule.

        q and k come without rotary position; whether keys are held rotated is the cache's business.
        `positions_BT` are true token indices. Padding (outside `valid`) must change nothing.
        Returns (B,T,H,D).
        """
        raise NotImplementedError

    def write_run(self, k_BTGD: Tensor, v_BTGD: Tensor, start: int) -> None:
        """Rows in step: this call's keys and values go to slots start, start+1, …"""
        stop = start + k_BTGD.shape[1]
        self.tensors["k"][:, :, start:stop] = k_BTGD.transpose(1, 2)
        self.tensors["v"][:, :, start:stop] = v_BTGD.transpose(1, 2)

    def write_at(self, k_B1GD: Tensor, v_B1GD: Tensor, slot_1: Tensor) -> None:
        """Rows in step: one token's keys and values go to a slot that only the device knows."""
        self.tensors["k"].index_copy_(2, slot_1, k_B1GD.transpose(1, 2))
        self.tensors["v"].index_copy_(2, slot_1, v_B1GD.transpose(1, 2))

    def write_slots(self, k_BTGD: Tensor, v_BTGD: Tensor, slot_BT: Tensor, stays_BT: Tensor) -> None:
        """Rows not in step: token (b,t) goes to its own slot where `stays`; the others go nowhere."""
        rows = torch.arange(len(slot_BT), device=slot_BT.device)[:, None].expand_as(slot_BT)[stays_BT]
        slot = slot_BT[stays_BT]
        self.tensors["k"][rows, :, slot] = k_BTGD[stays_BT]
        self.tensors["v"][rows, :, slot] = v_BTGD[stays_BT]


class ConvState(LayerState):
    """The last `taps - 1` inputs of a causal depthwise convolution, per channel."""

    def __init__(
        self, batch: int, taps: int, channels: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(batch, {"tail": TensorSpec((taps - 1, channels), dtype, "state")}, device)

    @classmethod
    def of(cls, conv: nn.Module, request: Request) -> ConvState:
        """The state that a `ShortConv` needs: weight (channels, taps)."""
        channels, taps = conv.weight.shape
        return cls(request.batch, taps, channels, request.dtype, request.device)

    def step_key(self):
        return ()

    def shift_in(self, x_BTC: Tensor, valid: Ragged | None) -> Tensor:
        """Prepend the kept inputs to x and keep the newest ones: (B, taps-1+T, C)."""
        tail = self.tensors["tail"]
        kept = tail.shape[1]
        joined = torch.cat([tail.to(x_BTC.dtype), x_BTC], 1)
        if valid is None:
            tail.copy_(joined[:, joined.shape[1] - kept :])
        else:
            start = torch.tensor(valid.lengths, device=tail.device)
            index = start[:, None] + torch.arange(kept, device=tail.device)
            tail.copy_(joined.gather(1, index[:, :, None].expand(-1, -1, joined.shape[2])))
        return joined


class Cache:
    """Everything that one batch of requests keeps between calls."""

    def __init__(self, states: dict[str, LayerState], batch: int, capacity: int) -> None:
        self.states, self.capacity = states, capacity
        self.seen = [0] * batch
        #: True positions (B,1) of a step's tokens where steps are replayed; else they are made of `seen`.
        self.position_B1: Tensor | None = None

    @property
    def batch(self) -> int:
        return len(self.seen)

    def fork(self) -> Cache:
        """An independent copy: many continuations of one context."""
        return self._derive(lambda tensor: tensor.clone(), list(range(self.batch)))

    def select(self, rows: list[int]) -> Cache:
        """A new cache of the given rows, in that order; a row may be taken several times.

        Raises ValueError for no row at all or a row that is not there.
        """
        if not rows or not all(0 <= row < self.batch for row in rows):
            raise ValueError(f"a cache of {self.batch} rows cannot give rows {rows}.")
        return self._derive(
            lambda tensor: tensor.index_select(0, torch.tensor(rows, device=tensor.device)), rows
        )

    def _derive(self, change: Callable[[Tensor], Tensor], rows: list[int]) -> Cache:
        states = {name: state.derive(change, rows) for name, state in self.states.items()}
        other = Cache(states, len(rows), self.capacity)
        other.seen = [self.seen[r] for r in rows]
        return other

    def step_key(self) -> Hashable:
        """As `LayerState.step_key`, of all states together."""
        keys = tuple(state.step_key() for state in self.states.values())
        return None if None in keys or len(set(self.seen)) > 1 else keys

    def count_step(self) -> None:
        """Note on the host that a step was replayed."""
        self.seen = [n + 1 for n in self.seen]
        for state in self.states.values():
            state.count_step()

    def detach_(self) -> None:
        """Cut the gradient at this point (truncated back-propagation between blocks)."""
        for state in self.states.values():
            state.tensors = {name: tensor.detach() for name, tensor in state.tensors.items()}

    def live_bytes(self) -> CacheBytes:
        """Bytes really held, each storage once, whatever the states declared."""
        totals = {"payload": 0, "metadata": 0, "state": 0}
        counted: set[int] = set()
        for state in self.states.values():
            for name, tensor in _tensors(vars(state)):
                storage = tensor.untyped_storage()
                if storage._cdata not in counted:
                    counted.add(storage._cdata)
                    kind = state.specs[name].kind if name in state.specs else "state"
                    totals[kind] += storage.nbytes()
        return CacheBytes(**totals)

    def evicted(self) -> list[int]:
        """Per row: slots given up (tokens dropped or folded), summed over layers."""
        return [sum(column) for column in zip(*(s.evicted() for s in self.states.values()), strict=True)]

    def kept_positions(self) -> dict[str, Tensor]:
        """`LayerState.kept_positions` of every state that has them, by name."""
        kept = {name: state.kept_positions() for name, state in self.states.items()}
        return {name: positions for name, positions in kept.items() if positions is not None}

    def statistics(self) -> dict[str, list[float]]:
        """The policy's own numbers per row, averaged over the layers that report them."""
        collected: dict[str, list[list[float]]] = {}
        for state in self.states.values():
            for name, values in state.statistics().items():
                collected.setdefault(name, []).append(values)
        return {
            name: [sum(row) / len(row) for row in zip(*layers, strict=True)]
            for name, layers in collected.items()
        }


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor reachable through containers and plain objects; modules are weights, not cache."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, name)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | torch.dtype | type):
        yield from _tensors(vars(value), name)
