"""LoCoCo's mixtures of the slots that do not stay verbatim, the definition (arXiv 2406.05317, section 3).

    Z = ReLU(conv([K;V]));  p = softmax over the r slots of Z;  W = (1 - alpha) one-hot(chosen) + alpha p
    mixed K, V, score = W K, W V, W score

The output channel of the convolution is the memory slot, so Z has M columns of r logits; the definition makes
all of them. One convolution: stacks of several are the compressor's own.

Shapes: k, v (B,G,r,D); weight (M,2D,taps), taps odd, zeros beyond the ends; bias (M,); chosen (B,G,M) indices
of slots; score (B,G,r) or None; alpha a number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mix(
    k_BGrD: Tensor,
    v_BGrD: Tensor,
    weight_MCt: Tensor,
    bias_M: Tensor,
    alpha: float | Tensor,
    chosen_BGM: Tensor,
    score_BGr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mixed keys and values (B,G,M,D) in their dtypes, and scores (B,G,M) in theirs."""
    x = torch.cat([k_BGrD, v_BGrD], -1).flatten(0, 1).mT.to(weight_MCt.dtype)
    z = F.conv1d(x, weight_MCt, bias_M, padding=weight_MCt.shape[-1] // 2).relu()
    wide = torch.promote_types(z.dtype, torch.float32)
    learned = z.to(wide).softmax(-1).unflatten(0, k_BGrD.shape[:2])
    one_hot = torch.zeros_like(learned).scatter_(-1, chosen_BGM[..., None], 1.0)
    weights = (1 - alpha) * one_hot + alpha * learned
    score = None if score_BGr is None else (weights.to(score_BGr.dtype) @ score_BGr[..., None])[..., 0]
    return weights.to(k_BGrD.dtype) @ k_BGrD, weights.to(v_BGrD.dtype) @ v_BGrD, score
