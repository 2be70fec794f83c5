"""Two sides that take turns: the handles of two `harness.side` processes, and the order they measure in.

    replicate    0          1          2          3
              base head  head base  base head  head base       ABBA: a machine that slowly warms up, or
                                                               fills, slows both sides down alike

A turn is one worker's cells: of a latency suite all architectures of one replicate (they share a process and
their repeats are interleaved), of a quality suite one architecture. Only one side measures at any time; the
other blocks in a read.

Where the machine holds all processes of a latency suite at once, they take turns repeat by repeat instead
(`harness.rounds`): a CPU that others use, too, is noisier than that a whole process could be compared.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .environment import ROOT
from .exits import EXIT_ENVIRONMENT
from .rounds import Rounds
from .side import SIDE_VERSION
from .store import axes_json

Hear = Callable[["Side", dict[str, Any]], None]
#: What one architecture was asked: its spec, its suite, and the point of the suite's grid.
Point = tuple[str, str, str]


class SideEnded(Exception):
    """A side cannot do what it should; one sentence, and the exit code it ended with."""

    def __init__(self, side: Side, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.side, self.code = side, code


@dataclass(frozen=True)
class SideCell:
    """A cell as its side describes it. `process`: the architecture, if it has a worker of its own."""

    key: str
    architecture: str
    suite: str
    axes: dict[str, Any]
    replicate: int
    process: str | None

    @property
    def point(self) -> Point:
        return self.architecture, self.suite, axes_json(self.axes)

    @property
    def turn(self) -> tuple[str, int, str]:
        """Cells of one worker, and their partners on the other side."""
        return self.suite, self.replicate, self.process or ""


@dataclass
class Side:
    """One checkout, the folder its numbers go to, and its process once `start` was called."""

    name: str  # "base" | "head", as sentences name it
    folder: Path
    root: Path = ROOT
    cells: list[SideCell] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # spec -> why this checkout cannot build it
    remarks: list[str] = field(default_factory=list)
    plan_name: str = ""  # a hash of all keys is in it
    abreast: int = 0  # processes of a latency suite that this machine holds at once

    def start(self, options: dict[str, Any]) -> Self:
        """Begin to prepare the plan that `options` (of `kvmark run`) ask for. Raises SideEnded."""
        if not (self.root / "harness" / "side.py").is_file():
            raise SideEnded(self, "it is older than kvmark gate and cannot take part", EXIT_ENVIRONMENT)
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        # Open until `close`.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.side"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches us, and `close` tells it
        )  # fmt: skip
        self._order(do="prepare", version=SIDE_VERSION, parent_pid=os.getpid(), options=options)
        return self

    def prepared(self) -> None:
        """Wait until it knows its cells. Raises SideEnded."""
        ready = self._answer()
        self.cells = [SideCell(**cell) for cell in ready["cells"]]
        self.refused, self.remarks, self.abreast = ready["refused"], ready["remarks"], ready["abreast"]
        self.plan_name = ready["name"]

    def measure(self, cells: Iterable[SideCell], hear: Hear) -> None:
        """Measure what is not measured yet of these cells; the folder's tables are then of them.

        Raises SideEnded.
        """
        self.begin(cells)
        for event in self.events():
            hear(self, event)

    def begin(self, cells: Iterable[SideCell], turns: str | None = None) -> None:
        """Order what `events` then tells; `turns`: all of it at once, in rounds. Raises SideEnded."""
        keys = [cell.key for cell in cells]
        self._order(do="measure", out=str(self.folder.resolve()), cells=keys, turns=turns)

    def events(self) -> Iterator[dict[str, Any]]:
        """What it does, until all is measured. Raises SideEnded."""
        while (event := self._answer())["event"] != "measured":
            yield event

    def close(self) -> None:
        """End it and what it started; safe to call at any time."""
        process = self.__dict__.pop("_process", None)
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)  # also closes its stdin
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        except BrokenPipeError:
            process.wait()
        self._errors.close()

    def _order(self, **order: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> SideEnded:
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines()
        said = words[-1].removeprefix("kvmark: ").rstrip(".") if words else f"it ended with {code}"
        return SideEnded(self, said, code)


@contextmanager
def started(base: Side, head: Side, options: dict[str, Any]) -> Iterator[None]:
    """Both sides prepared, for as long as the `with` lasts. Raises SideEnded."""
    with ExitStack() as stack:
        for side in (base, head):
            stack.callback(side.close)
            side.start(options)
        for side in (head, base):
            side.prepared()
        yield


def take_turns(
    base: Side, head: Side, chosen: Callable[[SideCell], bool], hear: Hear, abreast: bool = False
) -> None:
    """Measure the chosen cells of both sides, turn by turn; `abreast`: the processes of a latency suite in
    rounds. Raises SideEnded."""
    turns: dict[tuple[str, int, str], dict[str, list[SideCell]]] = {}
    for side in (head, base):
        for cell in filter(chosen, side.cells):
            in_rounds = abreast and cell.process is None
            turn = (cell.suite, -1, "") if in_rounds else cell.turn
            turns.setdefault(turn, {}).setdefault(side.name, []).append(cell)
    # Suites and processes as the plan has them; replicates ascend, for ABBA.
    for (_, replicate, _), cells in turns.items():
        if replicate < 0:
            _in_rounds(base, head, cells, hear)
            continue
        for side in (base, head) if replicate % 2 == 0 else (head, base):
            if mine := cells.get(side.name):
                side.measure(mine, hear)


def _in_rounds(base: Side, head: Side, cells: dict[str, list[SideCell]], hear: Hear) -> None:
    """Both sides at once. Raises SideEnded, whichever side it is."""
    told: queue.SimpleQueue[tuple[Side, dict[str, Any] | Exception | None]] = queue.SimpleQueue()

    def listen(side: Side) -> None:
        try:
            for event in side.events():
                told.put((side, event))
            told.put((side, None))
        except Exception as end:  # its pipe may have been closed under it: then nobody hears this
            told.put((side, end))

    with Rounds(sides=2) as rounds:
        for side in (base, head):
            side.begin(cells.get(side.name, ()), rounds.address)
            threading.Thread(target=listen, args=(side,), daemon=True).start()
        left = 2
        while left:
            match told.get():
                case _, None:
                    left -= 1
                case _, Exception() as end:
                    raise end
                case side, event:
                    hear(side, event)
