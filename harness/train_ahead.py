"""Batches drawn by other processes, ahead of the step that asks for them.

    with ahead(mix, workers=4) as batches:
        batches(0), batches(1), ...        equal to mix.batch(0), mix.batch(1), ...

A batch is a pure function of the step, so who draws it decides nothing. Processes, not threads: drawing is
Python, and would hold up the thread that keeps a GPU fed. They die with the training.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

#: Batches that wait to be asked for, per worker.
WAITING = 2

_mix: Any = None


@contextmanager
def ahead(mix: Any, workers: int) -> Iterator[Callable[[int], Any]]:
    """`mix.batch` as drawn by `workers` processes; 0 draws here."""
    if workers == 0:
        yield mix.batch
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch half-way
    pool = ProcessPoolExecutor(workers, context, _start, (mix, os.getpid()))
    waiting: dict[int, Future] = {}

    def batches(step: int) -> Any:
        for later in range(step, step + WAITING * workers):
            if later not in waiting:
                waiting[later] = pool.submit(_draw, later)
        return waiting.pop(step).result()

    try:
        yield batches
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(mix: Any, parent_pid: int) -> None:
    global _mix
    from .machine_limits import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's business
    die_with_parent(parent_pid)
    _mix = mix


def _draw(step: int) -> Any:
    return _mix.batch(step)
