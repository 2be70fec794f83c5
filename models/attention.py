"""Softmax attention over given keys: the two forms that every cache is built from.

`attention` never materialises probabilities (torch's scaled_dot_product_attention);
`attention_with_probs` returns them, for policies that score by them. Same numbers up to rounding.
Letters as in `models/architecture.py`; query head h reads KV head h // (H/G).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Rope

#: Queries per block where a mask has to be materialised: bounds it to (block x slots).
QUERY_BLOCK = 256


@dataclass(frozen=True)
class Heads:
    """How one layer attends: head counts, softmax scale, rotary positions (None: no positions)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None

    @property
    def slot_elements(self) -> int:
        """Elements of one token's keys and values."""
        return 2 * self.num_kv_heads * self.head_dim

    def rotate(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        return x_BTHD if self.rope is None else self.rope(x_BTHD, positions_BT)


def attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGD: Tensor,
    scale: float,
    mask_BTS: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(scale * q k^T) v. `mask_BTS` True means visible; `causal` needs T == S."""
    T, H, G = q_BTHD.shape[1], q_BTHD.shape[2], k_BSGD.shape[2]
    group = H // G
    mask = None if mask_BTS is None else mask_BTS[:, None]
    k, v = k_BSGD.transpose(1, 2), v_BSGD.transpose(1, 2)
    if T == 1 and group > 1:
        # Queries of one KV head become rows, so K and V are read once and never repeated.
        q = q_BTHD.reshape(q_BTHD.shape[0], G, group, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return out.reshape(q_BTHD.shape)
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    q = q_BTHD.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2)


def attention_with_probs(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, scale: float, mask_BTS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `attention`, and the probabilities (B,H,T,S) in at least fp32."""
    B, T, H, D = q_BTHD.shape
    G = k_BSGD.shape[2]
    q = q_BTHD.reshape(B, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(B, G, -1, D)  # (B, G, group*T, D)
    logits = (q @ k_BSGD.permute(0, 2, 3, 1)).view(B, H, T, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if mask_BTS is not None:
        logits = logits.masked_fill(~mask_BTS[:, None], float("-inf"))
    probs = logits.softmax(-1)
    mixed = probs.to(v_BSGD.dtype).view(B, G, -1, probs.shape[-1]) @ v_BSGD.transpose(1, 2)
    return mixed.view(B, H, T, D).transpose(1, 2), probs


def never_empty(mask_BTS: Tensor) -> Tensor:
    """Let a row that sees nothing (padding) see everything: its output is ignored, but not NaN."""
    return mask_BTS | ~mask_BTS.any(-1, keepdim=True)


def sliding_window(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention in which key j is visible to query i iff 0 <= i - j < window, O(T * window)."""
    T = q_BTHD.shape[1]
    if window >= T:
        return attention(q_BTHD, k_BTGD, v_BTGD, scale, causal=True)
    outs = []
    block = min(window, QUERY_BLOCK)
    for start in range(0, T, block):
        stop, first = min(start + block, T), max(0, start - window + 1)
        i = torch.arange(start, stop, device=q_BTHD.device)[:, None]
        j = torch.arange(first, stop, device=q_BTHD.device)
        mask = ((j <= i) & (i - j < window))[None]
        outs.append(
            attention(q_BTHD[:, start:stop], k_BTGD[:, first:stop], v_BTGD[:, first:stop], scale, mask)
        )
    return torch.cat(outs, 1)
