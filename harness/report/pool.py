"""Figures drawn in other processes, no more of them at a time than cores, while the tables are made.

    with together():                        report/__init__.py
        drawing = later(draw)               render.py: draw() runs elsewhere
        drawing.result()                    what it returned, or raises what it raised

One process (drawer.py) imports Matplotlib while this one imports pandas, and has forks of its own draw. What
is to be drawn goes there as a pickle, that is plain data and functions of modules. Outside of `together`, and
on one core, `later` draws there and then.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from pathlib import Path
from threading import Lock, Thread
from typing import TypeVar

from ..machine_limits import usable_cores

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class _Drawer:
    """The process, and what it was asked for and has not answered yet."""

    def __init__(self, cores: int) -> None:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.report.drawer", str(cores), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,
        )  # fmt: skip
        self.numbers, self.asked, self.has_ended, self.lock = count(), {}, False, Lock()
        self.listener = Thread(target=self._listen, daemon=True)
        self.listener.start()

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """What will come of it; RuntimeError is raised there if the process ends without an answer."""
        number, future = next(self.numbers), Future()
        with self.lock:
            if self.has_ended:
                future.set_exception(self._lost())
                return future
            self.asked[number] = future
        with contextlib.suppress(BrokenPipeError):  # it has ended: the listener says so
            self.process.stdin.write(pickle.dumps((number, work)))
            self.process.stdin.flush()
        return future

    def stop(self) -> None:
        """With all that it is still drawing."""
        if self.asked or next(self.numbers) == 0:  # or before it has begun
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.listener.join()
        self.process.stdout.close()

    def _listen(self) -> None:
        try:
            while True:
                number, value, error = pickle.load(self.process.stdout)
                future = self.asked.pop(number)
                future.set_result(value) if error is None else future.set_exception(error)
        except Exception as error:
            if not isinstance(error, EOFError):  # it babbles: nothing that it says can be relied on
                self.process.kill()
            with self.lock:
                self.has_ended = True
            for future in self.asked.values():
                future.set_exception(self._lost())

    def _lost(self) -> RuntimeError:
        return RuntimeError(f"The process of the figures ended with exit code {self.process.wait()}.")


_current: ContextVar[_Drawer | None] = ContextVar("drawer", default=None)


@contextmanager
def together(cores: int | None = None) -> Iterator[None]:
    """Results must be asked for before the end of the block: what is not done then is dropped."""
    cores = len(usable_cores()) if cores is None else cores
    drawer = _Drawer(cores) if cores > 1 else None
    token = _current.set(drawer)
    try:
        yield
    finally:
        _current.reset(token)
        if drawer is not None:
            drawer.stop()


def later(work: Callable[[], T]) -> Future[T]:
    """In another process within `together`, else at once."""
    drawer = _current.get()
    if drawer is not None:
        return drawer.ask(work)
    done: Future[T] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done
