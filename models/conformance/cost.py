"""Laws of cost: bytes held are bytes predicted, limits are kept, statements of cost are numbers."""

from __future__ import annotations

import dataclasses
import math

import torch

import models

from ..budget import resolve
from ..skeleton import without_memory
from . import networks
from .law import Broken, equal, law, same
from .subject import Subject


@law()
def predicted_bytes_are_live_bytes(s: Subject) -> None:
    """cache_bytes is what the storages hold, by kind, before, during and after use, and after a copy."""
    cut = [16, 1, 7, 2, 15]
    for dtype in (torch.float32, torch.bfloat16):
        model, ids = s.model(dtype), s.ids(3)
        at_first = model.cache_bytes(s.length, 3)
        # A policy may give storage back at the end of the prompt.
        predicted = model.cache_bytes(s.length, 3, prompt=cut[0])
        setting = {"dtype": dtype, "batch": 3, "capacity": s.length, "cuts": cut}
        equal(model.cache_bytes(s.length, 3, dtype), at_first, "cache_bytes of the weights' dtype", **setting)
        equal(at_first.total, 3 * model.cache_bytes(s.length, 1).total, "cache_bytes of 3 rows", **setting)
        cache = model.new_cache(3, s.length, prompts=[cut[0]] * 3)
        if cache.live_bytes() != predicted:
            equal(cache.live_bytes(), at_first, "live_bytes() of a new cache", **setting)
        seen = 0
        for part in ids.split(cut, 1):
            model.extend(part, None, cache)
            seen += part.shape[1]
            equal(cache.live_bytes(), predicted, f"live_bytes() after {seen} tokens", **setting)
        equal(cache.fork().live_bytes(), predicted, "live_bytes() of a fork", **setting)
        five = model.cache_bytes(s.length, 5, prompt=cut[0])
        equal(cache.select([0, 0, 2, 1, 1]).live_bytes(), five, "live_bytes() of 5 selected rows", **setting)


@law(shapes=("conv",))
def capacity_is_a_sentence(s: Subject) -> None:
    """Beyond the capacity: ValueError of one sentence, and the cache goes on as if nothing had been."""
    model, ids, prompt, capacity = s.model(), s.ids(2), 18, 20
    cache, other = (model.new_cache(2, capacity) for _ in range(2))
    for held in (cache, other):
        model.extend(ids[:, :prompt], None, held)
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[0, 2:] = False
    for mask in (None, valid):
        said = _refusal(model.extend, ids[:, prompt : prompt + 4], mask, cache)
        if "capacity of 20 " not in said or "\n" in said or not said.endswith("."):
            raise Broken(
                f"22 tokens for a capacity of 20 are refused with '{said}', no sentence that says so."
            )
    calls = (ids[:, prompt:capacity], [1, 1])
    same(
        s.run(*calls, cache), s.run(*calls, other), 0.0, "decode after a refused call and without it", batch=2
    )
    _refusal(model.decode, ids[:, capacity], cache)
    if "2 seeds, not 1" not in (said := _refusal(model.new_cache, 2, 5, seeds=[1])):
        raise Broken(f"one seed for two rows is refused with '{said}', which does not say '2 seeds, not 1'.")
    for batch, size in ((0, 5), (1, 0), (1, -3)):
        if "at least 1" not in (said := _refusal(model.new_cache, batch, size)):
            raise Broken(f"new_cache({batch}, {size}) is refused with '{said}', without 'at least 1'.")


def _refusal(call, *arguments, **named) -> str:
    try:
        call(*arguments, **named)
    except ValueError as error:
        return str(error)
    raise Broken(f"{call.__name__} takes what it must refuse (no ValueError).")


def _no_bytes(s: Subject) -> str:
    return "" if hasattr(s.options, "budget_bytes") else "it has no option 'budget_bytes'"


@law(budget="tight", shapes=("conv",), excuse=_no_bytes)
def budget_bytes_is_the_largest_that_fits(s: Subject) -> None:
    """budget_bytes=N gives the largest budget whose predicted cache of one long request fits N bytes."""
    length, dtype = 100 * s.length, torch.float32

    def held(budget: int) -> int:
        options = dataclasses.replace(s.options, budget=budget)
        with without_memory():
            model = type(s.model())(networks.SHAPES[s.shape], options)
        return model.cache_bytes(length, 1, dtype, prompt=length).total

    for limit in (held(s.budget), held(s.budget + 1) - 1):
        options = dataclasses.replace(s.options, budget_bytes=limit)
        found = resolve(models.parse(s.spec)[0], options, networks.SHAPES[s.shape], dtype).budget
        if held(found) > limit or held(found + 1) <= limit:
            sizes = f"which takes {held(found)} bytes; one more takes {held(found + 1)}"
            raise Broken(f"budget_bytes={limit} gives a budget of {found}, {sizes}.")


@law()
def costs_are_stated(s: Subject) -> None:
    """Predicted bytes and FLOPs are finite, not negative, and do not shrink with length or batch."""
    model = s.model(torch.float32)
    statements = {
        "cache_bytes": lambda n, batch: model.cache_bytes(n, batch).total,
        "read_bytes": model.read_bytes,
        "prefill_flops": model.prefill_flops,
        "decode_flops": model.decode_flops,
    }
    for name, ask in statements.items():
        before = 0
        for n in (1, 2, 7, s.length, 8 * s.length, 1000 * s.length):
            value, twice = ask(n, 1), ask(n, 2)
            if not isinstance(value, int) or not math.isfinite(value) or value < 0:
                raise Broken(f"{name}({n}) is {value!r}, not a whole number >= 0.")
            # A context that begins anew makes a step cheap again.
            restarts = model.prompt_mode == "split" and name in ("read_bytes", "decode_flops")
            if value < before and not restarts:
                raise Broken(f"{name}({n}) is {value}, less than {before} for fewer tokens.")
            if twice < value:
                raise Broken(f"{name}({n}) is {twice} for two rows and {value} for one.")
            before = value
