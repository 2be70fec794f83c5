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

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import Architecture
from .compressor import Init
from .compressor_training import blocks_of, group_of
from .recipe import Recipe
from .training import fit

#: Tokens that pass forward and backward together; a longer block goes alone (official: one per device).
TOKENS_AT_ONCE = 512


class TextBatch(Protocol):
    """Plain text: every token but the first of a row is a target."""

    tokens_BT1: np.ndarray  # int64 (B, T+1)
    bytes_per_token: float


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """What decides the result of `fit_text`; the defaults are the official ones.

    `adamw_lr` is that of the compressors, `init` is how convolutions start, and with `carry` a block's
    last logits also train, on the next block's first token.
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


def by_text_blocks(model: Architecture, batch: TextBatch, device: torch.device, recipe: TextRecipe) -> Tensor:
    """Accumulate the gradient of one batch, block by block and a few rows at a time."""
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


def adamw_by_group(model: Architecture, recipe: TextRecipe) -> list[torch.optim.Optimizer]:
    """AdamW over what `freeze` left trainable, each group at its own rate."""
    rates = {"compressor": recipe.adamw_lr, "embed_norm": recipe.embed_norm_lr, "lora": recipe.lora_lr}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(group_of(name), []).append(parameter)
    adamw = [{"params": params, "lr": rates[name]} for name, params in groups.items()]
    return [torch.optim.AdamW(adamw, betas=recipe.betas, weight_decay=recipe.weight_decay)]


#: `training.fit` for text and with the official learning-rate groups; `freeze` comes first.
fit_text = functools.partial(fit, backward=by_text_blocks, optimisers=adamw_by_group)
