"""The state of one training: what a step changes, what the log says, what a checkpoint holds.

    checkpoint  trained parameters, optimisers, step, log and running means in one file that appears whole

Frozen parameters are not in it: they are those of the base, which a checkpoint names along with everything
else that decides the result (`identity`). One that differs in any of it is refused.
"""

from __future__ import annotations

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

#: (model, batch, device, recipe) -> sums for `Meters`; leaves the gradients in the parameters.
Backward = Callable[[nn.Module, Any, torch.device, Recipe], Tensor]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a training changes, by name; they share the parameters' memory."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


class Run:
    """One training of `model`; learning rates fall from those that the optimisers come with.

    `origin` is what decides the result besides the recipe. Raises ValueError if nothing is trained.
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
    ) -> None:
        self.model, self.recipe, self.optimisers, self.backward = model, recipe, optimisers, backward
        self.device, self.path = device, path
        self.trained = trained_state(model)
        if not self.trained:
            raise ValueError("the network has no trainable parameter.")
        decides = {name: value for name, value in asdict(recipe).items() if name != "log_every_s"}
        self.identity = decides | dict(origin)
        self.highest_lr = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
        # Muon's update has the same size whatever the gradient: only the others' can be clipped.
        others = [group for o in optimisers if not isinstance(o, Muon) for group in o.param_groups]
        self.clipped = [parameter for group in others for parameter in group["params"]]
        self.step = 0
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
        self.meters.pending.append((batch.tokens_BT1.shape[1] - 1, sums))
        self.step += 1

    def log_entry(self) -> LogEntry:
        """Append and return the entry of the step just made."""
        self.meters.drain()
        tokens, nats = self.step * self.recipe.tokens_per_step, self.meters.mean("nats")
        cpu_s, wall_s = self._elapsed_s()
        last_tokens, last_cpu_s = (self.log[-1].tokens, self.log[-1].cpu_s) if self.log else (0, 0.0)
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
            tokens_per_cpu_s=(tokens - last_tokens) / (cpu_s - last_cpu_s) if cpu_s > last_cpu_s else None,
            cpu_s=cpu_s,
            wall_s=wall_s,
        )
        self.log.append(entry)
        return entry

    def save(self) -> None:
        """Write the checkpoint, whole or not at all; nothing without a path."""
        self.meters.drain()
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
        self.log = [LogEntry(**entry) for entry in state["log"]]
        self.cpu_before_s, self.wall_before_s = state["cpu_s"], state["wall_s"]

    def _elapsed_s(self) -> tuple[float, float]:
        cpu_s = time.process_time() - self.cpu_start + self.cpu_before_s
        return cpu_s, time.monotonic() - self.wall_start + self.wall_before_s


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
