"""Processes that live at the same time and measure one repeat each, round after round, never two at once.

    worker ── "?" ──►  rounds     ready for its next repeat; it waits
           ◄── "!" ──             its turn: nobody else measures until it asks again, or ends
    executor ── 4 bytes ──►       first of all: how many workers of its side will ask

A machine that others use is slow for seconds or minutes at a time. Who is measured from start to end in such
a spell looks slow; processes that take turns repeat by repeat, in an order drawn anew for every round, share
it. (Figures: DECISIONS, "Rounds".) All of them are in memory at once, which is more than a GPU has: there,
whole processes take turns.

A round begins when all who are alive have asked. Who dies, or is killed in its turn, is left out of the next;
a worker that replaces it joins.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

ASKS, GOES = b"?", b"!"
_COUNT = struct.Struct("!I")


class Ended(Exception):
    """Nobody gives turns any more: whoever waits should end."""


class Turn:
    """A worker's side: `wait` returns when it may measure its next repeat. Raises Ended if nobody listens."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(address)
            self._socket.sendall(_COUNT.pack(0))
        except OSError:
            self.close()
            raise Ended from None

    def wait(self) -> None:
        """Give the turn back, if it was ours, and wait for the next. Raises Ended."""
        try:
            self._socket.sendall(ASKS)
            if self._socket.recv(1) == GOES:
                return
        except OSError:
            pass
        raise Ended

    def close(self) -> None:
        """No more repeats: the others need not wait until this process is gone."""
        self._socket.close()


def announce(address: str, workers: int) -> None:
    """Say how many workers of one side will ask for turns: no round begins before all of them have.

    Raises Ended.
    """
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(address)
            line.sendall(_COUNT.pack(workers + 1))  # 0 is a worker
        except OSError:
            raise Ended from None


class Rounds:
    """Gives the turns, in a thread of its own, to the workers of `sides` announcers."""

    def __init__(self, sides: int = 2, seed: int = 0) -> None:
        self._sides, self._random = sides, random.Random(seed)
        self._expected = self._seen = 0
        self._hello: dict[socket.socket, bytes] = {}  # connected, has not said yet what it is
        self._workers: list[socket.socket] = []
        self._asking: set[socket.socket] = set()
        self._round: list[socket.socket] = []
        self._holder: socket.socket | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="kvmark-rounds-")
        self.address = str(Path(self._folder.name) / "turns")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(128)
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="kvmark rounds", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()
        self._thread.join()
        for one in (self._listener, self._ended, *self._hello, *self._workers):
            one.close()
        self._folder.cleanup()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            ready.register(self._ended, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    found = key.fileobj
                    assert isinstance(found, socket.socket)
                    if found is self._ended:
                        return
                    if found is self._listener:
                        line, _ = found.accept()
                        self._hello[line] = b""
                        ready.register(line, selectors.EVENT_READ)
                    elif not self._hear(found):
                        ready.unregister(found)
                        found.close()
                self._grant()

    def _hear(self, line: socket.socket) -> bool:
        """Take in what one has to say; False: it is gone, or has said all."""
        try:
            data = line.recv(_COUNT.size - len(self._hello[line]) if line in self._hello else 1)
        except OSError:
            data = b""
        if line not in self._hello:
            return self._heard_worker(line, data)
        said = self._hello[line] = self._hello[line] + data
        if data and len(said) < _COUNT.size:
            return True
        del self._hello[line]
        if len(said) < _COUNT.size:
            return False
        if count := _COUNT.unpack(said)[0]:
            self._sides, self._expected = self._sides - 1, self._expected + count - 1
            return False
        self._workers.append(line)
        self._seen += 1
        return True

    def _heard_worker(self, line: socket.socket, data: bytes) -> bool:
        if line is self._holder:
            self._holder = None
        if data:
            self._asking.add(line)
            return True
        self._workers.remove(line)
        self._asking.discard(line)
        return False

    def _grant(self) -> None:
        """Give the next turn, if nobody has one and somebody may."""
        while self._holder is None:
            if not self._round:
                complete = not self._sides and self._seen >= self._expected
                if not complete or not self._workers or len(self._asking) < len(self._workers):
                    return
                self._round = self._random.sample(self._workers, len(self._workers))
            line = self._round.pop()
            if line not in self._asking:  # it has ended since
                continue
            self._asking.discard(line)
            self._holder = line
            with contextlib.suppress(OSError):  # it is gone, which its end will tell
                line.sendall(GOES)
