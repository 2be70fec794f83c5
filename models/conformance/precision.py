"""Laws of number formats and modes: bf16 stays finite and near, inference mode changes nothing."""

from __future__ import annotations

import torch

from . import networks
from .law import Broken, equal, law, same
from .subject import CUTS, Subject


@law(budget="ample", shapes=("conv",))
def bf16_is_close(s: Subject) -> None:
    """bf16 through the cache: finite, and its next-token distribution near that of fp32."""
    ids, cut = s.ids(2), CUTS["uneven"]
    model = networks.network(s.spec, networks.SHAPES[s.shape], torch.bfloat16)
    got = s.run(ids, cut, model.new_cache(2, s.length), model=model)
    model = model.float()  # the same rounded weights, computed in fp32
    expected = s.run(ids, cut, model.new_cache(2, s.length), model=model)
    equal(got.dtype, torch.bfloat16, "the dtype of a bf16 model's logits")
    if not got.isfinite().all():
        raise Broken("bf16 logits are not finite.", dtype=torch.bfloat16, batch=2, cuts=cut)
    error = float(((got.float() - expected).square().mean() / expected.square().mean()).sqrt())
    if not error < 0.05:
        raise Broken(
            f"bf16 logits are off by {error:.3g} of their size, the limit is 0.05.", batch=2, cuts=cut
        )


@law(budget="tight", shapes=("conv",))
def bf16_below_the_budget_is_finite(s: Subject) -> None:
    """bf16 with eviction at work: finite logits of the size of fp32's (ties may choose other victims)."""
    model, ids, cut = s.model(torch.bfloat16), s.ids(2), CUTS["uneven"]
    got = s.run(ids, cut, model.new_cache(2, s.length), model=model)
    size = float(got.float().std())
    if not got.isfinite().all() or not 0.5 < size < 5:
        raise Broken(
            f"bf16 logits have a standard deviation of {size:.3g}, not finite and between 0.5 and 5.",
            batch=2, cuts=cut,
        )  # fmt: skip


@law(shapes=("conv",))
def inference_mode_changes_nothing(s: Subject) -> None:
    """A cache made and used under torch.inference_mode works and counts the same."""
    model, ids, cut = s.model(), s.ids(2), CUTS["uneven"]
    expected = s.run(ids, cut, model.new_cache(2, s.length))
    with torch.inference_mode():
        cache = model.new_cache(2, s.length)
        got = s.run(ids, cut, cache)
        same(got, expected, 1e-12, "inference mode and without it", batch=2, cuts=cut)
        predicted = model.cache_bytes(s.length, 2, prompt=cut[0])
        equal(cache.live_bytes(), predicted, "live_bytes() in inference mode")
