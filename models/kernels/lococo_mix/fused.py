"""LoCoCo's mixtures in Triton: no r x M array of logits or weights is ever written (forward only).

One program has a block of memory slots of one head and goes over blocks of cached slots: the convolution's
logits for them, a running maximum, and the products with K, V and scores, as in flash attention. What is
exponentiated and summed is fp32; keys and values are multiplied in their own dtype. Shapes as in `naive`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..product import dot_kind, launch, product

#: Memory slots and cached slots per product.
MEMORY, SLOTS = 32, 64


@triton.jit
def mix_fwd_kernel(
    k, v, score, weight, bias, alpha, chosen, mixed_k, mixed_v, mixed_score, r, M, D,
    stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs,
    TAPS: tl.constexpr, MEMORY: tl.constexpr, SLOTS: tl.constexpr, PAD: tl.constexpr, DOT: tl.constexpr,
    HAS_SCORE: tl.constexpr,
):  # fmt: skip
    """weight (TAPS,M,2D), bias (M,), score (B,G,r), chosen (B,G,M) and all outputs are contiguous."""
    g, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = b * tl.num_programs(1) + g
    m, d = tl.program_id(0) * MEMORY + tl.arange(0, MEMORY), tl.arange(0, PAD)
    slots = (m < M)[:, None] & (d < D)[None, :]
    share = tl.load(alpha).to(tl.float32)
    base_k, base_v = k + b * stride_kb + g * stride_kg, v + b * stride_vb + g * stride_vg
    start_z = tl.load(bias + m, mask=m < M, other=0.0).to(tl.float32)
    best = tl.full([MEMORY], float("-inf"), tl.float32)
    total = tl.zeros([MEMORY], tl.float32)
    acc_k, acc_v = tl.zeros([MEMORY, PAD], tl.float32), tl.zeros([MEMORY, PAD], tl.float32)
    acc_s = tl.zeros([MEMORY], tl.float32)
    for start in range(0, r, SLOTS):
        j = start + tl.arange(0, SLOTS)
        z = tl.zeros([MEMORY, SLOTS], tl.float32) + start_z[:, None]
        for tap in range(TAPS):
            at = j + tap - TAPS // 2
            inside = ((at >= 0) & (at < r))[:, None] & (d < D)[None, :]
            row = weight + (tap * M + m)[:, None] * 2 * D + d[None, :]
            k_SD = tl.load(base_k + at.to(tl.int64)[:, None] * stride_ks + d[None, :], mask=inside, other=0.0)
            v_SD = tl.load(base_v + at.to(tl.int64)[:, None] * stride_vs + d[None, :], mask=inside, other=0.0)
            w_k, w_v = tl.load(row, mask=slots, other=0.0), tl.load(row + D, mask=slots, other=0.0)
            z += product(w_k, tl.trans(k_SD), DOT)
            z += product(w_v, tl.trans(v_SD), DOT)
        z = tl.where((j < r)[None, :], tl.maximum(z, 0.0), float("-inf"))
        new = tl.maximum(best, tl.max(z, 1))
        p = tl.exp(z - new[:, None])
        shrink = tl.exp(best - new)
        inside = (j < r)[:, None] & (d < D)[None, :]
        k_SD = tl.load(base_k + j.to(tl.int64)[:, None] * stride_ks + d[None, :], mask=inside, other=0.0)
        v_SD = tl.load(base_v + j.to(tl.int64)[:, None] * stride_vs + d[None, :], mask=inside, other=0.0)
        total = total * shrink + tl.sum(p, 1)
        acc_k = acc_k * shrink[:, None] + product(p.to(k_SD.dtype), k_SD, DOT)
        acc_v = acc_v * shrink[:, None] + product(p.to(v_SD.dtype), v_SD, DOT)
        if HAS_SCORE:
            s = tl.load(score + head * r + j, mask=j < r, other=0.0).to(tl.float32)
            acc_s = acc_s * shrink + tl.sum(p * s[None, :], 1)
        best = new
    own = tl.load(chosen + head * M + m, mask=m < M, other=0)
    k_MD = tl.load(base_k + own[:, None] * stride_ks + d[None, :], mask=slots, other=0.0).to(tl.float32)
    v_MD = tl.load(base_v + own[:, None] * stride_vs + d[None, :], mask=slots, other=0.0).to(tl.float32)
    out = (head * M + m)[:, None] * D + d[None, :]
    blend_k = (1 - share) * k_MD + share * acc_k / total[:, None]
    blend_v = (1 - share) * v_MD + share * acc_v / total[:, None]
    tl.store(mixed_k + out, blend_k.to(mixed_k.dtype.element_ty), mask=slots)
    tl.store(mixed_v + out, blend_v.to(mixed_v.dtype.element_ty), mask=slots)
    if HAS_SCORE:
        s_M = tl.load(score + head * r + own, mask=m < M, other=0.0).to(tl.float32)
        blend_s = (1 - share) * s_M + share * acc_s / total
        tl.store(mixed_score + head * M + m, blend_s.to(mixed_score.dtype.element_ty), mask=m < M)


def mix(
    k_BGrD: Tensor,
    v_BGrD: Tensor,
    weight_MCt: Tensor,
    bias_M: Tensor,
    alpha: float | Tensor,
    chosen_BGM: Tensor,
    score_BGr: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `naive.mix`; weights are multiplied in the dtype of k. k and v are dense in the last dimension."""
    B, G, r, D = k_BGrD.shape
    M, taps = weight_MCt.shape[0], weight_MCt.shape[-1]
    mixed = [torch.empty(B, G, M, D, dtype=x.dtype, device=x.device) for x in (k_BGrD, v_BGrD)]
    score = mixed[0] if score_BGr is None else score_BGr.new_empty(B, G, M)
    launch(
        mix_fwd_kernel, (triton.cdiv(M, MEMORY), G, B),
        k_BGrD, v_BGrD, mixed[0] if score_BGr is None else score_BGr.contiguous(),
        weight_MCt.to(k_BGrD.dtype).permute(2, 0, 1).contiguous(), bias_M.contiguous(),
        torch.as_tensor(alpha, dtype=torch.float32, device=k_BGrD.device), chosen_BGM.contiguous(),
        *mixed, score, r, M, D, *k_BGrD.stride()[:3], *v_BGrD.stride()[:3],
        TAPS=taps, MEMORY=MEMORY, SLOTS=SLOTS, PAD=max(16, triton.next_power_of_2(D)),
        DOT=dot_kind(k_BGrD.dtype), HAS_SCORE=score_BGr is not None,
    )  # fmt: skip
    return mixed[0], mixed[1], None if score_BGr is None else score
