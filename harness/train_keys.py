"""The keys of a recipe file, and what is right for each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import models
from models.spec import MOST, SpecError, one_line

#: Of threads or processes of one training.
MOST_WORKERS = 1024


#: Far above what these trainings are for; a slip of the hand is found before memory is asked for it.
MOST_PARAMETERS = 2_000_000_000


class RecipeError(SpecError):
    """A recipe file that cannot be read or makes no sense; the message is one sentence."""


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda x: type(x) in (int, float) and math.isfinite(x) and low <= x <= high


def _whole(low: int, high: int = MOST) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and low <= x <= high


def _list(item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: type(x) is list and bool(x) and all(map(item, x))


def text(x: Any) -> bool:
    return type(x) is str and bool(x)


def _sums_to_one(x: list[float]) -> bool:
    return math.isclose(sum(x), 1, abs_tol=1e-9)


_share = _number(0, 1)
SOURCES = ("prose", "needle", "recall")

#: key -> (test, what is right). `RUN` decides no result, `SETTINGS` may stand in [training] or a group.
Kinds = Mapping[str, tuple[Callable[[Any], bool], str]]
RUN: Kinds = {
    "device": (text, "cpu, cuda or cuda:N"),
    "threads": (_whole(1, MOST_WORKERS), f"a whole number from 1 to {MOST_WORKERS}"),
    "batch_workers": (_whole(0, MOST_WORKERS), f"a whole number from 0 to {MOST_WORKERS}"),
}
SETTINGS: Kinds = {
    "shape": (lambda x: text(x) or type(x) is dict, "the name of a shape, or a table of its sizes"),
    "lengths": (_list(_whole(1)), "a list of positive whole numbers"),
    "length_probabilities": (
        lambda x: _list(_share)(x) and min(x) > 0 and _sums_to_one(x), "shares above 0 that sum to 1"
    ),
    "shares": (
        lambda x: type(x) is dict and {*x} == {*SOURCES} and _list(_share)([*x.values()])
        and _sums_to_one([*x.values()]),
        "a table of prose, needle and recall that sum to 1",
    ),
    "mix_seed_offset": (_whole(0), "a whole number of at least 0"),
    "tokens_per_step": (_whole(1), "a positive whole number"),
    "warmup_steps": (_whole(0), "a whole number of at least 0"),
    "decay_share": (_share, "a share from 0 to 1"),
    "final_lr_share": (_share, "a share from 0 to 1"),
    "muon_lr": (_number(0, 1e6), "a number of at least 0"),
    "adamw_lr": (_number(0, 1e6), "a number of at least 0"),
    "betas": (
        lambda x: _list(_number(0, 1))(x) and len(x) == 2 and max(x) < 1, "two numbers from 0 to below 1"
    ),
    "weight_decay": (_number(0, 1e6), "a number of at least 0"),
    "clip": (_number(0, 1e6), "a number of at least 0"),
    "autocast_bf16": (lambda x: type(x) is bool, "true or false"),
}  # fmt: skip
GROUP: Kinds = {
    "name": (text, "a name"),
    "folder": (text, 'a folder below --out ("." is itself), with {seed} where there are several seeds'),
    "train": (_list(text), "a list of architectures"),
    "seeds": (_list(_whole(0)), "a list of whole numbers of at least 0"),
    "tokens": (_whole(1), "a positive whole number"),
    "induction_heads": (_whole(0), "a whole number of at least 0"),
}
BASE: Kinds = {"base": (text, "the name of the Transformer that compressors are trained on")}


def check_size(spec: str, shape: Any) -> None:
    """Raise SpecError where far too much would be trained: matrices of a network, or compressors."""
    options = models.resolve(spec, shape)[1]
    if spec.startswith("lococo"):
        inputs = 2 * shape.head_dim + (options.depth - 1) * options.folded
        layer = options.folded * options.kernel * inputs
    else:
        layer = 4 * shape.dim**2 + 3 * shape.dim * shape.ffn_dim
    parameters = shape.vocab * shape.dim * (not spec.startswith("lococo")) + shape.num_layers * layer
    if parameters > MOST_PARAMETERS:
        raise SpecError(
            f"Training '{spec}' means about {parameters:.1e} parameters; at most {MOST_PARAMETERS:.0e} are "
            "trained here."
        )


def checked(values: Any, required: Kinds, optional: Kinds, where: str) -> dict[str, Any]:
    if type(values) is not dict:
        raise RecipeError(f"{where} must be a table.")
    for key, value in values.items():
        if key not in required and key not in optional:
            valid = ", ".join(required | optional)
            raise RecipeError(f"Unknown key '{key}' in {where}; valid keys: {valid}.")
        test, right = (required | optional)[key]
        if not test(value):
            raise RecipeError(one_line(f"Key '{key}' in {where} must be {right}, not {value!r}."))
    for key in required:
        if key not in values:
            raise RecipeError(f"Key '{key}' is missing in {where}: {required[key][1]}.")
    return values
