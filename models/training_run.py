"""The state of one training: what a step changes, what the log says, what a checkpoint holds.

    checkpoint  trained parameters, optimisers, step, log and running means in one file that appears whole

Frozen parameters are not in it: they are those of the base, which a checkpoint names along with everything
else that decides the result (`identity`). One that differs in any of it is refused.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .muon import Muon
from .recipe import Recipe
from .training_log import LogEntry, Meters
from .whole_file import whole_file

#: 2: trained parameters only; names what the training was of.
CHECKPOINT_FORMAT = 2

UNKNOWN_SOURCE = "unknown"

#: (model, batch, device, recipe) -> sums for `Meters`; leaves the gradients in the parameters.
Backward = Callable[[nn.Module, Any, torch.device, Recipe], Tensor]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a training changes, by name; they share the parameters' memory."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


class Run:
    """One training of `model`; learning rates fall from those that the optimisers come with.

    `origin` is what decides the result besides the recipe. `step_flops(rows, length)`, `ceiling_flops` and
    `observe(model)` are for the log alone; without the first two it has no MFU. `source` names the code that
    trains: a checkpoint lists those of every start. Raises ValueError if nothing is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        optimisers: Sequence[torch.optim.Optimizer],
        backward: Backward,
        device: torch.device,
        path: Path | None,
        origin: Mapping[str, str],
        step_flops: Callable[[int, int], float] | None = None,
        ceiling_flops: float | None = None,
        observe: Callable[[nn.Module], dict[str, float]] | None = None,
        source: str = UNKNOWN_SOURCE,
    ) -> None:
        self.model, self.recipe, self.optimisers, self.backward = model, recipe, optimisers, backward
        self.device, self.path = device, path
        self.step_flops = None if step_flops is None else functools.cache(step_flops)
        self.ceiling_flops, self.flops = ceiling_flops, 0.0  # since the last log entry
        self.observe = observe
        self.trained = trained_state(model)
        if not self.trained:
            raise ValueError("the network has no trainable parameter.")
        decides = {name: value for name, value in asdict(recipe).items() if name != "log_every_s"}
        self.identity = decides | dict(origin)
        self.highest_lr = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
        # Muon's update has the same size whatever the gradient: only the others' can be clipped.
        others = [group for o in optimisers if not isinstance(o, Muon) for group in o.param_groups]
        self.clipped = [parameter for group in others for parameter in group["params"]]
        self.step, self.sources = 0, [source]
        self.log: list[LogEntry] = []
        self.meters = Meters()
        self.wall_before_s = self.cpu_before_s = 0.0
        self.wall_start, self.cpu_start = time.monotonic(), time.process_time()

    def advance(self, batch: Any) -> None:
        """One optimiser step. Raises ValueError for a batch of the wrong size."""
        tokens = batch.tokens_BT1[:, 1:].size
        if tokens != self.recipe.tokens_per_step:
            raise ValueError(
                f"batch {self.step} has {tokens} tokens, the recipe {self.recipe.tokens_per_step}."
            )
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        sums = self.backward(self.model, batch, self.device, self.recipe)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.clipped, self.recipe.clip)
        share = self.recipe.lr_share(self.step)
        for optimiser, rates in zip(self.optimisers, self.highest_lr, strict=True):
            for group, highest in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = share * highest
            optimiser.step()
        rows, length = batch.tokens_BT1.shape[0], batch.tokens_BT1.shape[1] - 1
        self.meters.pending.append((length, sums))
        if self.step_flops is not None:
            self.flops += self.step_flops(rows, length)
        self.step += 1

    def log_entry(self) -> LogEntry:
        """Append and return the entry of the step just made."""
        self.meters.drain()
        tokens, nats = self.step * self.recipe.tokens_per_step, self.meters.mean("nats")
        cpu_s, wall_s = self._elapsed_s()
        last = self.log[-1] if self.log else None
        new_tokens = tokens - (last.tokens if last else 0)
        new_cpu_s, new_wall_s = (cpu_s - last.cpu_s, wall_s - last.wall_s) if last else (cpu_s, wall_s)
        left, mfu = self.recipe.steps * self.recipe.tokens_per_step - tokens, None
        known = self.step_flops is not None and self.ceiling_flops and not math.isnan(self.flops)
        if known and new_wall_s > 0:
            mfu = self.flops / new_wall_s / self.ceiling_flops
        self.flops = 0.0
        lengths = sorted(int(name[7:]) for name in self.meters.sums if name.startswith("digits@"))
        entry = LogEntry(
            step=self.step,
            tokens=tokens,
            loss=self.meters.mean("loss"),
            bits_per_byte=None if nats is None else nats / math.log(2),
            digit_accuracy=self.meters.mean("digits"),
            digit_accuracy_by_length={length: self.meters.mean(f"digits@{length}") for length in lengths},
            dense_accuracy=self.meters.mean("dense"),
            lr_share=self.recipe.lr_share(self.step - 1),
            tokens_per_cpu_s=new_tokens / new_cpu_s if new_cpu_s > 0 else None,
            cpu_s=cpu_s,
            wall_s=wall_s,
            tokens_per_s=new_tokens / new_wall_s if new_wall_s > 0 else None,
            eta_s=left * new_wall_s / new_tokens if new_tokens else None,
            mfu=mfu,
            more={} if self.observe is None else self.observe(self.model),
        )
        self.log.append(entry)
        return entry

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; nothing without a path.

        Raises FloatingPointError, and writes nothing, if the loss or a parameter is no longer finite: a
        gradient can spoil a parameter one step before the loss shows it.
        """
        self.meters.drain()
        for name, tensor in self.trained.items():
            if not tensor.isfinite().all():
                raise FloatingPointError(
                    f"the parameter '{name}' is not finite after step {self.step}; "
                    "a lower learning rate may help."
                )
        if self.path is None:
            return
        cpu_s, wall_s = self._elapsed_s()
        state = {
            "format": CHECKPOINT_FORMAT,
            "identity": self.identity,
            "step": self.step,
            "model": self.trained,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "log": [asdict(entry) for entry in self.log],
            "sums": self.meters.sums,
            "flops": self.flops,
            "sources": self.sources,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
        }
        with whole_file(self.path) as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Continue the checkpoint, if there is one. Raises ValueError if it is not of this training."""
        if self.path is None or not self.path.exists():
            return
        advice = "delete it or give another path"
        try:
            state = torch.load(self.path, map_location=self.device, weights_only=True)
            assert state["format"] == CHECKPOINT_FORMAT
            log = [LogEntry(**entry) for entry in state["log"]]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f"{self.path} is not a readable training checkpoint: {advice}.") from error
        for name in self.identity | state["identity"]:
            there, here = state["identity"].get(name), self.identity.get(name)
            if there != here:
                raise ValueError(f"{self.path} was trained with {name}={there}, not {here}: {advice}.")
        try:
            if _shapes(state["model"]) != _shapes(self.trained):
                raise ValueError("other parameters are trained.")
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except ValueError as error:
            raise ValueError(f"{self.path} belongs to another network: {advice}.") from error
        for name, tensor in self.trained.items():
            tensor.copy_(state["model"][name])
        self.step, self.meters.sums = state["step"], state["sums"]
        self.log, self.flops = log, state.get("flops", math.nan)
        self.sources = [*state.get("sources", [UNKNOWN_SOURCE]), *self.sources]
        self.cpu_before_s, self.wall_before_s = state["cpu_s"], state["wall_s"]

    def _elapsed_s(self) -> tuple[float, float]:
        cpu_s = time.process_time() - self.cpu_start + self.cpu_before_s
        return cpu_s, time.monotonic() - self.wall_start + self.wall_before_s


def sources_of(path: Path) -> list[str]:
    """The code of every start of the training that left this checkpoint, each once."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return list(dict.fromkeys(state.get("sources", [UNKNOWN_SOURCE])))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
