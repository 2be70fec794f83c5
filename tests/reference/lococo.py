"""LoCoCo (arXiv 2406.05317): most attended slots stay as they are, the others are mixed by a convolution.

A slot is a key (rotated, never again), a value and a score: the attention it received, summed over query
rows, mean over the query heads of its KV head. Slots lie in the order [heavy, mixed, new]. What was
compressed once has no position any more, so a layer's own sliding window does not hide it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import softmax

#: The cache is compressed when it holds more than `budget + slack` slots; official code has this number.
SLACK = 16


@dataclass
class Slot:
    key_D: Tensor
    value_D: Tensor
    score: float = 0.0
    position: int | None = None  # None: memory
    mixed: bool = False


@dataclass
class Compressor:
    """The weights of one layer: convolutions as (weight (out,in,taps), bias (out)), and alpha."""

    convolutions: list[tuple[Tensor, Tensor]]
    alpha: float

    @classmethod
    def of(cls, weights: dict[str, Tensor], layer: int, bounded: bool = False) -> Compressor:
        prefix = f"compressors.{layer}."
        convs = [prefix + "conv"]  # the first; deeper ones are numbered from 1
        while f"{prefix}convs.{len(convs)}.weight" in weights:
            convs.append(f"{prefix}convs.{len(convs)}")
        pairs = [(weights[name + ".weight"], weights[name + ".bias"]) for name in convs]
        alpha = float(weights[prefix + "alpha"])
        return cls(pairs, 1 / (1 + math.exp(-alpha)) if bounded else alpha)


def convolved(rows: list[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Conv1d over tokens with as many zeros around as keep the length, then ReLU."""
    taps = weight.shape[2]
    out = []
    for t in range(len(rows)):
        total = bias.clone()
        for tap in range(taps):
            source = t + tap - taps // 2
            if 0 <= source < len(rows):
                total += weight[:, :, tap] @ rows[source]
        out.append(total.clamp(min=0))
    return out


def best(slots: list[Slot], count: int) -> list[int]:
    """Indices, in order, of the `count` largest scores; of equals the first is left out."""
    ranked = sorted(range(len(slots)), key=lambda n: (-slots[n].score, -n))
    return sorted(ranked[:count])


def compress(
    slots: list[Slot], budget: int, heavy: float, compressor: Compressor, local: int = 0, sinks: int = 0
) -> list[Slot]:
    """One KV head's slots -> `budget` slots: heavy hitters verbatim, then mixtures of the rest.

    Among the heavy hitters, whatever their score: of the slots that are no mixtures the first `sinks` and the
    last `local`.
    """
    num_mixed = int(budget * (1 - heavy))
    exact = [n for n, slot in enumerate(slots) if not slot.mixed]
    forced = exact[:sinks] + exact[len(exact) - local :]
    free = [n for n in range(len(slots)) if n not in forced]
    won = best([slots[n] for n in free], budget - num_mixed - len(forced))
    verbatim = sorted(forced + [free[n] for n in won])
    rest = [slot for n, slot in enumerate(slots) if n not in verbatim]

    rows = [torch.cat([slot.key_D, slot.value_D]) for slot in rest]
    for weight, bias in compressor.convolutions:
        rows = convolved(rows, weight, bias)
    chosen = best(rest, num_mixed)  # mixture m starts from the m-th of these
    mixed = []
    for m in range(num_mixed):
        share = compressor.alpha * softmax(torch.stack([row[m] for row in rows]))
        share[chosen[m]] += 1 - compressor.alpha
        mixed.append(
            Slot(
                sum(s * slot.key_D for s, slot in zip(share, rest, strict=True)),
                sum(s * slot.value_D for s, slot in zip(share, rest, strict=True)),
                sum(float(s) * slot.score for s, slot in zip(share, rest, strict=True)),
            )
        )
    memory = [slots[n] for n in verbatim] + mixed
    for n, slot in enumerate(memory):
        slot.position, slot.mixed = None, n >= budget - num_mixed
    return memory


def blocks(calls: list[int], block: int) -> list[int]:
    """A call longer than a block runs as several blocks, the last one as long as what is left."""
    return [min(block, size - start) for size in calls for start in range(0, size, block)]


def visible(slot: Slot, t: int, window: int | None) -> bool:
    return window is None or slot.position is None or t - slot.position < window


def lococo(
    layer,
    calls,
    weights: dict[str, Tensor],
    budget: int = 256,
    heavy: float = 0.5,
    kernel: int | None = None,
    block: int = 0,
    scores: str = "last",
    depth: int = 1,
    local: int = 0,
    sinks: int = 0,
    slack: int = SLACK,
    alpha: str = "free",
):
    """`kernel` and `depth` are stated for the record: the weights have them.

    scores=last: only the block just attended counts. scores=accumulated: scores grow with every block;
    a mixture starts from the mixed scores. alpha=bounded: the share is the sigmoid of what the weights hold.
    """
    assert alpha in ("free", "bounded"), alpha
    assert scores in ("last", "accumulated"), scores
    compressor = Compressor.of(weights, layer.index, alpha == "bounded")
    assert len(compressor.convolutions) == depth
    assert kernel is None or all(weight.shape[2] == kernel for weight, _ in compressor.convolutions)
    group = layer.heads // layer.kv_heads
    memory: list[list[Slot]] = [[] for _ in range(layer.kv_heads)]
    out, start = torch.zeros_like(layer.q_THD), 0
    for size in blocks(calls, block or budget):
        for g, slots in enumerate(memory):
            if len(slots) > budget + slack:  # lazily: at the start of the call that would not fit
                memory[g] = compress(slots, budget, heavy, compressor, local, sinks)
            if scores == "last":
                for slot in memory[g]:
                    slot.score = 0.0
        for t in range(start, start + size):
            for g, slots in enumerate(memory):
                key_D = layer.turned(layer.k_TGD[t, g][None], [t])[0]
                slots.append(Slot(key_D, layer.v_TGD[t, g], position=t))
            for h in range(layer.heads):
                slots = [slot for slot in memory[h // group] if visible(slot, t, layer.window)]
                q_1D = layer.turned(layer.q_THD[t, h][None], [t])
                p_N = softmax((torch.stack([s.key_D for s in slots]) * q_1D).sum(1) * layer.scale)
                out[t, h] = p_N @ torch.stack([s.value_D for s in slots])
                for slot, p in zip(slots, p_N.tolist(), strict=True):
                    slot.score += p / group
        start += size
    return out, None
