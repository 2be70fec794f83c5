"""Softmax attention over given keys: the two forms that every cache is built from.

`attention` never materialises probabilities (torch's scaled_dot_product_attention);
`attention_with_probs` returns them, for policies that score by them. Same numbers up to rounding.
Keys and values lie head by head, (B,G,S,D): that way neither form has to copy a cache to multiply it.
Letters as in `models/architecture.py`; query head h reads KV head h // (H/G).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import linear, mkl_is_slow_for
from .rope import Rope

#: Queries per block where a mask has to be materialised: bounds it to (block x slots).
QUERY_BLOCK = 256
#: Queries per block of a sliding window: a block of n reads window + n - 1 keys, so small ones waste less,
#: until the cost of a call (a launch, on a GPU) counts for more.
WINDOW_BLOCK = {"cpu": 64}
#: Keys from which one query per row is worth `_step_by_products`: on an AMD EPYC (Zen 5) a step over 8,192
#: keys takes 0.72 of SDPA's time. Its second product is made in multiples of STEP_UNIT keys, because oneDNN
#: compiles every size that it meets (0.3 ms), and in decoding each step has its own.
LONG_STEP, STEP_UNIT = 2048, 512


@dataclass(frozen=True)
class Heads:
    """How one layer attends: head counts, softmax scale, rotary positions (None: no positions).

    `window` is the model's own: a query sees only the newest `window` tokens, itself included.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None

    @property
    def slot_elements(self) -> int:
        """Elements of one token's keys and values."""
        return 2 * self.num_kv_heads * self.head_dim

    def rotate(self, x_BTHD: Tensor, positions_BT: Tensor) -> Tensor:
        return x_BTHD if self.rope is None else self.rope(x_BTHD, positions_BT)


def attention(
    q_BTHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(scale * q k^T) v -> (B,T,H,D).

    `mask` True means visible: (B,T,S), or (B,G,T,S) where KV heads differ. `causal` needs T == S.
    """
    T, H, G = q_BTHD.shape[1], q_BTHD.shape[2], k_BGSD.shape[1]
    mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    if T == 1 and mask is None and k_BGSD.shape[2] >= LONG_STEP and mkl_is_slow_for(q_BTHD):
        return _step_by_products(q_BTHD, k_BGSD, v_BGSD, scale)
    if T == 1 and H > G:
        # Queries of one KV head become rows, so that K and V are read once.
        q = q_BTHD.reshape(q_BTHD.shape[0], G, H // G, -1)
        out = F.scaled_dot_product_attention(q, k_BGSD, v_BGSD, attn_mask=mask, scale=scale)
        return out.reshape(q_BTHD.shape)
    grouped = mask is None and q_BTHD.dtype in (torch.float16, torch.bfloat16)
    if H > G and q_BTHD.is_cuda and not grouped:
        # CUDA's fused kernels group heads only in half precision and without mask; the fallback would
        # hold all T x S probabilities.
        k_BGSD, v_BGSD = (x.repeat_interleave(H // G, 1) for x in (k_BGSD, v_BGSD))
        G = H
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(H // mask.shape[1], 1)
    q = q_BTHD.transpose(1, 2)
    out = F.scaled_dot_product_attention(
        q, k_BGSD, v_BGSD, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=H > G
    )
    return out.transpose(1, 2)


def causal_tail(q_BTHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float) -> Tensor:
    """Causal attention of the newest T of S tokens, whose keys and values are the last ones -> (B,T,H,D).

    On a CPU older keys and the call's own are two passes, joined by their log-sum-exps: no (T,S) mask is made
    or read, so that a prompt in chunks costs what it costs at once. Elsewhere a mask per block of queries.
    """
    (B, T, H, D), (G, S) = q_BTHD.shape, k_BGSD.shape[1:3]
    if S == T:
        return attention(q_BTHD, k_BGSD, v_BGSD, scale, causal=True)
    if not q_BTHD.is_cpu or q_BTHD.requires_grad:  # a log-sum-exp has no gradient there
        outs = []
        for start in range(0, T, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, T)
            seen = S - T + stop
            mask = torch.ones(stop - start, seen, dtype=torch.bool, device=q_BTHD.device).tril(S - T + start)
            k, v = k_BGSD[:, :, :seen], v_BGSD[:, :, :seen]
            outs.append(attention(q_BTHD[:, start:stop], k, v, scale, mask[None]))
        return torch.cat(outs, 1)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q_BHTD = q_BTHD.transpose(1, 2)
    own = [x[:, :, S - T :].repeat_interleave(H // G, 1) for x in (k_BGSD, v_BGSD)]
    new, new_lse = flash(q_BHTD, *own, 0.0, True, scale=scale)
    # Queries of one KV head become rows, so that K and V are read once.
    rows = q_BHTD.reshape(B, G, -1, D)
    old, old_lse = flash(rows, k_BGSD[:, :, : S - T], v_BGSD[:, :, : S - T], 0.0, False, scale=scale)
    share = torch.sigmoid(new_lse - old_lse.reshape(new_lse.shape))[..., None]
    old = old.reshape(new.shape)
    return torch.lerp(old.to(share.dtype), new.to(share.dtype), share).to(q_BTHD.dtype).transpose(1, 2)


def _step_by_products(q_B1HD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float) -> Tensor:
    """One query per row over many keys, in the order of operands in which K and V stream fastest."""
    B, _, H, D = q_B1HD.shape
    G, S = k_BGSD.shape[1:3]
    cut = S - S % STEP_UNIT
    q_BGRD = q_B1HD.reshape(B, G, H // G, D) * scale
    probs_BGRS = (k_BGSD @ q_BGRD.mT).mT.contiguous().softmax(-1)
    newest = probs_BGRS[..., cut:] @ v_BGSD[:, :, cut:]
    pairs = zip(probs_BGRS[..., :cut].flatten(0, 1), v_BGSD[:, :, :cut].flatten(0, 1), strict=True)
    older = torch.stack([linear(probs_RS, v_SD.T) for probs_RS, v_SD in pairs])
    return (older.view_as(newest) + newest).view(B, 1, H, D)


def attention_with_probs(
    q_BTHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `attention`, and the probabilities (B,H,T,S) in at least fp32.

    The products q k^T are made in that width too: rounded to bf16 they tie, and ties decide evictions.
    With bf16 caches this reads a widened copy of K, which a fused kernel would not need.
    """
    B, T, H, D = q_BTHD.shape
    G = k_BGSD.shape[1]
    wide = torch.promote_types(q_BTHD.dtype, torch.float32)
    q = q_BTHD.to(wide).reshape(B, T, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(B, G, -1, D)
    logits = (q @ k_BGSD.to(wide).transpose(-1, -2)).view(B, G, H // G, T, -1) * scale
    if mask is not None:
        mask = mask[:, None] if mask.ndim == 3 else mask
        logits = logits.masked_fill(~mask[:, :, None], float("-inf"))
    probs = logits.softmax(-1).view(B, H, T, -1)
    mixed = probs.to(v_BGSD.dtype).view(B, G, -1, probs.shape[-1]) @ v_BGSD
    return mixed.view(B, H, T, D).transpose(1, 2), probs


def never_empty(mask_BTS: Tensor) -> Tensor:
    """Let a row that sees nothing (padding) see everything: its output is ignored, but not NaN."""
    return mask_BTS | ~mask_BTS.any(-1, keepdim=True)


def sliding_window(q_BTHD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention in which key j is visible to query i iff 0 <= i - j < window, O(T * window)."""
    T = q_BTHD.shape[1]
    if window >= T:
        return attention(q_BTHD, k_BGTD, v_BGTD, scale, causal=True)
    outs = []
    block = min(window, WINDOW_BLOCK.get(q_BTHD.device.type, QUERY_BLOCK))
    for start in range(0, T, block):
        stop, first = min(start + block, T), max(0, start - window + 1)
        i = torch.arange(start, stop, device=q_BTHD.device)[:, None]
        j = torch.arange(first, stop, device=q_BTHD.device)
        mask = ((j <= i) & (i - j < window))[None]
        k, v = k_BGTD[:, :, first:stop], v_BGTD[:, :, first:stop]
        outs.append(attention(q_BTHD[:, start:stop], k, v, scale, mask))
    return torch.cat(outs, 1)
