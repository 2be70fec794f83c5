"""Naive references, written from the definitions: one sequence, one row at a time, Python lists.

Nothing here shares code with `models/`; only weights are read, by name. Slow on purpose.

    reference_logits(model, tokens_T, policy)     Transformer whose layers attend by `policy`
    yoco_logits(model, tokens_T)                  YOCO, both mixers

A policy is `policy(layer, q_THD, k_TGD, v_TGD, scale) -> (T,H,D)` on rotated queries and keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# --- bricks -------------------------------------------------------------------------------------


def weights_of(model) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in model.state_dict().items()}


def rms(x: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def convolved(x_TC: Tensor, weight_CK: Tensor | None) -> Tensor:
    """y_t = sum_j w_j x_{t-j}."""
    if weight_CK is None:
        return x_TC
    rows = []
    for t in range(len(x_TC)):
        terms = [weight_CK[:, j] * x_TC[t - j] for j in range(weight_CK.shape[1]) if t - j >= 0]
        rows.append(sum(terms))
    return torch.stack(rows)


def rotated(x_THD: Tensor, base: float, fraction: float) -> Tensor:
    """Pair (i, i + D/2) as a complex number, turned by position * base^(-i / turning pairs)."""
    pairs = x_THD.shape[-1] // 2
    turning = round(pairs * fraction)
    numbers = torch.complex(x_THD[..., :pairs].contiguous(), x_THD[..., pairs:].contiguous())
    angle = [base ** (-i / turning) if i < turning else 0.0 for i in range(pairs)]
    positions = torch.arange(len(x_THD), dtype=torch.float64)
    turns = torch.exp(1j * positions[:, None] * torch.tensor(angle, dtype=torch.float64))
    turned = numbers * turns[:, None, :]
    return torch.cat([turned.real, turned.imag], -1)


def unit(x_THD: Tensor, scale_H: Tensor | None) -> Tensor:
    x = x_THD / x_THD.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    return x if scale_H is None else x * scale_H[None, :, None]


def attend_row(q_HD: Tensor, keys: list[Tensor], values: list[Tensor], scale: float):
    """One query row over listed keys (each (G,D)): output (H,D) and probabilities (H,n)."""
    group = len(q_HD) // len(keys[0])
    outs, probs = [], []
    for h in range(len(q_HD)):
        logits = torch.stack([(q_HD[h] * key[h // group]).sum() * scale for key in keys])
        p = torch.exp(logits - logits.max())
        p = p / p.sum()
        outs.append(sum(p[j] * values[j][h // group] for j in range(len(keys))))
        probs.append(p)
    return torch.stack(outs), torch.stack(probs)


def feed_forward(w: dict, prefix: str, x: Tensor) -> Tensor:
    both = x @ w[prefix + "gate_up.weight"].T
    gate, up = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
    return (gate / (1 + torch.exp(-gate)) * up) @ w[prefix + "down.weight"].T


# --- decoders -----------------------------------------------------------------------------------


def self_attention(shape, w: dict, prefix: str, x: Tensor, layer: int, kv_heads: int, policy) -> Tensor:
    H, D = shape.num_heads, shape.head_dim
    qkv = convolved(x @ w[prefix + "qkv.weight"].T, w.get(prefix + "conv.weight"))
    q = qkv[:, : H * D].reshape(-1, H, D)
    k = qkv[:, H * D : (H + kv_heads) * D].reshape(-1, kv_heads, D)
    v = qkv[:, (H + kv_heads) * D :].reshape(-1, kv_heads, D)
    scale = 1 / math.sqrt(D)
    if shape.qk_norm:
        q, k, scale = unit(q, w[prefix + "q_scale"]), unit(k, w[prefix + "k_scale"]), 1.0
    if layer < shape.num_layers // 2 or shape.rope_upper:
        q = rotated(q, shape.rope_base, shape.rope_fraction)
        k = rotated(k, shape.rope_base, shape.rope_fraction)
    out = policy(layer, q, k, v, scale)
    return out.reshape(len(x), -1) @ w[prefix + "out.weight"].T


def finish_layer(shape, w: dict, layer: int, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + mixed
    normed = rms(x, shape.norm_eps) * w[f"blocks.{layer}.norm2.weight"]
    return x + feed_forward(w, f"blocks.{layer}.ffn.", normed)


def logits_of(shape, w: dict, x: Tensor) -> Tensor:
    return (rms(x, shape.norm_eps) * w["norm.weight"]) @ w["head.weight"].T


def reference_logits(model, tokens_T: Tensor, policy) -> Tensor:
    """All logits (T,V): layers in order, and within a layer whatever order the policy wants."""
    shape, w = model.shape, weights_of(model)
    x = w["embed.weight"][tokens_T]
    for layer in range(shape.num_layers):
        normed = rms(x, shape.norm_eps) * w[f"blocks.{layer}.norm1.weight"]
        prefix = f"blocks.{layer}.mixer."
        mixed = self_attention(shape, w, prefix, normed, layer, shape.num_kv_heads, policy)
        x = finish_layer(shape, w, layer, x, mixed)
    return logits_of(shape, w, x)


def retention(q: Tensor, k: Tensor, v: Tensor, log_decay_TH: Tensor) -> Tensor:
    """o_n = sum_{m <= n} (q_n . k_m) exp(a_{m+1} + ... + a_n) v_m, straight from the sum."""
    out = torch.zeros_like(v)
    for n in range(len(q)):
        for m in range(n + 1):
            decay = torch.exp(log_decay_TH[m + 1 : n + 1].sum(0))
            out[n] += ((q[n] * k[m]).sum(-1) * decay)[:, None] * v[m]
    return out


def retention_mixer(shape, w: dict, prefix: str, x: Tensor) -> Tensor:
    D = shape.retention_head_dim or shape.head_dim
    qkv = convolved(x @ w[prefix + "qkv.weight"].T, w.get(prefix + "conv.weight"))
    q, k, v = (qkv[:, i * shape.dim : (i + 1) * shape.dim].reshape(len(x), -1, D) for i in range(3))
    if shape.qk_norm:
        q, k = unit(q, None), unit(k, None)
    q = rotated(q, shape.rope_base, shape.rope_fraction)
    k = rotated(k, shape.rope_base, shape.rope_fraction) / (1 if shape.qk_norm else math.sqrt(D))
    log_decay = -torch.log1p(torch.exp(-(x @ w[prefix + "decay.weight"].T))) / 16
    out = rms(retention(q, k, v, log_decay), shape.norm_eps).reshape(len(x), -1) * w[prefix + "norm_gain"]
    gate = x @ w[prefix + "gate.weight"].T
    return (gate / (1 + torch.exp(-gate)) * out) @ w[prefix + "out.weight"].T


def yoco_logits(model, tokens_T: Tensor) -> Tensor:
    """All logits (T,V) of YOCO: lower half by its mixer, one K/V pair, upper half reads it."""
    shape, w, half = model.shape, weights_of(model), model.shape.num_layers // 2
    H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
    window = model.options.window or shape.window
    x = w["embed.weight"][tokens_T]
    for layer in range(half):
        normed = rms(x, shape.norm_eps) * w[f"blocks.{layer}.norm1.weight"]
        prefix = f"blocks.{layer}.mixer."
        if model.options.mixer == "retention":
            mixed = retention_mixer(shape, w, prefix, normed)
        else:
            mixed = self_attention(shape, w, prefix, normed, layer, H, windowed(window, 0))
        x = finish_layer(shape, w, layer, x, mixed)

    kv = (rms(x, shape.norm_eps) * w["kv_norm.weight"]) @ w["kv.weight"].T
    kv = convolved(kv, w.get("kv_conv.weight"))
    k, v = kv[:, : G * D].reshape(-1, G, D), kv[:, G * D :].reshape(-1, G, D)
    k = unit(k, w["k_scale"]) if shape.qk_norm else k
    k = rotated(k, shape.rope_base, shape.rope_fraction) if shape.rope_upper else k
    for layer in range(half, shape.num_layers):
        prefix = f"blocks.{layer}.mixer."
        normed = rms(x, shape.norm_eps) * w[f"blocks.{layer}.norm1.weight"]
        q = convolved(normed @ w[prefix + "q.weight"].T, w.get(prefix + "conv.weight")).reshape(-1, H, D)
        q = unit(q, w[prefix + "q_scale"]) if shape.qk_norm else q
        q = rotated(q, shape.rope_base, shape.rope_fraction) if shape.rope_upper else q
        scale = 1.0 if shape.qk_norm else 1 / math.sqrt(D)
        out = full(layer, q, k, v, scale)
        x = finish_layer(shape, w, layer, x, out.reshape(len(x), -1) @ w[prefix + "out.weight"].T)
    return logits_of(shape, w, x)


# --- policies -----------------------------------------------------------------------------------


def over(visible):
    """Attention in which row i sees exactly the positions `visible(layer, i)`."""

    def policy(layer, q, k, v, scale):
        rows = []
        for i in range(len(q)):
            seen = visible(layer, i)
            rows.append(attend_row(q[i], [k[j] for j in seen], [v[j] for j in seen], scale)[0])
        return torch.stack(rows)

    return policy


full = over(lambda layer, i: list(range(i + 1)))


def windowed(recent: int, sinks: int):
    """The first `sinks` keys and the newest `recent`, the query's own among them."""
    return over(lambda layer, i: [j for j in range(i + 1) if j < sinks or i - j < recent])


def tova(budget: int, kept: dict[tuple[int, int], list[int]] | None = None):
    """Step-wise TOVA as a masked pass: row t sees survivors and itself, then the least attended goes.

    Notes the survivors after row t in `kept[layer, t]`.
    """

    def policy(layer, q, k, v, scale):
        survivors: list[int] = []
        rows = []
        for t in range(len(q)):
            survivors.append(t)
            out, probs = attend_row(q[t], [k[j] for j in survivors], [v[j] for j in survivors], scale)
            rows.append(out)
            if len(survivors) > budget:
                score = [sum(float(p[n]) for p in probs) / len(probs) for n in range(len(survivors))]
                survivors.pop(score.index(min(score)))  # index: the first, i.e. the oldest of equals
            if kept is not None:
                kept[layer, t] = list(survivors)
        return torch.stack(rows)

    return policy


def tova_bulk(budget: int, calls: list[int], kept: dict[int, list[int]] | None = None):
    """Bulk TOVA: each call attends in full to what is held, then keeps the top `budget` by its last row."""

    def policy(layer, q, k, v, scale):
        survivors: list[int] = []
        rows, start = [], 0
        for size in calls:
            for t in range(start, start + size):
                seen = survivors + list(range(start, t + 1))
                out, probs = attend_row(q[t], [k[j] for j in seen], [v[j] for j in seen], scale)
                rows.append(out)
            score = probs.mean(0).tolist()
            ranked = sorted(range(len(seen)), key=lambda n: (-score[n], -seen[n]))
            survivors = sorted(seen[n] for n in ranked[:budget])
            start += size
        if kept is not None:
            kept[layer] = survivors
        return torch.stack(rows)

    return policy


def _blocks(calls: list[int], block: int) -> list[int]:
    return [min(block, call - start) for call in calls for start in range(0, call, block)]


def _top(scores: list[float], count: int) -> tuple[list[int], list[int]]:
    """Indices of the `count` largest (the newest of equals first) and of the others, both in order."""
    ranked = sorted(range(len(scores)), key=lambda n: (-scores[n], -n))
    return sorted(ranked[:count]), sorted(ranked[count:])


def _fold(options, w: dict, layer: int, slots: list, scores: list[float]) -> list:
    """One KV head's slots, a list of (key, value), folded to `budget` of them."""
    mixed = int(options.budget * (1 - options.heavy))
    heavy, rest = _top(scores, options.budget - mixed)
    weight, bias = w[f"compressors.{layer}.conv.weight"], w[f"compressors.{layer}.conv.bias"]
    alpha = w[f"compressors.{layer}.alpha"]
    channels = [torch.cat(slots[n]) for n in rest]
    reach = options.kernel // 2
    z = []  # one vector of all output channels per token of the rest
    for t in range(len(rest)):
        total = bias.clone()
        for tap in range(options.kernel):
            if 0 <= t + tap - reach < len(rest):
                total += weight[:, :, tap] @ channels[t + tap - reach]
        z.append(total.clamp(min=0))
    best, _ = _top([scores[n] for n in rest], mixed)
    memory = [slots[n] for n in heavy]
    for m in range(mixed):
        exps = [torch.exp(z[t][m]) for t in range(len(rest))]
        share = [alpha * e / sum(exps) + (1 - alpha) * float(t == best[m]) for t, e in enumerate(exps)]
        key = sum(share[t] * slots[n][0] for t, n in enumerate(rest))
        value = sum(share[t] * slots[n][1] for t, n in enumerate(rest))
        memory.append((key, value))
    return memory


def _lazily(calls: list[int], block: int, limit: int, shrink):
    """Blocks that attend to [memory, block so far]; `shrink(layer, slots, scores)` runs before a block
    where more than `limit` slots are filled. Scores: the last block's, summed over its queries, mean
    over the query heads of the KV head."""

    def policy(layer, q, k, v, scale):
        heads, kv_heads = q.shape[1], k.shape[1]
        slots: list[list] = [[] for _ in range(kv_heads)]
        scores: list[list[float]] = [[] for _ in range(kv_heads)]
        out, start = torch.zeros_like(q), 0
        for size in _blocks(calls, block):
            if len(slots[0]) > limit:
                slots = [shrink(layer, slots[g], scores[g]) for g in range(kv_heads)]
            before = len(slots[0])
            for g in range(kv_heads):
                slots[g] += [(k[t, g], v[t, g]) for t in range(start, start + size)]
                scores[g] = [0.0] * len(slots[g])
            group = heads // kv_heads
            for i in range(size):
                for h in range(heads):
                    seen = slots[h // group][: before + i + 1]
                    keys, values = [s[0][None] for s in seen], [s[1][None] for s in seen]
                    row, probs = attend_row(q[start + i, h][None], keys, values, scale)
                    out[start + i, h] = row[0]
                    for n in range(len(seen)):
                        scores[h // group][n] += float(probs[0, n]) / group
            start += size
        return out

    return policy


def lococo(model, calls: list[int]):
    """LoCoCo as in section 4 of the notes, with our stated deviations (blocks, grouped queries)."""
    options, w = model.options, weights_of(model)
    block = options.block or options.budget

    def shrink(layer, slots, scores):
        return _fold(options, w, layer, slots, scores)

    return _lazily(calls, block, options.budget + 16, shrink)


def top_by_last_call(budget: int, block: int, calls: list[int]):
    """Keep the top `budget` slots, as they are, by the attention of the last block: nothing is mixed."""

    def shrink(layer, slots, scores):
        return [slots[n] for n in _top(scores, budget)[0]]

    return _lazily(calls, block, budget + 16, shrink)
