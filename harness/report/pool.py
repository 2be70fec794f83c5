"""Figures drawn in other processes, no more of them at a time than cores, while the tables are made.

    with together():                        page.py
        drawing = later(draw)               canvas.py: draw() runs in a child
        drawing.result()                    what it returned, or raises what it raised

Outside of `together`, and on one core, `later` draws there and then. The children are forks: they begin with
Matplotlib imported and need no copy of what they draw. A fork in a process of several threads is a
danger where the child takes locks that another thread held; pyarrow's idle threads are the others here, and
a child touches Matplotlib alone, so Python's warning about it is not heeded. A child draws one figure, or
several of those that wait, and ends then, when its parent does, or when `together` is left.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import IO, Any, Generic, TypeVar

from ..machine_limits import die_with_parent, usable_cores

T = TypeVar("T")


#: What came of a piece of work: (value, None) or (None, error).
Answer = tuple[Any, Exception | None]


@dataclass(eq=False)
class Later(Generic[T]):
    """Work that is done, or is being done, or waits for its turn."""

    work: Callable[[], T]
    pool: _Pool | None = None
    answer: Answer | None = None

    def result(self) -> T:
        """Waits for it. Raises what the work raised; RuntimeError if its process ended without a word."""
        while self.answer is None:
            self.pool.step()
        value, error = self.answer
        if error is not None:
            raise error
        return value


class _Child:
    """A process at work. Its answers are too long for a pipe that nobody reads: they go to a file."""

    def __init__(self, tasks: list[Later]) -> None:
        self.tasks, self.sink = tasks, tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        context = multiprocessing.get_context("fork")
        work = [task.work for task in tasks]
        self.process = context.Process(target=_draw, args=(work, self.sink, os.getpid()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            self.process.start()

    def collect(self) -> None:
        """Of a process that has ended."""
        self.process.join()
        self.sink.seek(0)
        lost = RuntimeError(f"The process of a figure ended with exit code {self.process.exitcode}.")
        ended_well = self.process.exitcode == 0
        answers = pickle.load(self.sink) if ended_well else [(None, lost)] * len(self.tasks)
        for task, answer in zip(self.tasks, answers, strict=True):
            task.answer = answer
        self.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.close()

    def close(self) -> None:
        self.process.close()
        self.sink.close()


@dataclass
class _Pool:
    cores: int
    waiting: deque[Later] = field(default_factory=deque)
    running: list[_Child] = field(default_factory=list)

    def add(self, work: Callable[[], T]) -> Later[T]:
        self.waiting.append(found := Later(work, self))
        self.step(timeout_s=0)
        return found

    def step(self, timeout_s: float | None = None) -> None:
        """Collect what has ended, waiting for one if need be; then start what there is room for."""
        ended = wait([child.process.sentinel for child in self.running], timeout_s) if self.running else []
        for child in [child for child in self.running if child.process.sentinel in ended]:
            self.running.remove(child)
            child.collect()
        while self.waiting and len(self.running) < self.cores:
            # Fewer processes copy less, and the last ones should end together.
            count = -(-len(self.waiting) // (2 * self.cores))
            self.running.append(_Child([self.waiting.popleft() for _ in range(count)]))


_current: ContextVar[_Pool | None] = ContextVar("pool", default=None)


@contextmanager
def together(cores: int | None = None) -> Iterator[None]:
    """Results must be asked for before the end of the block: what is not done then is dropped."""
    cores = len(usable_cores()) if cores is None else cores
    pool = _Pool(cores) if cores > 1 else None
    token = _current.set(pool)
    try:
        yield
    finally:
        _current.reset(token)
        for child in pool.running if pool else []:
            child.stop()


def later(work: Callable[[], T]) -> Later[T]:
    """In a process of its own within `together`, else at once."""
    pool = _current.get()
    return Later(work, answer=(work(), None)) if pool is None else pool.add(work)


def _draw(work: list[Callable[[], Any]], sink: IO[bytes], parent_pid: int) -> None:
    """What a child does."""
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # a collection would touch, and so copy, all that the parent holds
    pickle.dump([_answer(one) for one in work], sink)
    sink.flush()


def _answer(work: Callable[[], Any]) -> Answer:
    try:
        return work(), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error
