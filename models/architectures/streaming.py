"""StreamingLLM: the first `sinks` tokens and the newest, positions counted in the cache (arXiv 2309.17453).

As in `window`, but positions are those of the cache: the n visible keys stand at 0..n-1 and the query at
n-1, however long the text. The authors keep keys un-rotated and turn all of them at every step; the same
numbers come cheaper. Between the query and a recent key the distance is what it is in the text, so those
keys may stay as they were turned. Only the distance to the sinks changes: a second copy of the query,
turned to n-1 instead of its true position, meets the sinks, which stand at their own 0..sinks-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..decoder import Decoder
from .window import BudgetedWindow
from .window import Options as WindowOptions


@dataclass(frozen=True)
class Options(WindowOptions):
    """`budget` tokens are kept after each step, of which the first `sinks` for ever."""


class StreamingCache(BudgetedWindow):
    """A ring whose queries come twice: [turned to the true position ; turned to the place in the cache]."""

    def placed(self, q_BTHD, positions_BT):
        # The newest of n visible keys stands at n - 1: at most the last of budget + 1 places.
        place_BT = positions_BT.clamp(max=self.sinks + self.recent - 1)
        # True positions last: keys are turned to the same ones next.
        far = self.heads.rotate(q_BTHD, place_BT)
        return torch.cat([self.heads.rotate(q_BTHD, positions_BT), far], -1)

    def distance(self, i, j):
        # In the cache a sink is never further than the cache is long.
        place = i.clamp(max=self.sinks + self.recent - 1)
        return torch.where(j < self.sinks, place - j, i - j)

    def mix(self, q_BTHD, k_BGSD, v_BGSD, mask_BTS, pos_BS):
        near, far = q_BTHD.chunk(2, -1)
        k_BGSD = k_BGSD.to(torch.promote_types(k_BGSD.dtype, torch.float32))
        logits = _logits(near, k_BGSD, self.heads.scale)
        # Sinks lie in the first slots of the ring, and in the first columns of a first call.
        for start in {0, self.slots} if logits.shape[-1] > self.slots else {0}:
            part = slice(start, start + self.sinks)
            sink_BS = (pos_BS[:, part] >= 0) & (pos_BS[:, part] < self.sinks)
            placed = _logits(far, k_BGSD[:, :, part], self.heads.scale)
            logits[..., part] = torch.where(sink_BS[:, None, None, None], placed, logits[..., part])
        if mask_BTS is not None:
            logits = logits.masked_fill(~mask_BTS[:, None, None], float("-inf"))
        probs_BGRTS = logits.softmax(-1).to(v_BGSD.dtype)
        out_BGRTD = probs_BGRTS @ v_BGSD[:, :, None]
        return out_BGRTD.flatten(1, 2).transpose(1, 2)


def _logits(q_BTHD: Tensor, k_BGSD: Tensor, scale: float) -> Tensor:
    """(B,G,R,T,S) in the dtype of the keys; R query heads per KV head."""
    q_BGRTD = q_BTHD.to(k_BGSD.dtype).unflatten(2, (k_BGSD.shape[1], -1)).permute(0, 2, 3, 1, 4)
    return (q_BGRTD * scale) @ k_BGSD[:, :, None].transpose(-1, -2)


class Model(Decoder):
    """The Transformer under StreamingLLM; needs no training of its own."""

    prompt_mode = "stepwise"

    def decode_flops(self, num_tokens, batch=1) -> int:
        """The query meets the sinks twice."""
        s, sinks = self.shape, min(self.options.sinks, num_tokens + 1)
        return (
            super().decode_flops(num_tokens, batch)
            + batch * 2 * s.num_heads * s.head_dim * s.num_layers * sinks
        )

    def layer_cache(self, heads, layer, request):
        o = self.options
        return StreamingCache(heads, request, o.sinks, o.budget - o.sinks + 1)
