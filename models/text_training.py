"""LoCoCo's official training on plain text, in any checkpoint's tokens (arXiv 2406.05317; official code).

    compressors 5e-2     everything with "embed" or "norm" in its name 2.5e-4     LoRA 5e-5
    AdamW without decay, linear to 0, no warm-up, no clipping; convolutions start at N(0, 1)
    a block's first token is no target: T - 1 targets per block of T (`carry=False`)

Which of the groups are trained is the architecture's option `trainable`. Deviations, stated: a step is a
number of sequences, not of blocks, and its gradient a mean over all its targets.

The log has both losses: `loss` is what is trained, `bits_per_byte` counts every token, a block's first one
predicted by the last logits of the block before, and is the one comparable with an evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import Architecture
from .compressor import Init
from .compressor_training import blocks_of, group_of
from .training import Recipe, _ctrl_c_deferred, _Run
from .training_log import LogEntry

#: Tokens that pass forward and backward together; a longer block goes alone (official: one per device).
TOKENS_AT_ONCE = 512


class TextBatch(Protocol):
    """Plain text: every token but the first of a row is a target."""

    tokens_BT1: np.ndarray  # int64 (B, T+1)
    bytes_per_token: float


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """What decides the result of `fit_text`; the defaults are the official ones.

    `adamw_lr` is that of the compressors, `clip=0` leaves gradients alone, `init` is how convolutions
    start, and with `carry` a block's last logits also train, on the next block's first token.
    """

    sequence_tokens: int = 4096
    warmup_steps: int = 0
    decay_share: float = 1.0
    final_lr_share: float = 0.0
    adamw_lr: float = 5e-2
    embed_norm_lr: float = 2.5e-4
    lora_lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 0.0
    autocast_bf16: bool = False
    induction_heads: int = 0
    init: Init = "official"
    carry: bool = False


class Trained(nn.Module):
    """The trained parameters of a network as a module: no training checkpoint need hold the frozen ones."""

    def __init__(self, network: Architecture) -> None:
        super().__init__()
        self.chosen = nn.ParameterList(p for p in network.parameters() if p.requires_grad)
        self._network = (network,)  # in a tuple, so that it is no submodule

    @property
    def network(self) -> Architecture:
        return self._network[0]

    def muon_splits(self) -> dict[str, tuple[int, ...]]:
        return {}


def by_text_blocks(trained: Trained, batch: TextBatch, device: torch.device, recipe: TextRecipe) -> Tensor:
    """Accumulate the gradient of one batch, block by block and a few rows at a time."""
    model = trained.network
    tokens_BT1 = torch.as_tensor(batch.tokens_BT1).to(device)
    B, T = tokens_BT1.shape[0], tokens_BT1.shape[1] - 1
    block = model.options.block_tokens
    targets = B * (T if recipe.carry else T - -(-T // block))
    total = torch.zeros(7, device=device)
    for rows_BT1 in tokens_BT1.split(max(1, TOKENS_AT_ONCE // block)):
        for part, logits_BTV in blocks_of(model, rows_BT1[:, :-1]):
            nats_BT = F.cross_entropy(logits_BTV.mT, rows_BT1[:, 1:][:, part], reduction="none")
            loss = (nats_BT if recipe.carry else nats_BT[:, :-1]).sum() / targets
            if loss.requires_grad:
                loss.backward()
            total[0] += loss.detach()
            total[1] += nats_BT.detach().sum()
    total[2] = B * T * batch.bytes_per_token
    return total


class _TextRun(_Run):
    """A training with one AdamW per learning-rate group."""

    def __init__(self, trained: Trained, recipe: TextRecipe, device: torch.device, path: Path | None) -> None:
        super().__init__(trained, recipe, device, path, by_text_blocks)
        rates = {"compressor": recipe.adamw_lr, "embed_norm": recipe.embed_norm_lr, "lora": recipe.lora_lr}
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in trained.network.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(group_of(name), []).append(parameter)
        self.highest_lr = rates
        self.optimisers = {
            name: torch.optim.AdamW(
                group, lr=rates[name], betas=recipe.betas, weight_decay=recipe.weight_decay
            )
            for name, group in groups.items()
        }
        if not recipe.clip:
            self.others = []


def fit_text(
    model: Architecture,
    batches: Callable[[int], TextBatch],
    recipe: TextRecipe,
    *,
    device: torch.device | str = "cpu",
    on_log: Callable[[LogEntry], None] | None = None,
    checkpoint_path: Path | None = None,
    checkpoint_every_s: float = 60.0,
) -> list[LogEntry]:
    """As `training.fit`, for text and with the official learning-rate groups; `freeze` comes first."""
    run = _TextRun(Trained(model.to(device)), recipe, torch.device(device), checkpoint_path)
    run.resume()
    saved_at = logged_at = time.monotonic()
    with _ctrl_c_deferred() as interrupted:
        while run.step < recipe.steps:
            run.advance(batches(run.step))
            now, finished = time.monotonic(), run.step == recipe.steps
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
