"""The network around the attention: projections, convolution, norms, feed-forward, output."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .attention import Layer, angles_per_position

Weights = dict[str, Tensor]


def weights_of(model) -> Weights:
    """All weights by name, in fp64."""
    return {name: value.detach().double() for name, value in model.state_dict().items()}


def rms_norm(x: Tensor, eps: float, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def unit(x_THD: Tensor, scale_H: Tensor) -> Tensor:
    """QK-norm: every head a vector of length 1, times a learned number per head."""
    lengths = x_THD.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    return x_THD / lengths * scale_H[None, :, None]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", torch.zeros(()))


def convolved(x_TC: Tensor, weight_CK: Tensor) -> Tensor:
    """y_t = sum_j w_j x_{t-j}, every channel by itself, nothing before the first token."""
    rows = []
    for t in range(len(x_TC)):
        rows.append(sum(weight_CK[:, j] * x_TC[t - j] for j in range(weight_CK.shape[1]) if t - j >= 0))
    return torch.stack(rows)


def feed_forward(w: Weights, prefix: str, x: Tensor) -> Tensor:
    """down( SiLU(gate x) * up x ); gate and up are the halves of one matrix."""
    gate, up = linear(w, prefix + "gate_up", x).tensor_split(2, -1)
    return linear(w, prefix + "down", gate / (1 + torch.exp(-gate)) * up)


def layer_of(shape, w: Weights, index: int, x_TE: Tensor, factor: float) -> Layer:
    """q, k and v of one layer from its normed input."""
    H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
    prefix = f"blocks.{index}.mixer."
    qkv = linear(w, prefix + "qkv", x_TE)
    if shape.conv:
        qkv = convolved(qkv, w[prefix + "conv.weight"])
    q = qkv[:, : H * D].reshape(-1, H, D)
    k = qkv[:, H * D : (H + G) * D].reshape(-1, G, D)
    v = qkv[:, (H + G) * D :].reshape(-1, G, D)
    if shape.qk_norm:
        q, k = unit(q, w[prefix + "q_scale"]), unit(k, w[prefix + "k_scale"])
    if getattr(shape, "qk_rms", False):
        q = rms_norm(q, shape.norm_eps, w[prefix + "q_norm.weight"])
        k = rms_norm(k, shape.norm_eps, w[prefix + "k_norm.weight"])
    turns = index < shape.num_layers // 2 or shape.rope_upper
    scaling = getattr(shape, "rope_scaling", None)
    return Layer(
        index,
        q,
        k,
        v,
        scale=1.0 if shape.qk_norm else 1 / math.sqrt(D),
        window=shape.sliding_window if index in getattr(shape, "sliding_layers", ()) else None,
        angles=angles_per_position(shape, factor) if turns else None,
        amplitude=1.0 if scaling is None else scaling.amplitude,
    )


def decode(shape, w: Weights, tokens_T: Tensor, attend: Callable, factor: float = 1.0) -> tuple[Tensor, list]:
    """Logits (T,V) and, per layer, what `attend(layer) -> (out_THD, kept)` says it holds.

    Layers run one after the other over the whole sequence: what a layer holds depends on its own queries
    and keys alone, so this order is as good as token by token. `factor` stretches rotary positions.
    """
    x = w["embed.weight"][tokens_T]
    kept = []
    for index in range(shape.num_layers):
        block = f"blocks.{index}."
        normed = rms_norm(x, shape.norm_eps, w[block + "norm1.weight"])
        out_THD, held = attend(layer_of(shape, w, index, normed, factor))
        kept.append(held)
        x = x + linear(w, block + "mixer.out", out_THD.reshape(len(x), -1))
        x = x + feed_forward(w, block + "ffn.", rms_norm(x, shape.norm_eps, w[block + "norm2.weight"]))
    head = w.get("head.weight", w["embed.weight"])  # tied where there is none
    return rms_norm(x, shape.norm_eps, w["norm.weight"]) @ head.T, kept
