"""How a step of LoCoCo's compressor training goes (arXiv 2406.05317; official algorithm).

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

import torch
from torch import Tensor

from .architecture import Architecture
from .training import Batch, Recipe, weighted_loss


def freeze_all_but_compressors(model: Architecture) -> None:
    """trainable=compressor: the Transformer stays as it is."""
    model.requires_grad_(False)
    model.compressors.requires_grad_(True)


def by_blocks(model: Architecture, batch: Batch, device: torch.device, recipe: Recipe) -> Tensor:
    """Accumulate the gradient of one batch, block by block; the `backward` of `training.fit`."""
    tokens_BT1 = torch.as_tensor(batch.tokens_BT1).to(device)
    B, T = tokens_BT1.shape[0], tokens_BT1.shape[1] - 1
    block = model.options.block or model.options.budget
    cache = model.new_cache(B, T)
    total = torch.zeros(7, device=device)
    for start in range(0, T, block):
        part = slice(start, min(start + block, T))
        logits_BTV = model.extend(tokens_BT1[:, :-1][:, part], None, cache, logits="all").float()
        loss, sums = weighted_loss(logits_BTV, tokens_BT1[:, 1:][:, part], batch, part, device)
        if loss.requires_grad:  # the first two blocks are exact: no compressor has spoken yet
            loss.backward()
        cache.detach_()
        total += sums
    return total
