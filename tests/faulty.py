"""A sinkless window with a fault on request: what a user's file might get wrong, one law at a time.

Not of the package: tests name it by path, as a user would (`kvmark check faulty:fault=NAME --path FILE`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.architectures.window import BudgetedWindow

from ..cache import CacheBytes
from ..decoder import Decoder


@dataclass(frozen=True)
class Options:
    """`fault` names the law to break; "none" is an honest window."""

    budget: int = 64
    fault: str = "none"
    budget_bytes: int | None = None


class Cache(BudgetedWindow):
    """Faults of a layer's cache."""

    fault = "none"

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        evicting = max(self.rows["seen"]) > self.recent
        out = super().attend(q_BTHD, k_BTGD, v_BTGD, positions_BT, valid)
        T, bf16 = out.shape[1], out.dtype == torch.bfloat16
        if self.fault == "raises":
            raise RuntimeError("what a pity")
        if self.fault == "any_segmentation_is_forward" and T == 1:
            return out * 1.001
        if self.fault == "stepwise_policies_do_not_see_the_cut" and T == 1 and evicting:
            return out * 1.001
        if self.fault == "declared_prompts_may_be_cut" and T == 15:
            return out * 1.001
        if self.fault == "after_a_declared_prompt_calls_do_not_matter" and T == 9:
            return out * 1.001
        if self.fault == "the_future_is_unknown" and T > 1:
            return out + 1e-3 * v_BTGD.mean((1, 2), keepdim=True)
        if self.fault == "padding_is_inert" and valid is not None:
            return out * (1 + 1e-3 * (T - max(valid.lengths)))
        if self.fault == "decode_of_some_rows" and valid is not None and T == 1:
            return out * 1.001
        if self.fault == "rows_are_independent":
            return out + 1e-3 * out.mean(0)
        if self.fault == "predicted_bytes_are_live_bytes":
            self.notes = torch.zeros(10)
        if self.fault == "bf16_is_close" and bf16:
            return out * 1.5
        if self.fault == "bf16_below_the_budget_is_finite" and bf16 and evicting:
            return out / 0
        if self.fault == "inference_mode_changes_nothing" and torch.is_inference_mode_enabled():
            return out * 1.001
        return out

    def derive(self, change, rows):
        other = super().derive(change, rows)
        if self.fault == "fork_is_independent":
            other.tensors = self.tensors if len(rows) == self.batch else other.tensors
        if self.fault == "select_is_running_those_rows" and len(rows) > self.batch:
            other.tensors = {name: tensor.flip(0) for name, tensor in other.tensors.items()}
        return other

    def evicted(self):
        if self.fault == "parallel_and_silent":
            return [0] * self.batch
        extra = self.fault == "evicted_counts_what_went"
        return [n + extra for n in super().evicted()]

    def kept_positions(self):
        kept_BPS = super().kept_positions()
        seen = torch.tensor(self.rows["seen"])[:, None, None]
        if self.fault == "kept_positions_are_tokens":
            return kept_BPS + 1
        if self.fault == "budget_is_filled_and_kept":
            return kept_BPS.masked_fill(kept_BPS == 3, -1)
        if self.fault == "kept_sets_are_nested":
            return kept_BPS.masked_fill((kept_BPS == seen - 2) & (seen % 2 == 0), -1)
        return kept_BPS


class Model(Decoder):
    """Faults of the whole network."""

    prompt_mode = "stepwise"
    calls = 0

    def __init__(self, shape, options):
        super().__init__(shape, options)
        if options.fault == "prompt_mode_is_a_known_word":
            self.prompt_mode = "banana"
        if options.fault in ("parallel_drops_nothing", "parallel_and_silent"):
            self.prompt_mode = "parallel"

    def layer_cache(self, heads, layer, request):
        cache = Cache(heads, request, 0, self.options.budget + 1)
        cache.fault = self.options.fault
        return cache

    def to_logits(self, x_BTE):
        logits = super().to_logits(x_BTE)
        if self.options.fault == "ample_budget_is_the_transformer":
            return logits * 1.01
        if self.options.fault == "the_same_again":
            self.calls += 1
            return logits * (1 + 1e-9 * self.calls)
        return logits

    def extend(self, tokens_BT, valid_BT, cache, logits="last"):
        fault = self.options.fault
        if fault == "capacity_is_a_sentence" and max(cache.seen) + tokens_BT.shape[1] > cache.capacity:
            raise ValueError("too long")
        out = super().extend(tokens_BT, valid_BT, cache, logits)
        last = logits == "last" and tokens_BT.shape[1] > 1
        return out + 0.1 if last and fault == "last_logits_are_the_last_row" else out

    def cache_bytes(self, capacity, batch=1, dtype=None, prompt=None):
        if self.options.fault == "budget_bytes_is_the_largest_that_fits":
            return CacheBytes(payload=10**6 - self.options.budget)
        return super().cache_bytes(capacity, batch, dtype, prompt)

    def prefill_flops(self, num_tokens, batch=1):
        flops = super().prefill_flops(num_tokens, batch)
        return -flops if self.options.fault == "costs_are_stated" else flops
