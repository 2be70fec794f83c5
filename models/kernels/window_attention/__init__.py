"""Causal attention of the newest tokens of a sequence, in a sliding window or without one."""

from .naive import attend

__all__ = ["attend"]
