"""What the kernel table compares: per operation sizes, inputs, the work it takes, and who can do it.

    ours        models.kernels.<op>.fused
    torch       models.kernels.<op>.naive: the definition
    sdpa-...    torch's scaled_dot_product_attention, one backend alone
    flex        torch's flex_attention, compiled
    fla         flash-linear-attention's chunk_simple_gla, where it is installed

A contestant is asked for the same output; whoever cannot do a case raises, and the table says so. Work is
what no implementation can do without: inputs read once, outputs written once, and products of operands that
are visible to each other. Retention: one D x D update and one read-out per token, whatever the chunks are.

Legend of sizes: B rows, T new tokens, S keys, H query heads, G KV heads, D channels, M slots, r candidates.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, bias, sdpa_kernel

from models import kernels

Contestant = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """One operation at one size. `make` builds inputs on a device and answers who does it, by name."""

    op: str
    size: dict[str, int]
    flops: float
    bytes: float
    make: Callable[[torch.device, torch.dtype], dict[str, Contestant]]


def cases(tiny: bool) -> Iterator[Case]:
    """Sizes of the papers' plans (3B and 7B shapes); `tiny` ones end within seconds in an interpreter."""
    if tiny:
        yield _retention(B=1, T=40, H=2, D=16)
        yield _decode(B=2, S=70, H=4, G=2, D=16)
        yield _prompt(B=1, T=24, S=40, H=2, G=1, D=16, window=16)
        yield _sums(B=1, T=24, S=40, H=2, G=1, D=16)
        yield _mix(B=1, G=2, r=40, M=16, D=16)
        return
    for T in (4096, 16384, 65536):
        yield _retention(B=1, T=T, H=12, D=256)
    for S in (32768, 131072, 1048576):
        yield _decode(B=1, S=S, H=24, G=8, D=128)
    yield _decode(B=64, S=512, H=32, G=32, D=128)
    yield _prompt(B=1, T=4096, S=4096, H=24, G=8, D=128, window=0)
    yield _prompt(B=1, T=4096, S=131072, H=24, G=8, D=128, window=0)
    yield _prompt(B=1, T=4096, S=5119, H=24, G=8, D=128, window=1024)
    yield _sums(B=1, T=4096, S=4096, H=32, G=32, D=128)
    yield _mix(B=16, G=32, r=528, M=512, D=128)


def _randn(*shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype)


def _pairs(T: int, S: int, window: int = 0) -> float:
    """(query, key) pairs that see each other, bottom-right causal."""
    return float(sum(min(S - T + t + 1, window or S) for t in range(T)))


def _retention(B: int, T: int, H: int, D: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
        q, k, v = (_randn(B, T, H, D, device=device, dtype=dtype) / D**0.25 for _ in range(3))
        decay = F.logsigmoid(torch.randn(B, T, H, device=device) + 4)
        state = torch.zeros(B, H, D, D, device=device)
        ours, torchs = kernels.fused("gated_retention"), _naive("gated_retention")

        def fla() -> Tensor:
            from fla.ops.simple_gla import chunk_simple_gla

            return chunk_simple_gla(
                q, k, v, g=decay, scale=1.0, initial_state=state, output_final_state=True
            )[0]

        return {
            "ours": lambda: ours.chunked(q, k, v, decay, state)[0],
            "torch": lambda: torchs.chunked(q, k, v, decay, state)[0],
            "fla": fla,
        }

    size = {"B": B, "T": T, "H": H, "D": D}
    state_bytes = 2 * 4 * B * H * D * D
    return Case("gated_retention", size, 4.0 * B * T * H * D * D, 2.0 * 4 * B * T * H * D + state_bytes, make)


def _decode(B: int, S: int, H: int, G: int, D: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
        q = _randn(B, H, D, device=device, dtype=dtype)
        k, v = (_randn(B, G, S, D, device=device, dtype=dtype) for _ in range(2))
        ours, torchs, scale = kernels.fused("decode_attention"), _naive("decode_attention"), D**-0.5

        def sdpa() -> Tensor:
            return F.scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=H > G)[:, :, 0]

        return {
            "ours": lambda: ours.attend(q, k, v, scale)[0],
            "ours, with scores": lambda: ours.attend(q, k, v, scale, choices=1)[0],
            "torch": lambda: torchs.attend(q, k, v, scale)[0],
            **_backends(sdpa),
        }

    size = {"B": B, "S": S, "H": H, "G": G, "D": D}
    return Case("decode_attention", size, 4.0 * B * H * S * D, 2.0 * 2 * B * G * S * D, make)


def _prompt(B: int, T: int, S: int, H: int, G: int, D: int, window: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
        q = _randn(B, T, H, D, device=device, dtype=dtype)
        k, v = (_randn(B, G, S, D, device=device, dtype=dtype) for _ in range(2))
        ours, torchs, scale = kernels.fused("window_attention"), _naive("window_attention"), D**-0.5

        def sdpa() -> Tensor:
            if window:
                raise NotImplementedError("no window without a T x S mask")
            mask = {"is_causal": True} if T == S else {"attn_mask": bias.causal_lower_right(T, S)}
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, scale=scale, enable_gqa=H > G, **mask
            )
            return out.transpose(1, 2)

        mask = functools.cache(lambda: _block_mask(T, S, window, device))

        def flex() -> Tensor:
            out = _flex()(q.transpose(1, 2), k, v, block_mask=mask(), scale=scale, enable_gqa=H > G)
            return out.transpose(1, 2)

        return {
            "ours": lambda: ours.attend(q, k, v, scale, window or None)[0],
            "torch": lambda: torchs.attend(q, k, v, scale, window or None)[0],
            **_backends(sdpa),
            "flex": flex,
        }

    size = {"B": B, "T": T, "S": S, "H": H, "G": G, "D": D, "window": window}
    flops = 4.0 * B * H * D * _pairs(T, S, window)
    return Case("window_attention", size, flops, 2.0 * B * D * (2 * T * H + 2 * S * G), make)


def _sums(B: int, T: int, S: int, H: int, G: int, D: int) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
        q = _randn(B, T, H, D, device=device, dtype=dtype)
        k, v = (_randn(B, G, S, D, device=device, dtype=dtype) for _ in range(2))
        scale = D**-0.5
        lse = kernels.fused("window_attention").attend(q, k, v, scale)[1]
        ours, torchs = kernels.fused("column_sums"), _naive("column_sums")
        return {
            "ours": lambda: ours.column_sums(q, k, lse, scale),
            "torch": lambda: torchs.column_sums(q, k, lse, scale),
        }

    size = {"B": B, "T": T, "S": S, "H": H, "G": G, "D": D}
    return Case("column_sums", size, 2.0 * B * H * D * _pairs(T, S), 2.0 * B * D * (T * H + S * G), make)


def _mix(B: int, G: int, r: int, M: int, D: int, taps: int = 21) -> Case:
    def make(device: torch.device, dtype: torch.dtype) -> dict[str, Contestant]:
        k, v = (_randn(B, G, r, D, device=device, dtype=dtype) for _ in range(2))
        weight = _randn(M, 2 * D, taps, device=device, dtype=dtype) / (2 * D * taps) ** 0.5
        offset, alpha = torch.zeros(M, device=device, dtype=dtype), torch.tensor(0.5, device=device)
        chosen = torch.randint(r, (B, G, M), device=device)
        ours, torchs = kernels.fused("lococo_mix"), _naive("lococo_mix")
        inputs = (k, v, weight, offset, alpha, chosen)
        return {"ours": lambda: ours.mix(*inputs)[0], "torch": lambda: torchs.mix(*inputs)[0]}

    size = {"B": B, "G": G, "r": r, "M": M, "D": D, "taps": taps}
    flops = 2.0 * B * G * r * M * 2 * D * (taps + 1)
    return Case("lococo_mix", size, flops, 2.0 * (B * G * 2 * D * (r + M) + M * 2 * D * taps), make)


def _naive(op: str) -> Any:
    return importlib.import_module(f"models.kernels.{op}.naive")


def _backends(sdpa: Contestant) -> dict[str, Contestant]:
    """torch's attention by each backend alone: what it would choose itself is one of these."""

    def of(backend: SDPBackend) -> Contestant:
        def call() -> Tensor:
            with sdpa_kernel(backend):
                return sdpa()

        return call

    return {
        "sdpa-flash": of(SDPBackend.FLASH_ATTENTION),
        "sdpa-cudnn": of(SDPBackend.CUDNN_ATTENTION),
        "sdpa-efficient": of(SDPBackend.EFFICIENT_ATTENTION),
    }


@functools.cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _block_mask(T: int, S: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        back = t + (S - T) - s
        return (back >= 0) & (back < (window or S + 1))

    return create_block_mask(visible, None, None, T, S, device=str(device))
