"""Train LoCoCo's compressors on a frozen Transformer (arXiv 2406.05317; official algorithm).

    for block in sequence:          through the same cache that is measured
        logits = extend(block)      the block attends to [memory, block]
        loss(block).backward()      cross-entropy only; there is no reconstruction loss
        cache.detach_()             the cache carries no gradient on: one-step truncated BPTT

The gradient of a block reaches the compressors only through the memory that the block reads.

Deviations, stated: every block's last logits also predict the next block's first token (the official
loss drops it); the learning rate is ours, since the convolution does not start at N(0, 1); the
sequences are those of the family's training mix, needles included.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .architecture import Architecture
from .training import Batch, Recipe
from .training_log import LogEntry, Meters


def fit_compressors(
    model: Architecture,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    on_log: Callable[[LogEntry], None] | None = None,
) -> list[LogEntry]:
    """Train `model.compressors` in place for the recipe's tokens; everything else stays frozen.

    Raises FloatingPointError if the loss diverges.
    """

    model.to(device).requires_grad_(False)
    parameters = list(model.compressors.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.adamw_lr, betas=recipe.betas, weight_decay=0.0)
    meters, log = Meters(), []
    wall_start, cpu_start = time.monotonic(), time.process_time()
    logged_at, last_tokens, last_cpu_s = wall_start, 0, 0.0
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.lr_share(step) * recipe.adamw_lr
        optimiser.zero_grad(set_to_none=True)
        meters.pending.append(_backward_by_blocks(model, batches(step), device))
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        now = time.monotonic()
        if step + 1 == recipe.steps or now - logged_at >= recipe.log_every_s:
            logged_at = now
            meters.drain()
            tokens, cpu_s = (step + 1) * recipe.tokens_per_step, time.process_time() - cpu_start
            nats = meters.mean("nats")
            entry = LogEntry(
                step=step + 1,
                tokens=tokens,
                loss=meters.mean("loss"),
                bits_per_byte=None if nats is None else nats / math.log(2),
                digit_accuracy=meters.mean("digits"),
                digit_accuracy_by_length={},
                dense_accuracy=meters.mean("dense"),
                lr_share=recipe.lr_share(step),
                tokens_per_cpu_s=(tokens - last_tokens) / max(cpu_s - last_cpu_s, 1e-9),
                cpu_s=cpu_s,
                wall_s=now - wall_start,
            )
            last_tokens, last_cpu_s = tokens, cpu_s
            log.append(entry)
            if on_log is not None:
                on_log(entry)
    return log


def _backward_by_blocks(
    model: Architecture, batch: Batch, device: torch.device | str
) -> tuple[int, torch.Tensor]:
    """Accumulate the gradient of one batch; returns its length and the sums that `Meters` takes."""
    tokens_BT1 = torch.as_tensor(batch.tokens_BT1).to(device)
    weight_BT = torch.as_tensor(batch.loss_weight_BT).to(device)
    answer_BT = torch.as_tensor(batch.answer_mask_BT).to(device)
    dense_BT = torch.as_tensor(batch.dense_mask_BT).to(device)
    B, T = weight_BT.shape
    block = model.options.block or model.options.budget
    cache = model.new_cache(B, T)
    sums = torch.zeros(7)
    for start in range(0, T, block):
        part = slice(start, min(start + block, T))
        logits_BTV = model.extend(tokens_BT1[:, part], None, cache, logits="all").float()
        target = tokens_BT1[:, 1:][:, part]
        nats = F.cross_entropy(logits_BTV.mT, target, reduction="none")
        loss = (weight_BT[:, part] * nats).sum()
        if loss.requires_grad:  # the first two blocks are exact: no compressor has spoken yet
            loss.backward()
        cache.detach_()
        nats, right = nats.detach(), logits_BTV.argmax(-1) == target
        ordinary = (weight_BT[:, part] > 0) & ~answer_BT[:, part] & ~dense_BT[:, part]
        row = [loss.detach(), (nats * ordinary).sum(), ordinary.sum()]
        for mask in (answer_BT[:, part], dense_BT[:, part]):
            row += [(right & mask).sum(), mask.sum()]
        sums += torch.stack([value.float() for value in row]).cpu()
    return T, sums
