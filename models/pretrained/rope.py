"""Rotary positions of a config.json, in the spellings of `transformers` 4 and 5.

    4   "rope_theta": 1e4, "rope_scaling": null | {"type" or "rope_type": …, "factor": …, …}
    5   "rope_parameters": {"rope_type": …, "rope_theta": …, …}

Kinds: default, linear, llama3, yarn. Rules as in transformers' modeling_rope_utils: yarn's cos and sin are
multiplied by `attention_factor`, which by default is 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4) or
follows from `mscale` and `mscale_all_dim` (DeepSeek's spelling).
"""

from __future__ import annotations

import math

from ..rope import RopeScaling
from .files import Fields, PretrainedError, shown

#: Positions of a config are below this, so that no table of them can be asked for.
MOST_POSITIONS = 2**31

_KINDS = ("default", "linear", "llama3", "yarn")


def rope_of(config: Fields, head_dim: int) -> tuple[float, RopeScaling | None]:
    """(base, scaling) of a model. Raises PretrainedError for kinds that we do not compute."""
    old, new = config.raw("rope_scaling", {}), config.raw("rope_parameters", {})
    for key, values in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(values, dict):
            config.refuse(key, "an object")
    if old and new and old != new:
        raise PretrainedError(f"{config.where} has rope_scaling and rope_parameters, and they differ.")
    rope = Fields(old or new, f"the rope parameters of {config.where}")
    kind = rope.raw("rope_type", rope.raw("type", "default"))
    if kind not in _KINDS:
        kinds = ", ".join(_KINDS)
        raise PretrainedError(f"rope type {shown(kind)} in {config.where} is not supported; known: {kinds}.")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise PretrainedError(
            f"{config.where} has rope parameters per kind of layer, which is not supported."
        )
    # 1e15 turns the last pair by less than 1e-6 rad over a million positions.
    base = rope.number("rope_theta", 1.01, 1e15, config.number("rope_theta", 1.01, 1e15, 10_000.0))
    for fields in (rope, config):
        if fields.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            raise PretrainedError(
                f"{config.where} rotates a part of each head (partial_rotary_factor), which is not supported."
            )
    return base, None if kind == "default" else _scaling(kind, rope, config, base, head_dim)


def _scaling(kind: str, rope: Fields, config: Fields, base: float, head_dim: int) -> RopeScaling:
    if kind == "linear":
        return RopeScaling("linear", rope.number("factor", 1e-6, 1e6))
    longest = config.whole("max_position_embeddings", MOST_POSITIONS, None)
    # A value beside the rope parameters wins over one within, as in transformers.
    inside = rope.whole("original_max_position_embeddings", MOST_POSITIONS, longest)
    original = config.whole("original_max_position_embeddings", MOST_POSITIONS, inside)
    if original is None:
        raise PretrainedError(f"'original_max_position_embeddings' is missing in {rope.where}.")
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", 1e-6, 1e6), rope.number("high_freq_factor", 1e-6, 1e6)
        if low >= high:
            rope.refuse("high_freq_factor", f"above low_freq_factor ({low:g})")
        return RopeScaling("llama3", rope.number("factor", 1e-6, 1e6), original, low, high)
    return _yarn(rope, original, longest, base, head_dim)


def _yarn(rope: Fields, original: int, longest: int | None, base: float, head_dim: int) -> RopeScaling:
    factor = rope.number("factor", 1e-6, 1e6, None if longest is None else longest / original)
    fast, slow = rope.number("beta_fast", 1e-6, 1e6, 32.0), rope.number("beta_slow", 1e-6, 1e6, 1.0)
    if factor is None:
        raise PretrainedError(f"'factor' is missing in {rope.where}.")
    if slow >= fast:
        rope.refuse("beta_fast", f"above beta_slow ({slow:g})")
    truncate = rope.flag("truncate", True)
    # The ramp lies between the pairs that turn beta_fast and beta_slow times, both clamped to 0…D-1.
    first, last = (
        head_dim * math.log(original / (b * 2 * math.pi)) / (2 * math.log(base)) for b in (fast, slow)
    )
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    if last < 0 or first > head_dim - 1:
        raise PretrainedError(f"{rope.where} describe a yarn ramp that touches no rotary pair.")
    amplitude = rope.number("attention_factor", 1e-6, 1e6, None)
    if amplitude is None:
        mscale, all_dim = (rope.number(key, 0.0, 1e6, 0.0) for key in ("mscale", "mscale_all_dim"))
        if mscale and all_dim:
            amplitude = _temperature(factor, mscale) / _temperature(factor, all_dim)
        else:
            amplitude = _temperature(factor, 1.0)
    return RopeScaling(
        "yarn", factor, original, beta_fast=fast, beta_slow=slow, truncate=truncate, amplitude=amplitude
    )


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
