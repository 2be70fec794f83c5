"""Attention of one query per row over cached keys, the definition.

    p = softmax(scale * q k^T) over the visible keys;  out = p v;  score = mean of p over a choice's heads

Keys s >= length_b are not there yet; `mask` hides further ones. What a row without any visible key gives is
undefined, but finite. Products and softmax in at least fp32.

Shapes: q (B,H,D); k, v (B,G,S,D); length (B,) or None: S; mask (B,P,S), True is visible; scores (B,P,S),
where P is the number of choices per row: 1 (all heads agree on what to keep) or G (every KV head for itself).
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend(
    q_BHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    length_B: Tensor | None = None,
    mask_BPS: Tensor | None = None,
    choices: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The output (B,H,D) in the dtype of v, and with `choices` (P) the scores (B,P,S) in at least fp32."""
    B, H, D = q_BHD.shape
    G, S = k_BGSD.shape[1:3]
    wide = torch.promote_types(q_BHD.dtype, torch.float32)
    logits = q_BHD.to(wide).view(B, G, H // G, D) @ k_BGSD.to(wide).mT * scale
    visible = torch.ones(B, 1, S, dtype=torch.bool, device=q_BHD.device)
    if length_B is not None:
        visible = visible & (torch.arange(S, device=q_BHD.device) < length_B[:, None, None])
    if mask_BPS is not None:
        visible = visible & mask_BPS
    probs = logits.masked_fill(~visible[:, :, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    out = (probs.to(v_BGSD.dtype) @ v_BGSD).view(B, H, D)
    return out, None if choices is None else probs.view(B, choices, -1, S).mean(2)
