"""LoCoCo's compressor: heavy hitters verbatim, learned mixtures of the rest (arXiv 2406.05317, section 3).

    heavy    M - Mc slots: the `local` newest, and those with the highest scores; kept as they are
    rest     the others, in order:  Z = ReLU(conv([K;V])), `depth` times;  W = softmax over tokens(Z)
             W <- (1 - alpha) * one-hot(top Mc of rest) + alpha * W           Mc rows, each sums to 1
    memory   [heavy ; W rest]: the same W for keys, values and accumulated scores

The output channel of the last convolution is the memory slot. Hidden layers of a deeper stack have Mc
channels, too (the official code's default). alpha is one unconstrained number per layer; the one-hot
part carries half of the weight at first. Everything a compressor reads is detached.

Deviations, our own, none of them in the defaults:

    alpha=bounded  alpha = sigmoid(a), 0.95 at first. Above 1, where training takes free ones, one-hot parts
                   have negative weight: memory leaves the hull of what it was made from, more so at every
                   fold. Bounded, a slot is an average however often it is folded
    sinks          the first slots are heavy hitters whatever their score, as the `local` newest ones are
    local          does not count mixtures, which lie behind the heavy slots in memory, unless one was heavy
                   itself (official: the last slots of that order; the same up to local = block)

The convolutions start at N(0, 1/fan_in). The official N(0, 1) makes every row of W one-hot at once,
which suits its learning rate of 5e-2; `initialise("official")` gives it.

Letters: n filled slots, r = n - (M - Mc) of them are the rest; Mc is `folded` in code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .kernels import fused

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

    `options` has `budget` (M), `folded` (Mc), `kernel`, `depth`, `local`, `sinks` and `alpha`.
    """

    def __init__(self, head_dim: int, options) -> None:
        super().__init__()
        self.budget, self.folded = options.budget, options.folded
        self.local, self.sinks, self.bounded = options.local, options.sinks, options.alpha == "bounded"
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

    @property
    def share(self) -> Tensor:
        """alpha, the learned mixture's share of a mixed slot."""
        return self.alpha.sigmoid() if self.bounded else self.alpha

    def initialise(self, init: Init = "scaled") -> None:
        """Convolutions of N(0, 1/fan_in) or, "official", N(0, 1); biases have Conv1d's default; a free alpha
        is 1/2, a bounded one sigmoid(3)."""
        for conv in self.stack:
            conv.reset_parameters()
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=1.0 if init == "official" else fan_in**-0.5)
        nn.init.constant_(self.alpha, 3.0 if self.bounded else 0.5)

    def forward(self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor, again: bool = False) -> Fold:
        """The fold of n >= M filled slots; `again`: the first M of them are memory."""
        k, v, score = k_BGnD.detach(), v_BGnD.detach(), score_BGn.detach()
        heavy, rest = self.split(score, again)
        weights = self.weights(_pick(k, rest), _pick(v, rest), score.gather(-1, rest))
        return Fold(heavy, rest, weights)

    def memory(
        self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor, again: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the slots become: keys and values (B,G,M,D), and scores (B,G,M)."""
        fold = self(k_BGnD, v_BGnD, score_BGn, again)
        return fold.apply(k_BGnD), fold.apply(v_BGnD), fold.apply(score_BGn[..., None])[..., 0]

    def fused(
        self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor, again: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`memory` by the kernel `lococo_mix`: no weights (B,G,Mc,r). One convolution, no gradients."""
        heavy, rest = self.split(score_BGn, again)
        k, v, score = _pick(k_BGnD, rest), _pick(v_BGnD, rest), score_BGn.gather(-1, rest)
        chosen, _ = split_top(score, self.folded)
        mix = fused("lococo_mix").mix
        mixed = mix(k, v, self.conv.weight, self.conv.bias, self.share, chosen, score)
        return (
            torch.cat([_pick(k_BGnD, heavy), mixed[0]], 2),
            torch.cat([_pick(v_BGnD, heavy), mixed[1]], 2),
            torch.cat([score_BGn.gather(-1, heavy), mixed[2]], -1),
        )

    def split(self, score_BGn: Tensor, again: bool = False) -> tuple[Tensor, Tensor]:
        """Indices of the slots that stay as they are, and of the rest."""
        slots = torch.arange(score_BGn.shape[-1], device=score_BGn.device)
        if again:  # mixtures are not new
            slots = torch.cat([slots[: self.budget - self.folded], slots[self.budget :]])
        forced = torch.cat([slots[: self.sinks], slots[len(slots) - self.local :]])
        return split_top(score_BGn.index_fill(-1, forced, float("inf")), self.budget - self.folded)

    def weights(self, k_BGrD: Tensor, v_BGrD: Tensor, score_BGr: Tensor) -> Tensor:
        """Mixing weights (B,G,Mc,r) over the rest; every row sums to 1 for any alpha."""
        mixed = self.mixtures(k_BGrD, v_BGrD)
        chosen, _ = split_top(score_BGr, self.folded)
        one_hot = torch.zeros_like(mixed).scatter_(-1, chosen[..., None], 1.0)
        alpha = self.share.to(mixed.dtype)
        return (1 - alpha) * one_hot + alpha * mixed

    def mixtures(self, k_BGrD: Tensor, v_BGrD: Tensor) -> Tensor:
        """The learned part: a softmax over tokens for each mixed slot, (B,G,Mc,r)."""
        z = torch.cat([k_BGrD, v_BGrD], -1).flatten(0, 1).transpose(1, 2).to(self.conv.weight.dtype)
        for conv in self.stack:
            z = conv(z).relu()
        wide = torch.promote_types(z.dtype, torch.float32)
        return z.to(wide).softmax(-1).unflatten(0, k_BGrD.shape[:2])

    def entropy(self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor) -> tuple[Tensor, int]:
        """Mean entropy in nats of the learned mixtures per batch row (B,), were these n >= M slots, of which
        the first M are memory, folded now; and r, the slots that they mix: log r would be the plain mean of
        all, 0 one slot each."""
        _, rest = self.split(score_BGn, again=True)
        p_BGMr = self.mixtures(_pick(k_BGnD, rest), _pick(v_BGnD, rest))
        return torch.special.entr(p_BGMr.detach()).sum(-1).mean((1, 2)), rest.shape[-1]

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
