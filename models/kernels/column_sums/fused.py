"""Attention that every key received, in Triton: a program per block of keys goes over its queries.

No atomics: a program owns its keys, so sums are the same in every run. Shapes as in `naive`.
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
def sums_fwd_kernel(
    q, k, lse, counts, sums, scale, T, S, D, R, window,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kg, stride_ks,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PAD: tl.constexpr, DOT: tl.constexpr, HAS_COUNTS: tl.constexpr,
):  # fmt: skip
    """sums (B,G,S) in fp32."""
    g, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    G = tl.num_programs(1)
    first = tl.program_id(0) * KEYS
    j, d = first + tl.arange(0, KEYS), tl.arange(0, PAD)
    k_SD = tl.load(
        k + b * stride_kb + g * stride_kg + j.to(tl.int64)[:, None] * stride_ks + d[None, :],
        mask=(j < S)[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    # Who sees a key of this block stands at its first key at the earliest, window - 1 after its last at most.
    start = tl.maximum(first - (S - T), 0) // QUERIES * QUERIES
    stop = tl.minimum(first + KEYS - 1 + window - (S - T), T)
    acc = tl.zeros([KEYS], tl.float32)
    for n in range(R):
        h = g * R + n
        for at in range(start, stop, QUERIES):
            t = at + tl.arange(0, QUERIES)
            here = t.to(tl.int64)
            q_TD = tl.load(
                q + b * stride_qb + h * stride_qh + here[:, None] * stride_qt + d[None, :],
                mask=(t < T)[:, None] & (d < D)[None, :], other=0.0,
            )  # fmt: skip
            x = product(q_TD, tl.trans(k_SD), DOT) * scale
            x -= tl.load(lse + (b * G * R + h) * T + here, mask=t < T, other=0.0)[:, None]
            back = (S - T + t)[:, None] - j[None, :]
            seen = (back >= 0) & (back < window) & (t < T)[:, None]
            if HAS_COUNTS:
                seen = seen & tl.load(counts + b * T + here, mask=t < T, other=0).to(tl.int1)[:, None]
            acc += tl.sum(tl.where(seen, tl.exp(tl.where(seen, x, 0.0)), 0.0), 0)
    tl.store(sums + (b * G + g) * S + j, acc / R, mask=j < S)


def column_sums(
    q_BTHD: Tensor,
    k_BGSD: Tensor,
    lse_BHT: Tensor,
    scale: float,
    window: int | None = None,
    counts_BT: Tensor | None = None,
) -> Tensor:
    """As `naive.column_sums`. The last dimension of q and k is dense."""
    (B, T, H, D), (G, S) = q_BTHD.shape, k_BGSD.shape[1:3]
    sums = torch.empty(B, G, S, dtype=torch.float32, device=q_BTHD.device)
    launch(
        sums_fwd_kernel, (triton.cdiv(S, KEYS), G, B),
        q_BTHD, k_BGSD, lse_BHT.contiguous(), sums if counts_BT is None else counts_BT.contiguous(), sums,
        scale, T, S, D, H // G, window or S + 1, *q_BTHD.stride()[:3], *k_BGSD.stride()[:3],
        QUERIES=QUERIES, KEYS=KEYS, PAD=max(16, triton.next_power_of_2(D)),
        DOT=dot_kind(q_BTHD.dtype), HAS_COUNTS=counts_BT is not None,
    )  # fmt: skip
    return sums
