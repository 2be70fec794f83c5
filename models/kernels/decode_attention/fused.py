"""One query per row over a cache, in Triton: the keys are split among programs, K and V are read once.

    split      per (split of the keys, KV head, row): the group's queries against block after block of keys,
               with a running maximum; leaves an output and a log-sum-exp per split, and logits where asked
    combine    per (query head, row): splits weighted by their log-sum-exps -> output, log-sum-exp of the row
    scores     per (block of keys, choice, row): mean over the choice's heads of exp(logit - log-sum-exp)

The logits are H numbers per key beside 2 G D elements of K and V: under one per cent at D = 128 in bf16
without groups. Queries of one KV head are rows of one product, padded to the 16 that a tensor core wants.

Everything that changes from step to step (`length`, `mask`) is a tensor, so that a captured graph stays
right, and no size of a launch depends on it. Shapes as in `naive`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..product import dot_kind, launch, product

#: Keys that are multiplied at a time.
BLOCK = 64
#: Programs that keep a large GPU busy: two for each of 132 multiprocessors.
PROGRAMS = 264


@triton.jit
def split_fwd_kernel(
    q, k, v, length, mask, out, lse, logits, scale, S, D, R, splits, P,
    stride_qb, stride_qh, stride_kb, stride_kg, stride_ks, stride_vb, stride_vg, stride_vs,
    stride_mb, stride_mp, stride_ms,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, PAD: tl.constexpr, DOT: tl.constexpr,
    HAS_LENGTH: tl.constexpr, HAS_MASK: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    """out (B,H,splits,D) and lse (B,H,splits) in fp32; logits (B,H,S) in fp32, of the first `length` keys."""
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    G = tl.num_programs(1)
    r, d = tl.arange(0, ROWS), tl.arange(0, PAD)
    heads = g * R + r
    inside = (r < R)[:, None] & (d < D)[None, :]
    q_RD = tl.load(q + b * stride_qb + heads[:, None] * stride_qh + d[None, :], mask=inside, other=0.0)
    end = S
    if HAS_LENGTH:
        end = tl.minimum(S, tl.load(length + b).to(tl.int32))
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, PAD], tl.float32)
    # What is there is split, not what could be: no program is idle because a cache is not full yet.
    per_split = tl.cdiv(tl.cdiv(end, splits), BLOCK) * BLOCK
    first = split * per_split
    for start in range(first, tl.minimum(first + per_split, end), BLOCK):
        s = start + tl.arange(0, BLOCK)
        there = s < end
        at = s.to(tl.int64)
        k_SD = tl.load(
            k + b * stride_kb + g * stride_kg + at[:, None] * stride_ks + d[None, :],
            mask=there[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        x = product(q_RD, tl.trans(k_SD), DOT) * scale
        seen = there
        if HAS_MASK:
            seen = seen & tl.load(
                mask + b * stride_mb + (g * P // G) * stride_mp + at * stride_ms, mask=there, other=0
            ).to(tl.int1)
        x = tl.where(seen[None, :], x, float("-inf"))
        if SCORES:
            row = (b * G + g) * R + r
            tl.store(logits + row[:, None] * S + at[None, :], x, mask=(r < R)[:, None] & there[None, :])
        new = tl.maximum(best, tl.max(x, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp(x - safe[:, None])
        shrink = tl.exp(best - safe)
        v_SD = tl.load(
            v + b * stride_vb + g * stride_vg + at[:, None] * stride_vs + d[None, :],
            mask=there[:, None] & (d < D)[None, :], other=0.0,
        )  # fmt: skip
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + product(p.to(v_SD.dtype), v_SD, DOT)
        best = new
    some = total > 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    row = ((b * G + g) * R + r) * splits + split
    tl.store(out + row[:, None] * D + d[None, :], acc, mask=inside)
    tl.store(lse + row, tl.where(some, best + tl.log(tl.where(some, total, 1.0)), float("-inf")), mask=r < R)


@triton.jit
def combine_fwd_kernel(
    parts, lse_parts, out, lse, splits, D, H, SPLITS: tl.constexpr, PAD: tl.constexpr
):  # fmt: skip
    """out (B,H,D) in its own dtype, lse (B,H) in fp32; a row that saw nothing: zeros, and 0 for the lse."""
    row = tl.program_id(1).to(tl.int64) * H + tl.program_id(0)
    n, d = tl.arange(0, SPLITS), tl.arange(0, PAD)
    own = tl.load(lse_parts + row * splits + n, mask=n < splits, other=float("-inf"))
    best = tl.max(own, 0)
    safe = tl.where(best == float("-inf"), 0.0, best)
    share = tl.exp(own - safe)
    total = tl.sum(share, 0)
    some = total > 0
    x = tl.load(
        parts + (row * splits + n)[:, None] * D + d[None, :],
        mask=(n < splits)[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    mixed = tl.sum(x * share[:, None], 0) / tl.where(some, total, 1.0)
    tl.store(out + row * D + d, mixed.to(out.dtype.element_ty), mask=d < D)
    tl.store(lse + row, tl.where(some, safe + tl.log(tl.where(some, total, 1.0)), 0.0))


@triton.jit
def scores_fwd_kernel(
    logits, lse, length, scores, S, H, N, BLOCK: tl.constexpr, HAS_LENGTH: tl.constexpr
):  # fmt: skip
    """scores (B,P,S): the mean over a choice's N heads of their probabilities."""
    b, choice = tl.program_id(2).to(tl.int64), tl.program_id(1)
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    end = S
    if HAS_LENGTH:
        end = tl.minimum(S, tl.load(length + b).to(tl.int32))
    for n in range(N):
        row = b * H + choice * N + n
        x = tl.load(logits + row * S + s, mask=s < end, other=float("-inf"))
        acc += tl.exp(x - tl.load(lse + row))
    tl.store(scores + (b * tl.num_programs(1) + choice) * S + s, acc / N, mask=s < S)


def attend(
    q_BHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    length_B: Tensor | None = None,
    mask_BPS: Tensor | None = None,
    choices: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `naive.attend`; a row without any visible key gives zeros. Last dimensions are dense."""
    (B, H, D), (G, S) = q_BHD.shape, k_BGSD.shape[1:3]
    R, pad = H // G, max(16, triton.next_power_of_2(D))
    splits = max(1, min(triton.cdiv(S, BLOCK), PROGRAMS // (B * G)))
    wide = {"dtype": torch.float32, "device": q_BHD.device}
    parts, lse_parts = torch.empty(B, H, splits, D, **wide), torch.empty(B, H, splits, **wide)
    out, lse = torch.empty_like(q_BHD, memory_format=torch.contiguous_format), torch.empty(B, H, **wide)
    logits = parts if choices is None else torch.empty(B, H, S, **wide)
    mask = parts if mask_BPS is None else mask_BPS
    launch(
        split_fwd_kernel, (splits, G, B),
        q_BHD, k_BGSD, v_BGSD, parts if length_B is None else length_B, mask, parts, lse_parts, logits,
        scale, S, D, R, splits, 1 if mask_BPS is None else mask_BPS.shape[1],
        *q_BHD.stride()[:2], *k_BGSD.stride()[:3], *v_BGSD.stride()[:3],
        *((0, 0, 0) if mask_BPS is None else mask_BPS.stride()),
        BLOCK=BLOCK, ROWS=max(16, triton.next_power_of_2(R)), PAD=pad,
        DOT=dot_kind(q_BHD.dtype),
        HAS_LENGTH=length_B is not None, HAS_MASK=mask_BPS is not None, SCORES=choices is not None,
    )  # fmt: skip
    launch(
        combine_fwd_kernel, (H, B),
        parts, lse_parts, out, lse, splits, D, H, SPLITS=triton.next_power_of_2(splits), PAD=pad,
    )  # fmt: skip
    if choices is None:
        return out, None
    scores = torch.empty(B, choices, S, **wide)
    launch(
        scores_fwd_kernel, (triton.cdiv(S, BLOCK), choices, B),
        logits, lse, parts if length_B is None else length_B, scores, S, H, H // choices,
        BLOCK=BLOCK, HAS_LENGTH=length_B is not None,
    )  # fmt: skip
    return out, scores
