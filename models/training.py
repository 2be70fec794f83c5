"""Train one network for an exact number of tokens, resumable to the step.

    prepare(model, recipe)                        initial values (initialisation.py)
    fit(model, batches, recipe, device=..., ...)  -> [LogEntry, ...]

    step        batches(step) -> forward in bf16 -> loss in fp32 -> Muon (matrices) + AdamW (the rest)
    schedule    warm-up over 60 steps, constant, linear to 2 % over the last 40 % of the tokens
    checkpoint  model, both optimisers, step, log and running means in one file that appears whole

`batches` is a function of the step, not an iterator: whoever resumes at step n asks for batch n and
gets the parameters that an uninterrupted run has. The budget counts tokens, never time, so a slow
machine trains the same network. Times in the log include drawing the batches.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialisation import induction_heads, initialise
from .muon import Muon, parameter_groups
from .training_log import LogEntry, Meters

CHECKPOINT_FORMAT = 1


class Batch(Protocol):
    """Inputs and targets of one step; all but `tokens_BT1` belong to the targets."""

    tokens_BT1: np.ndarray  # int64 (B, T+1)
    loss_weight_BT: np.ndarray  # float32; loss = sum(weight * cross entropy), 0 where unpredictable
    answer_mask_BT: np.ndarray  # bool; digits of needle answers
    dense_mask_BT: np.ndarray  # bool; answers of dense recall


#: (model, batch, device, recipe) -> sums for `Meters`; leaves the gradients in the parameters.
Backward = Callable[[nn.Module, Batch, torch.device, "Recipe"], Tensor]


@dataclass(frozen=True)
class Recipe:
    """What decides the trained parameters, besides network and batches (`log_every_s` decides nothing)."""

    total_tokens: int = 6_000_000
    tokens_per_step: int = 2048
    warmup_steps: int = 60
    decay_share: float = 0.4
    final_lr_share: float = 0.02
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    autocast_bf16: bool = True
    seed: int = 0
    induction_heads: int = 2
    log_every_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("total_tokens", "tokens_per_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"the recipe needs a positive {name}, not {getattr(self, name)}.")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"the recipe needs decay_share between 0 and 1, not {self.decay_share}.")

    @property
    def steps(self) -> int:
        """Steps of `tokens_per_step` tokens each; the last one completes the budget."""
        return math.ceil(self.total_tokens / self.tokens_per_step)

    def lr_share(self, step: int) -> float:
        """Learning rate at `step` (from 0) as a share of the highest."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = self.decay_share * self.steps
        if decay_steps == 0:
            return warm
        left = min(1.0, (self.steps - step) / decay_steps)
        return min(warm, self.final_lr_share + (1 - self.final_lr_share) * left)


def prepare(model: nn.Module, recipe: Recipe) -> None:
    """Give a fresh network the recipe's initial values: the same seed, the same network."""
    initialise(model, recipe.seed)
    induction_heads(model, recipe.induction_heads, recipe.seed)


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    on_log: Callable[[LogEntry], None] | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_every_s: float = 60.0,
    backward: Backward | None = None,
) -> list[LogEntry]:
    """Train `model` in place (frozen parameters stay) and return its log.

    With a `checkpoint_path` that exists the run goes on from there; a finished one is only loaded.
    `backward` replaces the parallel forward and backward pass of a step (LoCoCo goes block by block).
    Ctrl-C finishes the step, writes the checkpoint and raises KeyboardInterrupt; a second Ctrl-C
    does not wait. Raises ValueError for a checkpoint of another recipe or network, or a batch of
    the wrong size; FloatingPointError if the loss diverges (the last good checkpoint stays).
    """
    run = _Run(model.to(device), recipe, torch.device(device), checkpoint_path, backward or in_parallel)
    run.resume()
    saved_at = logged_at = time.monotonic()
    with _ctrl_c_deferred() as interrupted:
        while run.step < recipe.steps:
            run.advance(batches(run.step))
            now = time.monotonic()
            finished = run.step == recipe.steps
            if finished or now - logged_at >= recipe.log_every_s:
                logged_at = now
                entry = run.log_entry()
                if on_log is not None:
                    on_log(entry)
            if finished or interrupted.is_set() or now - saved_at >= checkpoint_every_s:
                saved_at = now
                run.save()
            if interrupted.is_set():
                raise KeyboardInterrupt
    return run.log


def in_parallel(model: nn.Module, batch: Batch, device: torch.device, recipe: Recipe) -> Tensor:
    """Gradient of one batch through `forward`; returns the sums that `Meters` takes."""
    tokens_BT1 = torch.as_tensor(batch.tokens_BT1).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.autocast_bf16):
        logits_BTV = model(tokens_BT1[:, :-1])
    loss, sums = weighted_loss(logits_BTV.float(), tokens_BT1[:, 1:], batch, slice(None), device)
    loss.backward()
    return sums


def weighted_loss(
    logits_BTV: Tensor, target_BT: Tensor, batch: Batch, part: slice, device: torch.device
) -> tuple[Tensor, Tensor]:
    """sum(weight * cross entropy) over the columns `part`, and the seven sums for `Meters` (no gradient)."""
    weight_BT, answer_BT, dense_BT = (
        torch.as_tensor(array[:, part]).to(device)
        for array in (batch.loss_weight_BT, batch.answer_mask_BT, batch.dense_mask_BT)
    )
    nats_BT = F.cross_entropy(logits_BTV.mT, target_BT, reduction="none")
    loss = (weight_BT * nats_BT).sum()
    with torch.no_grad():
        correct_BT = logits_BTV.argmax(-1) == target_BT
        ordinary_BT = (weight_BT > 0) & ~answer_BT & ~dense_BT
        sums = [loss, (nats_BT * ordinary_BT).sum(), ordinary_BT.sum()]
        for mask_BT in (answer_BT, dense_BT):
            sums += [(correct_BT & mask_BT).sum(), mask_BT.sum()]
        return loss, torch.stack([part.detach().float() for part in sums])


class _Run:
    """The state of one training; everything that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        device: torch.device,
        checkpoint_path: Path | None,
        backward: Backward,
    ) -> None:
        self.model, self.recipe, self.device, self.path = model, recipe, device, checkpoint_path
        self.backward = backward
        groups = parameter_groups(model)
        self.others = groups.decay + groups.no_decay
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        if groups.muon:
            self.optimisers["muon"] = Muon(groups.muon, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)
        if self.others:
            decays = ((groups.decay, recipe.weight_decay), (groups.no_decay, 0.0))
            self.optimisers["adamw"] = torch.optim.AdamW(
                [{"params": params, "weight_decay": decay} for params, decay in decays if params],
                lr=recipe.adamw_lr,
                betas=recipe.betas,
                fused=True,
            )
        if not self.optimisers:
            raise ValueError("the network has no trainable parameter.")
        self.highest_lr = {"muon": recipe.muon_lr, "adamw": recipe.adamw_lr}
        self.step = 0
        self.log: list[LogEntry] = []
        self.meters = Meters()
        self.wall_before_s = self.cpu_before_s = 0.0
        self.wall_start, self.cpu_start = time.monotonic(), time.process_time()

    def advance(self, batch: Batch) -> None:
        """One optimiser step."""
        tokens = batch.tokens_BT1[:, 1:].size
        if tokens != self.recipe.tokens_per_step:
            raise ValueError(
                f"batch {self.step} has {tokens} tokens, the recipe {self.recipe.tokens_per_step}."
            )
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        sums = self.backward(self.model, batch, self.device, self.recipe)
        # Muon's update has the same size whatever the gradient: only AdamW's group can be clipped.
        if self.others:
            nn.utils.clip_grad_norm_(self.others, self.recipe.clip)
        share = self.recipe.lr_share(self.step)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = share * self.highest_lr[name]
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
            "recipe": _identity(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "log": [asdict(entry) for entry in self.log],
            "sums": self.meters.sums,
            "cpu_s": cpu_s,
            "wall_s": wall_s,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

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
        for name, value in _identity(self.recipe).items():
            if state["recipe"].get(name) != value:
                there = state["recipe"].get(name)
                raise ValueError(f"{self.path} was trained with {name}={there}, not {value}: {advice}.")
        try:
            self.model.load_state_dict(state["model"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path} belongs to another network: {advice}.") from error
        self.step, self.meters.sums = state["step"], state["sums"]
        self.log = [LogEntry(**entry) for entry in state["log"]]
        self.cpu_before_s, self.wall_before_s = state["cpu_s"], state["wall_s"]

    def _elapsed_s(self) -> tuple[float, float]:
        cpu_s = time.process_time() - self.cpu_start + self.cpu_before_s
        return cpu_s, time.monotonic() - self.wall_start + self.wall_before_s


def _identity(recipe: Recipe) -> dict[str, Any]:
    """The fields that a checkpoint must agree with."""
    return {name: value for name, value in asdict(recipe).items() if name != "log_every_s"}


@contextmanager
def _ctrl_c_deferred() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event: an optimiser stopped half-way would leave a state of no step."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(signum: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
