"""Gated retention in Triton: chunkwise, forward and backward, the state in fp32 throughout.

    states    S_c, the state before chunk c: S_{c+1} = e^{A_end} S_c + K^T (V e^{A_end - A})   one pass over T
    outputs   O = (Q K^T * D) V + (Q e^A) S_c                                              chunks in parallel
    backward  dS_c = e^{A_end} dS_{c+1} + (Q e^A)^T dO, in reverse; then in every chunk
              P = Q K^T * D,  dP = dO V^T * D,  dQ = dP K + (dO S_c^T) e^A,
              dK = dP^T Q + (V e^{A_end - A}) dS_{c+1}^T,  dV = P^T dO + (K dS_{c+1}) e^{A_end - A}

A restarts in every chunk, and only differences that are <= 0 are exponentiated. The decay's gradient needs no
kernel: a_n scales q by e^{A_n} and k by e^{-A_n}, so dA_n = q_n dq_n - k_n dk_n, and da is its reversed
cumulated sum, with <dS_T, S_T> added at every step (as in GLA, arXiv 2312.06635, appendix C).

Products of bf16 operands run on bf16 tensor cores with fp32 sums; what is exponentiated, cumulated or carried
is fp32. Products of fp32 operands are exact fp32 ("ieee"), not TF32.

Shapes: q, k, v, o (B,T,H,D); a (B,T,H); states (B,H,C,D,D) in fp32. Letters as in `naive`; D is padded to a
power of two of at least 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..product import dot_kind, launch, product

#: Tokens per chunk; the square of it is what one program multiplies at a time.
CHUNK = 64
#: The same for a single step: the fewest that a tensor core multiplies.
STEP_CHUNK = 16
#: Columns of the state that one program carries.
TILE = 64


@triton.jit
def _decay(a_ptr, base, stride_t, start, T, CHUNK: tl.constexpr):
    """A (CHUNK,), cumulated from the chunk's first token, and its last value; 0 beyond T."""
    t = start + tl.arange(0, CHUNK)
    a = tl.load(a_ptr + base + t.to(tl.int64) * stride_t, mask=t < T, other=0.0).to(tl.float32)
    return tl.cumsum(a, 0), tl.sum(a, 0)


@triton.jit
def _rows(ptr, base, stride_t, start, T, first, D, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """(CHUNK, WIDTH) of tokens from `start` and channels from `first`; 0 outside."""
    t, d = start + tl.arange(0, CHUNK), first + tl.arange(0, WIDTH)
    at = base + t.to(tl.int64)[:, None] * stride_t + d[None, :]
    return tl.load(ptr + at, mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _state(ptr, base, D, first, WIDTH: tl.constexpr, PAD: tl.constexpr, transposed: tl.constexpr):
    """(PAD, WIDTH) of a state: all rows, columns from `first`; transposed: all columns, rows from `first`."""
    i, j = tl.arange(0, PAD), first + tl.arange(0, WIDTH)
    at = (j[None, :] * D + i[:, None]) if transposed else (i[:, None] * D + j[None, :])
    return tl.load(ptr + base + at, mask=(i < D)[:, None] & (j < D)[None, :], other=0.0)


@triton.jit
def states_fwd_kernel(
    k, v, a, first_state, states, last_state, T, H, D, C,
    stride_b, stride_t, stride_h, stride_ab, stride_at, stride_ah,
    CHUNK: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One (batch row, head) and TILE value channels: the state before every chunk, and the last one."""
    bh, tile = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE
    b, h = bh // H, bh % H
    base, base_a = b * stride_b + h * stride_h, b * stride_ab + h * stride_ah
    i, j = tl.arange(0, PAD), tile + tl.arange(0, TILE)
    inside = (i < D)[:, None] & (j < D)[None, :]
    at = i[:, None] * D + j[None, :]
    s = tl.load(first_state + bh * D * D + at, mask=inside, other=0.0).to(tl.float32)
    for c in range(C):
        tl.store(states + (bh * C + c) * D * D + at, s, mask=inside)
        total, end = _decay(a, base_a, stride_at, c * CHUNK, T, CHUNK)
        k_c = _rows(k, base, stride_t, c * CHUNK, T, 0, D, CHUNK, PAD)
        v_c = _rows(v, base, stride_t, c * CHUNK, T, tile, D, CHUNK, TILE)
        weighted = (v_c.to(tl.float32) * tl.exp(end - total)[:, None]).to(v_c.dtype)
        s = tl.exp(end) * s + product(tl.trans(k_c), weighted, DOT)
    tl.store(last_state + bh * D * D + at, s, mask=inside)


@triton.jit
def outputs_fwd_kernel(
    q, k, v, a, states, o, T, H, D, C,
    stride_b, stride_t, stride_h, stride_ab, stride_at, stride_ah,
    CHUNK: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One chunk of one (batch row, head), TILE value channels. `o` is (B,T,H,D) in fp32, contiguous."""
    c, bh, tile = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2) * TILE
    b, h = bh // H, bh % H
    base, base_a = b * stride_b + h * stride_h, b * stride_ab + h * stride_ah
    total, _ = _decay(a, base_a, stride_at, c * CHUNK, T, CHUNK)
    q_c = _rows(q, base, stride_t, c * CHUNK, T, 0, D, CHUNK, PAD)
    k_c = _rows(k, base, stride_t, c * CHUNK, T, 0, D, CHUNK, PAD)
    v_c = _rows(v, base, stride_t, c * CHUNK, T, tile, D, CHUNK, TILE)
    n = tl.arange(0, CHUNK)
    seen = n[:, None] >= n[None, :]
    decay = tl.where(seen, tl.exp(tl.where(seen, total[:, None] - total[None, :], 0.0)), 0.0)
    p = product(q_c, tl.trans(k_c), DOT) * decay
    out = product(p.to(v_c.dtype), v_c, DOT)
    s = _state(states, (bh * C + c) * D * D, D, tile, TILE, PAD, False).to(q_c.dtype)
    out += product(q_c, s, DOT) * tl.exp(total)[:, None]
    t, d = c * CHUNK + n, tile + tl.arange(0, TILE)
    at = ((b * T + t.to(tl.int64)) * H + h)[:, None] * D + d[None, :]
    tl.store(o + at, out, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def states_bwd_kernel(
    q, a, do, last_grad, grads, first_grad, T, H, D, C,
    stride_b, stride_t, stride_h, stride_ab, stride_at, stride_ah, stride_ob, stride_ot, stride_oh,
    CHUNK: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradient of the state after every chunk, backwards, and of the first state."""
    bh, tile = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE
    b, h = bh // H, bh % H
    base, base_a = b * stride_b + h * stride_h, b * stride_ab + h * stride_ah
    base_o = b * stride_ob + h * stride_oh
    i, j = tl.arange(0, PAD), tile + tl.arange(0, TILE)
    inside = (i < D)[:, None] & (j < D)[None, :]
    at = i[:, None] * D + j[None, :]
    ds = tl.load(last_grad + bh * D * D + at, mask=inside, other=0.0).to(tl.float32)
    for back in range(C):
        c = C - 1 - back
        tl.store(grads + (bh * C + c) * D * D + at, ds, mask=inside)
        total, end = _decay(a, base_a, stride_at, c * CHUNK, T, CHUNK)
        q_c = _rows(q, base, stride_t, c * CHUNK, T, 0, D, CHUNK, PAD)
        do_c = _rows(do, base_o, stride_ot, c * CHUNK, T, tile, D, CHUNK, TILE)
        weighted = (do_c.to(tl.float32) * tl.exp(total)[:, None]).to(q_c.dtype)
        ds = tl.exp(end) * ds + product(tl.trans(q_c), weighted, DOT)
    tl.store(first_grad + bh * D * D + at, ds, mask=inside)


@triton.jit
def inputs_bwd_kernel(
    q, k, v, a, do, states, grads, dq, dk, dv, T, H, D, C,
    stride_b, stride_t, stride_h, stride_ab, stride_at, stride_ah, stride_ob, stride_ot, stride_oh,
    CHUNK: tl.constexpr, PAD: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One chunk: gradients of q, k and v, each (B,T,H,D) in fp32, contiguous."""
    c, bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    base, base_a = b * stride_b + h * stride_h, b * stride_ab + h * stride_ah
    start = c * CHUNK
    total, end = _decay(a, base_a, stride_at, start, T, CHUNK)
    grow, left = tl.exp(total)[:, None], tl.exp(end - total)[:, None]
    q_c = _rows(q, base, stride_t, start, T, 0, D, CHUNK, PAD)
    k_c = _rows(k, base, stride_t, start, T, 0, D, CHUNK, PAD)
    v_c = _rows(v, base, stride_t, start, T, 0, D, CHUNK, PAD)
    do_c = _rows(do, b * stride_ob + h * stride_oh, stride_ot, start, T, 0, D, CHUNK, PAD).to(q_c.dtype)
    n = tl.arange(0, CHUNK)
    seen = n[:, None] >= n[None, :]
    decay = tl.where(seen, tl.exp(tl.where(seen, total[:, None] - total[None, :], 0.0)), 0.0)
    p = (product(q_c, tl.trans(k_c), DOT) * decay).to(q_c.dtype)
    dp = (product(do_c, tl.trans(v_c), DOT) * decay).to(q_c.dtype)
    here = (bh * C + c) * D * D
    s_T = _state(states, here, D, 0, PAD, PAD, True).to(q_c.dtype)
    ds = _state(grads, here, D, 0, PAD, PAD, False).to(q_c.dtype)
    dq_c = product(dp, k_c, DOT) + product(do_c, s_T, DOT) * grow
    dk_c = product(tl.trans(dp), q_c, DOT)
    dk_c += product(v_c, tl.trans(ds), DOT) * left
    dv_c = product(tl.trans(p), do_c, DOT)
    dv_c += product(k_c, ds, DOT) * left
    t, d = start + n, tl.arange(0, PAD)
    at = ((b * T + t.to(tl.int64)) * H + h)[:, None] * D + d[None, :]
    inside = (t < T)[:, None] & (d < D)[None, :]
    tl.store(dq + at, dq_c, mask=inside)
    tl.store(dk + at, dk_c, mask=inside)
    tl.store(dv + at, dv_c, mask=inside)


def _sizes(q: Tensor, chunk: int) -> tuple[tuple[int, int, int, int], dict]:
    B, T, H, D = q.shape
    pad = max(16, triton.next_power_of_2(D))
    return (T, H, D, triton.cdiv(T, chunk)), {"CHUNK": chunk, "PAD": pad, "DOT": dot_kind(q.dtype)}


def _states(
    k: Tensor, v: Tensor, a: Tensor, state: Tensor, chunk: int, last: Tensor
) -> tuple[Tensor, Tensor]:
    """The state before every chunk; the one after all goes to `last`, which may be `state` itself."""
    (T, H, D, C), sizes = _sizes(k, chunk)
    states = k.new_empty(k.shape[0], H, C, D, D, dtype=torch.float32)
    tile = min(TILE, sizes["PAD"])
    launch(
        states_fwd_kernel, (k.shape[0] * H, triton.cdiv(D, tile)),
        k, v, a, state, states, last, T, H, D, C, *k.stride()[:3], *a.stride(), TILE=tile, **sizes,
    )  # fmt: skip
    return states, last


def _outputs(q: Tensor, k: Tensor, v: Tensor, a: Tensor, states: Tensor, chunk: int) -> Tensor:
    (T, H, D, C), sizes = _sizes(q, chunk)
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    tile = min(TILE, sizes["PAD"])
    launch(
        outputs_fwd_kernel, (C, q.shape[0] * H, triton.cdiv(D, tile)),
        q, k, v, a, states, out, T, H, D, C, *q.stride()[:3], *a.stride(), TILE=tile, **sizes,
    )  # fmt: skip
    return out


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, a, state, chunk):
        states, last = _states(k, v, a, state, chunk, torch.empty_like(state))
        ctx.save_for_backward(q, k, v, a, state, last)
        ctx.chunk = chunk
        return _outputs(q, k, v, a, states, chunk), last

    @staticmethod
    def backward(ctx, do, dlast):
        q, k, v, a, state, last = ctx.saved_tensors
        (T, H, D, C), sizes = _sizes(q, ctx.chunk)
        B, do, dlast = q.shape[0], do.contiguous(), dlast.contiguous()
        # Made again: they are larger than all that is saved.
        states, _ = _states(k, v, a, state, ctx.chunk, torch.empty_like(state))
        grads, first = torch.empty_like(states), torch.empty_like(state)
        strides = (*q.stride()[:3], *a.stride(), *do.stride()[:3])
        tile = min(TILE, sizes["PAD"])
        launch(
            states_bwd_kernel, (B * H, triton.cdiv(D, tile)),
            q, a, do, dlast, grads, first, T, H, D, C, *strides, TILE=tile, **sizes,
        )  # fmt: skip
        dq, dk, dv = (torch.empty(q.shape, dtype=torch.float32, device=q.device) for _ in range(3))
        launch(
            inputs_bwd_kernel, (C, B * H),
            q, k, v, a, do, states, grads, dq, dk, dv, T, H, D, C, *strides, **sizes,
        )  # fmt: skip
        steps = (q.float() * dq - k.float() * dk).sum(-1)
        steps[:, -1] += (dlast * last).sum((-1, -2))
        da = steps.flip(1).cumsum(1).flip(1)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), da.to(a.dtype), first, None


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """As `naive.chunked`: outputs (B,T,H,D) in fp32, and the state after the last token.

    q, k and v in fp32 or bf16, all alike; differentiable in everything but `chunk`. Raises ValueError.
    """
    _refuse(q, k, v, state)
    q, k, v = (x.contiguous() for x in (q, k, v))  # equal strides for the three
    return _Chunked.apply(q, k, v, log_decay, state.contiguous(), chunk)


def step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`chunked` of a token, or few, that changes the state in place and returns it. No gradients."""
    _refuse(q, k, v, state)
    q, k, v = (x.contiguous() for x in (q, k, v))
    states, last = _states(k, v, log_decay, state, STEP_CHUNK, state)
    return _outputs(q, k, v, log_decay, states, STEP_CHUNK), last


def _refuse(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> None:
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"fused retention takes fp32 or bf16, not {q.dtype}, {k.dtype} and {v.dtype}.")
    if state.dtype != torch.float32:
        raise ValueError(f"fused retention carries an fp32 state, not {state.dtype}.")
