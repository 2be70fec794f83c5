"""Architectures: tensors only. `names()` lists them, `build()` makes one; `lookup` says where names lead.

Nothing here imports torch until an architecture is asked for, so that listing stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import lookup
from .lookup import docline, names
from .spec import canonical, parse_options, split_spec

if TYPE_CHECKING:
    import torch

    from .architecture import Architecture, Shape

__all__ = ["build", "canonical_spec", "docline", "names", "parse", "resolve"]


def parse(spec: str) -> tuple[Any, Any]:
    """Spec string -> (the architecture's module, its Options). Raises SpecError."""
    name, text = split_spec(spec)
    module = lookup.module(name)
    return module, parse_options(module.Options, text, f"architecture '{name}'")


def canonical_spec(spec: str) -> str:
    """The spec with only what differs from the defaults: the name that rows carry. Raises SpecError."""
    _, options = parse(spec)
    return canonical(split_spec(spec)[0], options)


def resolve(spec: str, shape: Shape, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """As `parse`, with a budget in bytes turned into tokens for this shape and dtype of the cache."""
    import torch

    from .budget import resolve as in_tokens
    from .spec import SpecError

    module, options = parse(spec)
    try:
        return module, in_tokens(module, options, shape, dtype or torch.get_default_dtype())
    except ValueError as error:
        raise SpecError(f"{split_spec(spec)[0]}: {error}") from None


def build(spec: str, shape: Shape, dtype: torch.dtype | None = None) -> Architecture:
    """An architecture with freshly initialised weights on torch's default device and dtype.

    `dtype` (default: torch's) is what the cache will have; it matters for budgets in bytes only.
    Raises SpecError where the spec or its combination with the shape is wrong.
    """
    from .spec import SpecError

    module, options = resolve(spec, shape, dtype)
    try:
        return module.Model(shape, options)
    except ValueError as error:
        raise SpecError(str(error)) from None
