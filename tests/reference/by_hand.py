"""Layers for examples with a pencil: attention that is written down, or that depends on distance alone."""

from __future__ import annotations

import torch

from . import POLICIES
from .attention import Layer


class Given:
    """A layer whose `affinity[head][t][j]` is what row t gives to key j, divided by the sum of what is seen.

    Values are one-hot, so an output lists probabilities. Query head h reads KV head h // (heads / kv_heads).
    """

    def __init__(self, *affinity: list[list[float]], kv_heads: int | None = None, window: int | None = None):
        self.affinity, self.window = affinity, window
        self.length, self.heads = len(affinity[0]), len(affinity)
        self.kv_heads = kv_heads or self.heads

    def attend(self, t, seen, places):
        rows = []
        for h, affinity in enumerate(self.affinity):
            there = seen[h * self.kv_heads // self.heads]
            visible = [j for j in there if self.window is None or t - j < self.window]
            total = sum(affinity[t][j] for j in visible)
            rows.append({j: affinity[t][j] / total for j in visible})
        return torch.tensor([[row.get(j, 0.0) for j in range(self.length)] for row in rows]), rows


def run(policy, layer, calls=None, **options):
    return POLICIES[policy](layer, calls or [layer.length], **options)


def kept(policy, layer, calls=None, **options):
    return run(policy, layer, calls, **options)[1]


def layer_of_cosines(length: int, **more) -> Layer:
    """q = k = (1, 0) turning by 1 radian per position: the logit is the cosine of the distance."""
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(length, 1, 2)
    values = torch.arange(length, dtype=torch.float64)[:, None, None].expand(length, 1, 2)
    return Layer(0, x, x, values, scale=1.0, angles=[1.0], **more)
