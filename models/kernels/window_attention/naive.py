"""Causal attention of the newest T of S tokens, in a window or without one, the definition.

Query t stands at column i = S - T + t and sees key j <= i iff i - j < window or j < sinks (no window: all).
So T == S is a whole prompt, and T < S a later segment of it, whose keys are the last: bottom-right causal.

Shapes: q (B,T,H,D); k, v (B,G,S,D); out (B,T,H,D); lse (B,H,T), the log-sum-exp of the scaled logits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(T: int, S: int, window: int | None, device: torch.device, sinks: int = 0) -> Tensor:
    """(T,S): which keys each query sees."""
    key = torch.arange(S, device=device)
    back = torch.arange(S - T, S, device=device)[:, None] - key
    return (back >= 0) & ((back < (window or S + 1)) | (key < sinks))


def attend(
    q_BTHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, window: int | None = None, sinks: int = 0
) -> tuple[Tensor, Tensor]:
    """Output in the dtype of v, log-sum-exps in at least fp32. All T x S logits are made."""
    B, T, H, D = q_BTHD.shape
    G, S = k_BGSD.shape[1:3]
    wide = torch.promote_types(q_BTHD.dtype, torch.float32)
    q = q_BTHD.to(wide).transpose(1, 2).reshape(B, G, H // G, T, D)
    logits = q @ k_BGSD.to(wide)[:, :, None].mT * scale
    logits = logits.masked_fill(~visible(T, S, window, q.device, sinks), -torch.inf)
    out = logits.softmax(-1).to(v_BGSD.dtype) @ v_BGSD[:, :, None]
    return out.view(B, H, T, D).transpose(1, 2), logits.logsumexp(-1).view(B, H, T)
