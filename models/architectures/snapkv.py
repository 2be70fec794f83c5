"""SnapKV: one cut at the end of the prompt, by what its last tokens look at (arXiv 2404.14469, section 4).

    scores     attention of the prompt's last `window` queries over all keys, summed over those queries
    pooled     averaged over `kernel` neighbouring keys (zeros beyond the ends), keys before the window only
    kept       per KV head the top budget - window, and the window itself; nothing is evicted afterwards

A prompt fed in chunks is held whole until it ends and then cut once, as if it had come in one call; its
length is declared when the cache is made. Undeclared, a row's first call is its prompt, and storage has room
for everything.

Deviations, stated: the authors repeat keys and values for every query head first and then choose per query
head; here a KV head's score is the mean over its query heads, as kvpress has it, so that grouped
queries keep their saving. Among equal scores the oldest goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from ..budget import room_of
from ..decoder import Decoder
from ..prompt_cut import PromptCutCache


@dataclass(frozen=True)
class Options:
    """`budget` tokens of the prompt are kept, its last `window` among them; `kernel` (odd) pools scores."""

    budget: int = 256
    window: int = 32
    kernel: int = 5
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.window < room_of(self):
            raise ValueError(f"snapkv needs 1 <= window < budget, not {self.window} and {self.budget}.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"snapkv needs an odd kernel >= 1, not {self.kernel}.")


class SnapCache(PromptCutCache):
    """A key is worth the pooled attention of the last `window` queries; the window stays."""

    def __init__(self, heads, request, options) -> None:
        self.kernel = options.kernel
        super().__init__(heads, request, options.budget, options.window)

    def rate(self, score_BGn, pos_Bn, newest_B):
        before = pos_Bn <= newest_B[:, None] - self.window
        score = score_BGn.masked_fill(~before[:, None], 0.0)
        pooled = F.avg_pool1d(score, self.kernel, stride=1, padding=self.kernel // 2)
        return pooled.masked_fill(~before[:, None], float("inf"))


class Model(Decoder):
    """The Transformer under SnapKV; needs no training of its own."""

    prompt_mode = "once"

    def layer_cache(self, heads, layer, request):
        return SnapCache(heads, request, self.options)

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """Full attention, and the window's rows a second time for the scores."""
        extra = self.bulk_flops(num_tokens)
        if num_tokens > self.options.budget:
            extra += self._pair_flops() * self.shape.num_layers * self.options.window * num_tokens
        return super().prefill_flops(num_tokens, batch) + batch * extra
