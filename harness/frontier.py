"""Where memory ends: bisection for the largest context that fits, from a guess, in few probes.

    1 ── fits ──────────────────────── low ·· next ·· high ──────────── fails ──── ceiling
                                          └── ≤ 1 % ──┘  found: the largest context is low

A probe is expensive (a process, a whole prompt), so the search starts at what was predicted and moves away
from it in strides that grow: × 1.125, then its square, the square of that, ... until fits and failures
enclose the answer; from there it halves the distance in logarithms. It keeps no state: what was tried is
all it knows, so an interrupted search goes on from the probes that lie on the disk.

The search *assumes* that whatever is longer than a context that failed fails, too. Nobody proves that:
what was tried stands in every result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

#: The shortest context that is probed; that it does not fit is an answer.
FLOOR = 16
#: The longest context that may be asked for.
CEILING = 2**24
#: The search ends where the next context known to fail is at most this much longer.
GRANULARITY = 0.01
#: First stride away from the guess.
STRIDE = 1.125
#: Probes of one search at most, whatever the guess; a good one needs about six.
MOST_PROBES = 20


def bracket(tried: Mapping[int, bool]) -> tuple[int | None, int | None]:
    """(largest context that fits, smallest longer one that failed); None where there is none.

    `tried` maps contexts to whether they fitted.
    """
    low = max((context for context, fits in tried.items() if fits), default=None)
    high = min(
        (context for context, fits in tried.items() if not fits and context > (low or 0)), default=None
    )
    return low, high


def next_context(tried: Mapping[int, bool], guess: int, ceiling: int) -> int | None:
    """The context to probe next, or None where the answer is known as exactly as it is asked for."""
    low, high = bracket(tried)
    stride = STRIDE ** min(2 ** len(tried) // 2, 2**8)  # beyond any ceiling, and still a float
    if low is None and high is None:
        return _rounded(guess, FLOOR, ceiling)
    if high is None:
        assert low is not None
        return None if low >= ceiling else _rounded(low * stride, low + 1, ceiling)
    if low is None:
        return None if high <= FLOOR else _rounded(high / stride, FLOOR, high - 1)
    if high - low <= 1 or high <= low * (1 + GRANULARITY):
        return None
    return _rounded(math.sqrt(low * high), low + 1, high - 1)


def _rounded(context: float, least: int, most: int) -> int:
    """A round number near `context`: a multiple of the power of two that is at most half of the granularity.

    What lies beyond a bound becomes the bound, after it was rounded: rounded away from a ceiling, a search
    would creep towards it.
    """
    step = 2 ** math.floor(math.log2(max(context * GRANULARITY / 2, 1)))
    return min(max(round(context / step) * step, least), most)


def most_fitting(fits_bytes: int, predict: Callable[[int], int], ceiling: int) -> int | None:
    """The largest context whose predicted bytes are at most `fits_bytes`: `predict(context)` must not fall.

    0 where not even one token fits; None where every context up to the ceiling does.
    """
    if predict(ceiling) <= fits_bytes:
        return None
    low, high = 0, ceiling
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if predict(middle) <= fits_bytes else (low, middle)
    return low
