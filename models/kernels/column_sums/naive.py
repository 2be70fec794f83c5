"""Attention that every key received, summed over queries (scores of H2O and LoCoCo), the definition.

    sum_j = mean over a KV head's queries of  sum_t exp(scale * q_t k_j - lse_t)

over the newest T of S tokens, causal as in `window_attention`, whose log-sum-exps these are: a second pass
over q and k, and probabilities are never kept.

Shapes: q (B,T,H,D); k (B,G,S,D); lse (B,H,T); counts (B,T), False: this query's attention is not counted;
sums (B,G,S).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..window_attention.naive import visible


def column_sums(
    q_BTHD: Tensor,
    k_BGSD: Tensor,
    lse_BHT: Tensor,
    scale: float,
    window: int | None = None,
    counts_BT: Tensor | None = None,
) -> Tensor:
    """Sums (B,G,S) in at least fp32. All T x S probabilities are made."""
    B, T, H, D = q_BTHD.shape
    G, S = k_BGSD.shape[1:3]
    wide = torch.promote_types(q_BTHD.dtype, torch.float32)
    q = q_BTHD.to(wide).transpose(1, 2).reshape(B, G, H // G, T, D)
    logits = q @ k_BGSD.to(wide)[:, :, None].mT * scale
    probs = (logits - lse_BHT.to(wide).view(B, G, H // G, T, 1)).exp()
    probs = probs.masked_fill(~visible(T, S, window, q.device), 0.0)
    if counts_BT is not None:
        probs = probs * counts_BT[:, None, None, :, None]
    return probs.sum(3).mean(2)
