"""The recipe of a training: how many tokens, at which learning rates, on which schedule.

    warm-up over 60 steps, constant, linear to 2 % over the last 40 % of the tokens

The budget counts tokens, never time, so a slow machine trains the same network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What decides the trained parameters, besides network and batches (`log_every_s` decides nothing).

    `clip=0` leaves gradients alone. Raises ValueError for a budget or a schedule that makes no sense.
    """

    total_tokens: int = 6_000_000
    tokens_per_step: int = 2048
    warmup_steps: int = 60
    decay_share: float = 0.4
    final_lr_share: float = 0.02
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    autocast_bf16: bool = True
    seed: int = 0
    induction_heads: int = 2
    log_every_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("total_tokens", "tokens_per_step"):
            if getattr(self, name) <= 0:
                raise ValueError(f"the recipe needs a positive {name}, not {getattr(self, name)}.")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"the recipe needs decay_share between 0 and 1, not {self.decay_share}.")

    @property
    def steps(self) -> int:
        """Steps of `tokens_per_step` tokens each; the last one completes the budget."""
        return math.ceil(self.total_tokens / self.tokens_per_step)

    def lr_share(self, step: int) -> float:
        """Learning rate at `step` (from 0) as a share of the highest."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay_steps = self.decay_share * self.steps
        if decay_steps == 0:
            return warm
        left = min(1.0, (self.steps - step) / decay_steps)
        return min(warm, self.final_lr_share + (1 - self.final_lr_share) * left)
