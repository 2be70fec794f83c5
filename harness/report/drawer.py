"""The process that draws figures: `python -P -m harness.report.drawer CORES PARENT_PID`.

Reads pickles (number, work) from its input and writes (number, value, error) to its output, in the order in
which they are done; ends with its input, and when its parent does. It imports Matplotlib once; the processes
that draw are its forks, and end with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from threading import Lock
from typing import Any

from ..machine_limits import die_with_parent

#: A page has some twenty figures: more processes than this are not worth their start.
MOST = 8
LOST = "A process that drew figures ended without a word."

#: What came of a piece of work: (value, None) or (None, error).
Answer = tuple[Any, Exception | None]


def main(arguments: list[str]) -> None:
    """Until the input ends. Arguments: as many processes (at most `MOST`), and the parent's process id."""
    cores, parent_pid = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops us
    die_with_parent(parent_pid)
    from . import draw, render  # noqa: F401  (once, for all of the forks)

    out, lock = os.fdopen(os.dup(1), "wb"), Lock()
    os.dup2(2, 1)  # what anybody prints is not an answer

    def tell(number: int, found: Future[Answer]) -> None:
        lost = found.exception()
        value, error = (None, RuntimeError(LOST)) if isinstance(lost, BrokenExecutor) else (None, lost)
        if lost is None:
            value, error = found.result()
        with lock:
            pickle.dump((number, value, error), out)
            out.flush()

    pool = ProcessPoolExecutor(min(cores, MOST), get_context("fork"), die_with_parent, (os.getpid(),))
    with pool:
        while True:
            try:
                number, work = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                found = pool.submit(_answer, work)
            except BrokenExecutor as error:
                found = Future()
                found.set_exception(error)
            found.add_done_callback(partial(tell, number))


def _answer(work: Callable[[], Any]) -> Answer:
    try:
        return work(), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a class that does not travel
            return None, RuntimeError(traceback.format_exc())
        return None, error


if __name__ == "__main__":
    main(sys.argv[1:])
