"""Causal attention of the newest T of S tokens, in a window or without one, in Triton (forward only).

One program has a block of queries of one head and goes over the keys that any of them sees, with a running
maximum (FlashAttention-2, arXiv 2307.08691): O(T * window) work, and nothing of size T x S. The past of a
segment and the segment itself are one pass, so nothing has to be merged. Shapes as in `naive`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..product import dot_kind, launch, product

#: Queries and keys per product.
QUERIES, KEYS = 64, 64


@triton.jit
def attend_fwd_kernel(
    q, k, v, out, lse, scale, T, S, D, R, window, sinks,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PAD: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """out (B,T,H,D) contiguous, lse (B,H,T) in fp32. A query sees at least itself."""
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    H = tl.num_programs(1)
    g = h // R
    t, d = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, PAD)
    rows = (t < T)[:, None] & (d < D)[None, :]
    at = t.to(tl.int64)
    q_TD = tl.load(
        q + b * stride_qb + h * stride_qh + at[:, None] * stride_qt + d[None, :], mask=rows, other=0.0
    )
    i = S - T + t
    oldest = tl.maximum(S - T + tl.program_id(0) * QUERIES - window + 1, 0)
    newest = tl.minimum(S - T + tl.program_id(0) * QUERIES + QUERIES, S)
    best = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, PAD], tl.float32)
    first = oldest // KEYS * KEYS
    ahead = tl.minimum(tl.cdiv(sinks, KEYS) * KEYS, first)  # blocks of sinks before those of the window
    for at_key in range(first - ahead, newest, KEYS):
        start = tl.where(at_key < first, at_key - (first - ahead), at_key)
        j = start + tl.arange(0, KEYS)
        here = j.to(tl.int64)
        inside = (j < S)[:, None] & (d < D)[None, :]
        k_SD = tl.load(
            k + b * stride_kb + g * stride_kg + here[:, None] * stride_ks + d[None, :], mask=inside, other=0.0
        )
        x = product(q_TD, tl.trans(k_SD), DOT) * scale
        back = i[:, None] - j[None, :]
        x = tl.where((back >= 0) & ((back < window) | (j < sinks)[None, :]), x, float("-inf"))
        new = tl.maximum(best, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp(x - safe[:, None])
        shrink = tl.exp(best - safe)
        v_SD = tl.load(
            v + b * stride_vb + g * stride_vg + here[:, None] * stride_vs + d[None, :], mask=inside, other=0.0
        )
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + product(p.to(v_SD.dtype), v_SD, DOT)
        best = new
    total = tl.where(t < T, total, 1.0)
    mixed = acc / total[:, None]
    tl.store(
        out + ((b * T + at) * H + h)[:, None] * D + d[None, :], mixed.to(out.dtype.element_ty), mask=rows
    )
    tl.store(lse + (b * H + h) * T + at, best + tl.log(total), mask=t < T)


def attend(
    q_BTHD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, window: int | None = None, sinks: int = 0
) -> tuple[Tensor, Tensor]:
    """As `naive.attend`. The last dimension of q, k and v is dense."""
    (B, T, H, D), (G, S) = q_BTHD.shape, k_BGSD.shape[1:3]
    out = torch.empty(B, T, H, D, dtype=v_BGSD.dtype, device=q_BTHD.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q_BTHD.device)
    launch(
        attend_fwd_kernel, (triton.cdiv(T, QUERIES), H, B),
        q_BTHD, k_BGSD, v_BGSD, out, lse, scale, T, S, D, H // G, window or S + 1, sinks,
        *q_BTHD.stride()[:3], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        QUERIES=QUERIES, KEYS=KEYS, PAD=max(16, triton.next_power_of_2(D)),
        DOT=dot_kind(q_BTHD.dtype),
    )  # fmt: skip
    return out, lse
