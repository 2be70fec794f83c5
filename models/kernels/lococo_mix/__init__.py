"""LoCoCo's mixtures: convolution, softmax over slots, and the blend with one slot each."""

from .naive import mix

__all__ = ["mix"]
