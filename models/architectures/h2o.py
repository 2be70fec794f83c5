"""H2O: keep the recent tokens and the heavy hitters, by attention summed up (arXiv 2306.14048, section 4).

A key's score is the attention that every query so far paid it, never normalised, never decayed, so early
tokens are favoured. Attend, add the newest row, then evict the lowest score among all but the `recent`
newest; what is evicted loses its score.

    prompt=bulk       as published (real eviction): the prompt attends in full, column sums of its
                      attention are the first scores, then one eviction. A prompt fed in chunks evicts
                      after every chunk, which is another algorithm: rows record mode and chunk.
    prompt=stepwise   the rule at every token of the prompt, too
    select=layer      the TOVA paper's H2O-layer: one choice per layer, by the mean over all heads

Deviations, stated: published code is multi-head only; with grouped queries a KV head's score is the mean
over its query heads. Among equal scores the oldest goes. Attention is seen over budget + 1 keys, as for
every policy here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..cache import TensorSpec
from ..decoder import Decoder
from ..eviction import Evictor


@dataclass(frozen=True)
class Options:
    """`budget` tokens are kept, the share `heavy` of them by score, the others because they are newest."""

    budget: int = 256
    heavy: float = 0.5
    prompt: Literal["bulk", "stepwise"] = "bulk"
    select: Literal["head", "layer"] = "head"
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1 or not 0 <= self.heavy <= 1:
            raise ValueError(
                f"h2o needs budget >= 1 and 0 <= heavy <= 1, not {self.budget} and {self.heavy}."
            )

    @property
    def recent(self) -> int:
        """Newest tokens that are never evicted."""
        return self.budget - int(self.budget * self.heavy)


class H2oCache(Evictor):
    """A key is worth the attention it got so far."""

    remembers = True

    def __init__(self, heads, request, options) -> None:
        self.recent = options.recent
        super().__init__(heads, request, options.budget, options.select == "head", options.prompt == "bulk")

    def remembered(self, wide):
        return {"score": TensorSpec((self.choices, self.slots), wide, "metadata")}

    def observe(self, meta, rows_BPTn, pos_BPn, positions_BT):
        meta["score"] += rows_BPTn.sum(2)

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
        return meta["score"].masked_fill(pos_BPn > newest_B[:, None, None] - self.recent, float("inf"))


class Model(Decoder):
    """The Transformer under H2O; needs no training of its own."""

    implementations = ("torch", "fused")

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.prompt_mode = options.prompt

    def layer_cache(self, heads, layer, request):
        return H2oCache(heads, request, self.options)

    def prefill_flops(self, num_tokens, batch=1) -> int:
        extra = self.bulk_flops(num_tokens) if self.prompt_mode == "bulk" else 0
        return super().prefill_flops(num_tokens, batch) + batch * extra
