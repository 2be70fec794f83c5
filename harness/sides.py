"""Two sides that take turns: the handles of two `harness.side` processes, and the order they measure in.

    replicate    0          1          2          3
              base head  head base  base head  head base       ABBA: a machine that slowly warms up, or
                                                               fills, slows both sides down alike

A turn is one worker's cells: of a latency suite all architectures of one replicate (they share a process and
their repeats are interleaved), of a quality suite one architecture. Only one side measures at any time; the
other blocks in a read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from .environment import ROOT
from .exits import EXIT_ENVIRONMENT
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
        self.refused, self.remarks = ready["refused"], ready["remarks"]
        self.plan_name = ready["name"]

    def measure(self, cells: Iterable[SideCell], hear: Hear) -> None:
        """Measure what is not measured yet of these cells; the folder's tables are then of them.

        Raises SideEnded.
        """
        self._order(do="measure", out=str(self.folder.resolve()), cells=[cell.key for cell in cells])
        while (event := self._answer())["event"] != "measured":
            hear(self, event)

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


def take_turns(base: Side, head: Side, chosen: Callable[[SideCell], bool], hear: Hear) -> None:
    """Measure the chosen cells of both sides, turn by turn. Raises SideEnded."""
    turns: dict[tuple[str, int, str], dict[str, list[SideCell]]] = {}
    for side in (head, base):
        for cell in filter(chosen, side.cells):
            turns.setdefault(cell.turn, {}).setdefault(side.name, []).append(cell)
    # Suites and processes as the plan has them; replicates ascend, for ABBA.
    for (_, replicate, _), cells in turns.items():
        for side in (base, head) if replicate % 2 == 0 else (head, base):
            if mine := cells.get(side.name):
                side.measure(mine, hear)
