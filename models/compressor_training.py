"""How LoCoCo's compressors are trained, block by block (arXiv 2406.05317; official algorithm).

    for block in sequence:          through the same cache that is measured
        logits = extend(block)      the block attends to [memory, block]
        loss(block).backward()      cross-entropy only; there is no reconstruction loss
        cache.detach_()             the cache carries no gradient on: one-step truncated BPTT

The gradient of a block reaches the compressors only through the memory that the block reads.

Two recipes share this: the family's, whose step is `by_blocks` (the shipped compressors), and the official
one on plain text (`text_training.py`). What is trained is the architecture's option `trainable`, by the
official rule: compressors; whatever has "embed" or "norm" in its name; LoRA. The output matrix and all
else stay frozen (one that is tied to the embedding moves with it).

Deviation, stated: keys and values of a sequence's first block pass gradients on (the official code cuts
them there, so that LoRA on k and v learns nothing from it).
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

import torch
from torch import Tensor

from .architecture import Architecture
from .compressor import Compressor, Init
from .lora import LowRank
from .recipe import Recipe
from .training import Batch, weighted_loss


def group_of(name: str) -> str | None:
    """The learning-rate group of a parameter by the official rule; None: always frozen."""
    if name.startswith("compressors."):
        return "compressor"
    if "embed" in name or "norm" in name:
        return "embed_norm"
    return "lora" if "lora" in name else None


def freeze(model: Architecture) -> None:
    """Leave trainable what `trainable` of the architecture's options names, and nothing else."""
    everything = model.options.trainable == "official"
    for name, parameter in model.named_parameters():
        group = group_of(name)
        parameter.requires_grad_(group == "compressor" or (everything and group is not None))


def fresh_state(model: Architecture, init: Init = "scaled") -> dict[str, Tensor]:
    """Initial values of what the base weights lack: compressors, and LoRA where there is any.

    Works for a model on the meta device; those parts of it lie on the CPU afterwards.
    """
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, Compressor | LowRank):
            module.to_empty(device="cpu")
            if isinstance(module, Compressor):
                module.initialise(init)
            else:
                module.initialise()
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    return state


def by_blocks(model: Architecture, batch: Batch, device: torch.device, recipe: Recipe) -> Tensor:
    """Accumulate the gradient of one batch, block by block; the `backward` of `training.fit`.

    Deviations from the official step: every block's last logits also predict the next block's first
    token; the learning rate is ours, since the convolution does not start at N(0, 1); sequences are
    those of the family's training mix, needles included.
    """
    tokens_BT1 = torch.as_tensor(batch.tokens_BT1).to(device)
    total = torch.zeros(7, device=device)
    for part, logits_BTV in blocks_of(model, tokens_BT1[:, :-1]):
        loss, sums = weighted_loss(logits_BTV, tokens_BT1[:, 1:][:, part], batch, part, device)
        if loss.requires_grad:  # not before the first fold: no compressor has spoken yet
            loss.backward()
        total += sums
    return total


@torch.no_grad()
def what_is_mixed(model: Architecture, tokens_BT: Tensor) -> dict[str, float]:
    """Columns for a training log, per layer n, after these tokens: `alpha_n`; `entropy_n`, mean entropy of
    the learned mixtures in nats; `entropy_share_n`, the same over its maximum, log(slots mixed)."""
    cache = model.new_cache(*tokens_BT.shape)
    model.extend(tokens_BT, None, cache)
    columns: dict[str, float] = {}
    for layer, compressor in enumerate(model.compressors):
        found = cache.states[f"{layer}.attention"].entropy()
        columns[f"alpha_{layer}"] = float(compressor.share)
        columns[f"entropy_{layer}"] = mean(nats for nats, _ in found)
        columns[f"entropy_share_{layer}"] = mean(nats / most for nats, most in found)
    return columns


def blocks_of(model: Architecture, tokens_BT: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns and logits of every block, through one cache that is cut off behind each."""
    B, T = tokens_BT.shape
    cache = model.new_cache(B, T)
    for start in range(0, T, model.options.block_tokens):
        part = slice(start, min(start + model.options.block_tokens, T))
        yield part, model.extend(tokens_BT[:, part], None, cache, logits="all").float()
        cache.detach_()
