"""Draws around what is valid, since random bytes never get past the first check; and how tests try them.

The fast tier draws few, the full tier more than 5,000 in all; draws are derandomised, so the same run repeats
the last one. An example that takes longer than 20 s is interrupted: a hang is a failure like any other.
Where hypothesis is not installed, a module that imports this one is skipped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs the dev extra: hypothesis")

from hypothesis import strategies as st  # noqa: E402


def tiers(fast: int, full: int):
    """The same test twice: few examples, and many in the full tier."""
    return pytest.mark.parametrize("examples", [fast, pytest.param(full, marks=pytest.mark.full)])


def fuzz(strategy: st.SearchStrategy, body: Callable, examples: int) -> None:
    """Run `body` on that many draws."""
    ran = 0

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(value):
        nonlocal ran
        ran += 1
        with in_time():
            body(value)

    run()
    assert ran >= examples, "the strategy has fewer values than were asked for"


@contextmanager
def in_time(seconds: float = 20):
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise AssertionError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clean(error: ValueError) -> None:
    """One printable sentence that a terminal can bear."""
    sentence = str(error)
    assert sentence.isprintable() and sentence.endswith((".", "?")) and len(sentence) < 900, repr(sentence)


# --- what inputs are made of ----------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, 10**9, 10**15, 10**30, 10**400, -1, -8, 2**31, 2**63, 0.5, 1.0,
     -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]
) | st.integers() | st.floats()  # fmt: skip
TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\n", "\0", "..", "/", "none", "true", "nan", "1e999", "１"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def mutated(text: str) -> st.SearchStrategy[str]:
    """The text with up to three stretches of it replaced."""
    edit = st.tuples(st.integers(0, len(text)), st.integers(0, 6), TEXT)

    def apply(edits: list[tuple[int, int, str]]) -> str:
        changed = text
        for start, length, new in edits:
            changed = changed[:start] + new + changed[start + length :]
        return changed

    return st.lists(edit, min_size=1, max_size=3).map(apply)
