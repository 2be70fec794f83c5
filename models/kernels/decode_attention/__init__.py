"""One query per row over a cache, with or without a score for every key."""

from .naive import attend

__all__ = ["attend"]
