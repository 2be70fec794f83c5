"""YOCO row by row: self-decoder, one K/V pair, cross-decoder; both mixers, every option (arXiv 2405.05254).

    logits_TV = yoco_logits(model, tokens_T)

`model` needs `.shape`, `.options` and `.state_dict()` only. The whole sequence passes every layer: no cache,
no early exit, no segments, so this is what all of those must equal.

Official rotary positions turn the channels (2i, 2i+1). Listed as 0, 2, 4, ..., 1, 3, 5, ... they are the
pairs (i, i + D/2) that `Layer` turns, and a dot product does not care in which order it adds.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from .attention import Layer, angles_per_position
from .decoder import Weights, convolved, feed_forward, linear, rms_norm, unit, weights_of


def yoco_logits(model, tokens_T: Tensor) -> Tensor:
    """Logits (T,V) at every position of one sequence."""
    shape, options, w = model.shape, model.options, weights_of(model)
    x = w["embed.weight"][tokens_T]
    if options.embed_scale:
        x = x * math.sqrt(shape.dim)
    lower = options.self_layers or shape.num_layers // 2
    shared = None
    for index in range(shape.num_layers):
        block = f"blocks.{index}."
        if index == lower:
            shared = shared_kv(shape, w, x)
        normed = rms_norm(x, shape.norm_eps, w[block + "norm1.weight"])
        if index >= lower:
            mixed = cross_attention(shape, options, w, index, normed, *shared)
        elif options.mixer == "retention":
            mixed = retention_mixer(shape, options, w, index, normed)
        else:
            mixed = window_attention(shape, options, w, index, normed)
        x = x + linear(w, block + "mixer.out", mixed)
        x = x + feed_forward(w, block + "ffn.", rms_norm(x, shape.norm_eps, w[block + "norm2.weight"]))
    head = w.get("head.weight", w["embed.weight"])  # tied where there is none
    return rms_norm(x, shape.norm_eps, w["norm.weight"]) @ head.T


# --- attention ----------------------------------------------------------------------------------


def heads_of(w: Weights, name: str, x_TE: Tensor, widths: list[int], head_dim: int) -> list[Tensor]:
    """A projection and its convolution (beside it or `NAME_conv`), cut into parts of heads (T,heads,D)."""
    projected = linear(w, name, x_TE)
    conv = name.rpartition(".")[0] + ".conv.weight" if "." in name else name + "_conv.weight"
    if conv in w:
        projected = convolved(projected, w[conv])
    return [part.reshape(len(x_TE), -1, head_dim) for part in projected.split(widths, -1)]


def angles_of(shape, options, head_dim: int, turns: bool = True) -> list[float] | None:
    """Turn per position of each channel pair; official: from 1 to exactly 1/base, in both halves."""
    if options.rope == "official":
        pairs = head_dim // 2
        return [shape.rope_base ** (-i / max(pairs - 1, 1)) for i in range(pairs)]
    return angles_per_position(SimpleNamespace(**vars(shape) | {"head_dim": head_dim})) if turns else None


def layer(shape, options, index: int, q: Tensor, k: Tensor, v: Tensor, **more) -> Layer:
    D = q.shape[-1]
    if options.rope == "official":
        order = [*range(0, D, 2), *range(1, D, 2)]
        q, k = q[..., order], k[..., order]
    scaling = shape.rope_scaling
    more["amplitude"] = 1.0 if scaling is None else scaling.amplitude
    return Layer(index, q, k, v, scale=1.0 if shape.qk_norm else 1 / math.sqrt(D), **more)


def attended(layer: Layer) -> Tensor:
    """Every row over itself and all before it, as far as the layer's window reaches: (T, H*D)."""
    rows = []
    for t in range(layer.length):
        seen = [list(range(t + 1))] * layer.kv_heads
        places = [{j: j for j in range(t + 1)}] * layer.kv_heads
        rows.append(layer.attend(t, seen, places)[0].flatten())
    return torch.stack(rows)


def window_attention(shape, options, w: Weights, index: int, x_TE: Tensor) -> Tensor:
    """As many KV heads as query heads; each row sees the newest C tokens, itself included."""
    prefix, D = f"blocks.{index}.mixer.", shape.head_dim
    q, k, v = heads_of(w, prefix + "qkv", x_TE, [shape.num_heads * D] * 3, D)
    if shape.qk_norm:
        q, k = unit(q, w[prefix + "q_scale"]), unit(k, w[prefix + "k_scale"])
    window, angles = options.window or shape.window, angles_of(shape, options, D)
    return attended(layer(shape, options, index, q, k, v, window=window, angles=angles))


def shared_kv(shape, w: Weights, x_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The one pair, from the stream under a norm of its own."""
    normed = rms_norm(x_TE, shape.norm_eps, w["kv_norm.weight"])
    k, v = heads_of(w, "kv", normed, [shape.num_kv_heads * shape.head_dim] * 2, shape.head_dim)
    return (unit(k, w["k_scale"]) if shape.qk_norm else k), v


def cross_attention(shape, options, w: Weights, index: int, x_TE: Tensor, k: Tensor, v: Tensor) -> Tensor:
    prefix, D = f"blocks.{index}.mixer.", shape.head_dim
    (q,) = heads_of(w, prefix + "q", x_TE, [shape.num_heads * D], D)
    if shape.qk_norm:
        q = unit(q, w[prefix + "q_scale"])
    angles = angles_of(shape, options, D, turns=shape.rope_upper)
    return attended(layer(shape, options, index, q, k, v, angles=angles))


# --- gated retention ----------------------------------------------------------------------------


def retention(q: Tensor, k: Tensor, v: Tensor, log_decay_TH: Tensor) -> Tensor:
    """o_n = sum_{m <= n} (q_n . k_m) exp(a_{m+1} + ... + a_n) v_m, straight from the sum: (T,H,D)."""
    out = torch.zeros_like(v)
    for n in range(len(q)):
        for m in range(n + 1):
            decay = torch.exp(log_decay_TH[m + 1 : n + 1].sum(0))
            out[n] += ((q[n] * k[m]).sum(-1) * decay)[:, None] * v[m]
    return out


def retention_mixer(shape, options, w: Weights, index: int, x_TE: Tensor) -> Tensor:
    """Full width in heads of retention_head_dim; gate logsigmoid / 16; norm per head, then SiLU gate."""
    prefix, D = f"blocks.{index}.mixer.", shape.retention_head_dim or shape.head_dim
    q, k, v = heads_of(w, prefix + "qkv", x_TE, [shape.dim] * 3, D)
    if shape.qk_norm:
        ones = torch.ones(q.shape[1], dtype=q.dtype)
        q, k = unit(q, ones), unit(k, ones)
    given = layer(shape, options, index, q, k, v, angles=angles_of(shape, options, D))
    places = list(range(len(x_TE)))
    q, k = (
        torch.stack([given.turned(x[:, head], places) for head in range(x.shape[1])], 1)
        for x in (given.q_THD, given.k_TGD)
    )
    log_decay_TH = -torch.log1p(torch.exp(-linear(w, prefix + "decay", x_TE))) / 16
    out = retention(q, k * given.scale, v, log_decay_TH)
    out = rms_norm(out, shape.norm_eps, torch.ones(D, dtype=out.dtype)).flatten(1)
    if options.gain:
        out = out * w[prefix + "norm_gain"]
    gate = linear(w, prefix + "gate", x_TE)
    return gate / (1 + torch.exp(-gate)) * out
