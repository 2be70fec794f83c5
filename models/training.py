"""Train one network for an exact number of tokens, resumable to the step.

    prepare(model, recipe)                        initial values (initialisation.py)
    fit(model, batches, recipe, device=..., ...)  -> [LogEntry, ...]

    step     batches(step) -> forward in bf16 -> loss in fp32 -> Muon (matrices) + AdamW (the rest)

That step is the family's; LoCoCo's compressors bring their own (`backward`, `optimisers`) to the same loop.
`batches` is a function of the step, not an iterator: whoever resumes at step n asks for batch n and
gets the parameters that an uninterrupted run has. Times in the log include drawing the batches.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialisation import induction_heads, initialise
from .muon import Muon, parameter_groups
from .recipe import Recipe
from .training_log import LogEntry
from .training_run import UNKNOWN_SOURCE, Backward, Run


class Batch(Protocol):
    """Inputs and targets of one step; all but `tokens_BT1` belong to the targets."""

    tokens_BT1: np.ndarray  # int64 (B, T+1)
    loss_weight_BT: np.ndarray  # float32; loss = sum(weight * cross entropy), 0 where unpredictable
    answer_mask_BT: np.ndarray  # bool; digits of needle answers
    dense_mask_BT: np.ndarray  # bool; answers of dense recall


def prepare(model: nn.Module, recipe: Recipe) -> None:
    """Give a fresh network the recipe's initial values: the same seed, the same network."""
    initialise(model, recipe.seed)
    induction_heads(model, recipe.induction_heads, recipe.seed)


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


def muon_and_adamw(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The family's optimisers: Muon for matrices, AdamW for all else; only embedding and head decay there."""
    groups, optimisers = parameter_groups(model), []
    if groups.muon:
        optimisers.append(Muon(groups.muon, lr=recipe.muon_lr, weight_decay=recipe.weight_decay))
    decays = ((groups.decay, recipe.weight_decay), (groups.no_decay, 0.0))
    adamw = [{"params": params, "weight_decay": decay} for params, decay in decays if params]
    if adamw:
        optimisers.append(torch.optim.AdamW(adamw, lr=recipe.adamw_lr, betas=recipe.betas, fused=True))
    return optimisers


def fit(
    model: nn.Module,
    batches: Callable[[int], Any],
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    on_log: Callable[[LogEntry], None] | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_every_s: float = 60.0,
    backward: Backward = in_parallel,
    optimisers: Callable[[nn.Module, Recipe], Sequence[torch.optim.Optimizer]] = muon_and_adamw,
    origin: Mapping[str, str] | None = None,
    on_save: Callable[[list[LogEntry]], None] | None = None,
    step_flops: Callable[[int, int], float] | None = None,
    ceiling_flops: float | None = None,
    observe: Callable[[nn.Module], dict[str, float]] | None = None,
    source: str = UNKNOWN_SOURCE,
) -> list[LogEntry]:
    """Train `model` in place (frozen parameters stay) and return its log.

    `batches(step)` gives what `backward` takes: for `in_parallel` a `Batch`, always with `tokens_BT1`.
    With a `checkpoint_path` that exists the run goes on from there; a finished one is only loaded.
    `origin` says what decides the result besides the recipe, such as the hash of the data.
    `on_save` hears the log after every checkpoint, `step_flops(rows, length)` and `ceiling_flops` give it
    an MFU, `observe(model)` further numbers, `source` names the code (`sources_of` a checkpoint); none of
    them decides anything.
    Ctrl-C finishes the step, writes the checkpoint and raises KeyboardInterrupt; a second Ctrl-C
    does not wait. Raises ValueError for a checkpoint of another recipe, origin or network, or a batch
    of the wrong size; FloatingPointError if the loss diverges (the last good checkpoint stays).
    """
    model.to(device)
    made = optimisers(model, recipe)
    run = Run(
        model, recipe, made, backward, torch.device(device), checkpoint_path, origin or {},
        step_flops, ceiling_flops, observe, source,
    )  # fmt: skip
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
                if on_save is not None:
                    on_save(run.log)
            if interrupted.is_set():
                raise KeyboardInterrupt
    return run.log


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
