"""LoCoCo's compressor: heavy hitters verbatim, learned mixtures of the rest (arXiv 2406.05317, section 3).

    heavy    M - Mc slots: the `local` newest, and those with the highest scores; kept as they are
    rest     the others, in order:  Z = ReLU(conv([K;V])), `depth` times;  W = softmax over tokens(Z)
             W <- (1 - alpha) * one-hot(top Mc of rest) + alpha * W           Mc rows, each sums to 1
    memory   [heavy ; W rest]: the same W for keys, values and accumulated scores

The output channel of the last convolution is the memory slot. Hidden layers of a deeper stack have Mc
channels, too (the official code's default). alpha is one unconstrained number per layer; the one-hot
part carries half of the weight at first. Everything a compressor reads is detached.

The convolutions start at N(0, 1/fan_in). The official N(0, 1) makes every row of W one-hot at once,
which suits its learning rate of 5e-2; `initialise("official")` gives it.

Letters: n filled slots, r = n - (M - Mc) of them are the rest; Mc is `folded` in code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Init = Literal["scaled", "official"]


class Fold(NamedTuple):
    """How n slots become M: `heavy` and `rest` are indices, `weights` mix the rest."""

    heavy_BGm: Tensor
    rest_BGr: Tensor
    weights_BGMr: Tensor

    def apply(self, x_BGnD: Tensor) -> Tensor:
        """Memory (B,G,M,D) of anything that slots hold; gradients flow into the weights only."""
        x = x_BGnD.detach()
        mixed = self.weights_BGMr.to(x.dtype) @ _pick(x, self.rest_BGr)
        return torch.cat([_pick(x, self.heavy_BGm), mixed], 2)


class Compressor(nn.Module):
    """One per layer, shared by its heads.

    `options` has `budget` (M), `folded` (Mc), `kernel`, `depth` and `local`.
    """

    def __init__(self, head_dim: int, options) -> None:
        super().__init__()
        self.budget, self.folded, self.local = options.budget, options.folded, options.local
        padding = options.kernel // 2
        self.conv = nn.Conv1d(2 * head_dim, self.folded, options.kernel, padding=padding)
        # Named by place, so that a single convolution is "conv", as in the weights that we ship.
        self.convs = nn.ModuleDict(
            {
                str(n): nn.Conv1d(self.folded, self.folded, options.kernel, padding=padding)
                for n in range(1, options.depth)
            }
        )
        self.alpha = nn.Parameter(torch.empty(()))
        self.initialise()

    @property
    def stack(self) -> list[nn.Conv1d]:
        """The convolutions, first to last."""
        return [self.conv, *self.convs.values()]

    def initialise(self, init: Init = "scaled") -> None:
        """Convolutions of N(0, 1/fan_in) or, "official", N(0, 1); biases have Conv1d's default; alpha 1/2."""
        for conv in self.stack:
            conv.reset_parameters()
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=1.0 if init == "official" else fan_in**-0.5)
        nn.init.constant_(self.alpha, 0.5)

    def forward(self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor) -> Fold:
        """The fold of n >= M filled slots."""
        k, v, score = k_BGnD.detach(), v_BGnD.detach(), score_BGn.detach()
        forced = score
        if self.local:
            forced = score.clone()
            forced[..., -self.local :] = float("inf")
        heavy, rest = split_top(forced, self.budget - self.folded)
        weights = self.weights(_pick(k, rest), _pick(v, rest), score.gather(-1, rest))
        return Fold(heavy, rest, weights)

    def weights(self, k_BGrD: Tensor, v_BGrD: Tensor, score_BGr: Tensor) -> Tensor:
        """Mixing weights (B,G,Mc,r) over the rest; every row sums to 1 for any alpha."""
        z = torch.cat([k_BGrD, v_BGrD], -1).flatten(0, 1).transpose(1, 2).to(self.conv.weight.dtype)
        for conv in self.stack:
            z = conv(z).relu()
        wide = torch.promote_types(z.dtype, torch.float32)
        mixed = z.to(wide).softmax(-1).unflatten(0, k_BGrD.shape[:2])
        chosen, _ = split_top(score_BGr, self.folded)
        one_hot = torch.zeros_like(mixed).scatter_(-1, chosen[..., None], 1.0)
        alpha = self.alpha.to(wide)
        return (1 - alpha) * one_hot + alpha * mixed

    def flops(self, filled: int) -> int:
        """Of one fold of `filled` slots for one KV head: convolutions, and the mixtures of K and V."""
        rest = filled - (self.budget - self.folded)
        convolutions = sum(2 * conv.weight.numel() * rest for conv in self.stack)
        return convolutions + 2 * self.folded * rest * self.conv.in_channels


def split_top(score: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Indices of the `top` largest scores and of the others, both in order; of equals the oldest goes."""
    n = score.shape[-1]
    # Newest first, then a stable sort: among equal scores the newest is preferred.
    order = n - 1 - score.flip(-1).argsort(stable=True, dim=-1, descending=True)
    return order[..., :top].sort(-1).values, order[..., top:].sort(-1).values


def _pick(x_BGnD: Tensor, index_BGm: Tensor) -> Tensor:
    """Rows of x along n, per batch row and head."""
    return x_BGnD.gather(2, index_BGm[..., None].expand(*index_BGm.shape, x_BGnD.shape[-1]))
