"""Gated retention, the definition in three equal forms (YOCO, arXiv 2405.05254, section 3.2).

    recurrent   S_n = exp(a_n) S_{n-1} + k_n^T v_n,     o_n = q_n S_n        (S_0 = 0)
    parallel    O = (Q K^T * D) V,  D_nm = exp(A_n - A_m) for m <= n, else 0;  A = cumsum(a)
    chunk       parallel inside a chunk, recurrent from chunk to chunk

`log_decay` a_n <= 0 decays the state *before* token n is added, so D_nn = 1. Only differences
A_n - A_m <= 0 are ever exponentiated: exp(A_n) and exp(-A_m) apart overflow. Everything runs in at
least fp32, the state too: in bf16 a decay of 0.9989 rounds to 1 and never forgets.

Shapes: q, k, v (B,T,H,D); log_decay (B,T,H); state (B,H,D,D). The 1/sqrt(D) of k is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64


def parallel(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """All outputs (B,T,H,D) through one T x T matrix per head."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v, a = q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide)
    weights = torch.einsum("bthd,bshd->bhts", q, k) * _decay_matrix(a.transpose(1, 2))
    return torch.einsum("bhts,bshd->bthd", weights, v)


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token: outputs (B,T,H,D) and the state after the last token."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v, gamma = q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide).exp()
    outs = []
    for t in range(q.shape[1]):
        state = gamma[:, t, :, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outs.append((q[:, t, :, None, :] @ state)[:, :, 0])
    return torch.stack(outs, 1), state


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk, any length: outputs (B,T,H,D) and the state after the last token."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(wide).transpose(1, 2) for x in (q, k, v))  # (B,H,T,D)
    a = log_decay.to(wide).transpose(1, 2)  # (B,H,T)
    outs = []
    for start in range(0, q.shape[2], chunk):
        part = slice(start, start + chunk)
        q_c, k_c, v_c, a_c = q[:, :, part], k[:, :, part], v[:, :, part], a[:, :, part]
        total = a_c.cumsum(-1)
        inner = ((q_c @ k_c.transpose(-1, -2)) * _decay_matrix(a_c)) @ v_c
        cross = (q_c * total.exp()[..., None]) @ state
        outs.append(inner + cross)
        remaining = (total[..., -1:] - total).exp()[..., None]
        state = total[..., -1, None, None].exp() * state + k_c.transpose(-1, -2) @ (v_c * remaining)
    return torch.cat(outs, 2).transpose(1, 2), state


def _decay_matrix(a_BHT: Tensor) -> Tensor:
    """D (B,H,T,T): exp of the decay between m and n, 0 above the diagonal."""
    total = a_BHT.cumsum(-1)
    difference = total[..., :, None] - total[..., None, :]
    causal = torch.ones(difference.shape[-2:], dtype=torch.bool, device=a_BHT.device).tril()
    return difference.masked_fill(~causal, float("-inf")).exp()
