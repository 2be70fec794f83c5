"""Gated retention: `naive` is the definition; a fused kernel will stand beside it."""

from .naive import chunked, parallel, recurrent

__all__ = ["chunked", "parallel", "recurrent"]
