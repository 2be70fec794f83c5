"""Processes of a run that can be killed cheaply: forked from one that has imported everything.

    test ──► nursery    imports torch, pyarrow and all of kvmark once; adopts and reaps orphans
                └─fork─► parent     the real command, `kvmark run ...`
                           ├─fork─► worker     harness.worker.main, in a session of its own
                           └─fork─► sampler    harness.sampler.main

Only the start of an interpreter and its imports are left out. Every process reports a *tick*, "LIFE ROLE PID
EVENT", for each of its dealings with the file system (Python's audit events), so a test can count a process's
life in things that it did instead of seconds. A command may come with a fault at one tick:
`Fault("worker", "os.rename", "cells/", nth=2, act=AFTER)`.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from harness_help import Bench

from harness.plan import Cell, Settings
from harness.store import outcome
from harness.supervise import Supervisor, _Listener

#: Where a forked process finds the pipe of ticks.
_TICKS = 200
_EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.chmod", "fcntl.flock", "subprocess.Popen")
_EVENTS += ("tempfile.mkstemp",)
BEFORE, AFTER, FILL = "before", "after", "fill"

_NURSERY = """
import sys
sys.path.insert(0, sys.argv[1])
import fault_help
fault_help.nursery(int(sys.argv[2]), sys.argv[3:])
"""


# --- in the test -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """At the nth `event` of a role on a path with these characters: die before it, or after it (a rename), or
    fill the file system of `filler` up before it.
    """

    role: str
    event: str
    path: str
    nth: int = 1
    act: str = BEFORE
    filler: str = ""


@dataclass
class Life:
    """One command: its processes by role, what each has done so far, and how it ended."""

    number: int
    ticks: Counter[str] = field(default_factory=Counter)  # by role
    pids: dict[str, int] = field(default_factory=dict)  # the newest of each role
    renamed: list[tuple[str, str]] = field(default_factory=list)  # (role, name that a file was given)
    code: int | None = None  # negative: the signal that ended the parent


class Nursery:
    """Forks commands one after the other; see the module. What the options `warm` name is read beforehand."""

    def __init__(self, bench: Bench, *warm: str) -> None:
        self.bench, self._lives, self._rest = bench, 0, b""
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _NURSERY, str(Path(__file__).parent), str(writer), *warm],
            cwd=bench.cwd, env=bench.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            pass_fds=[writer],
        )  # fmt: skip
        os.close(writer)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def start(self, *arguments: str, fault: Fault | None = None, first: str = "") -> Life:
        """Begin a command; each of its processes runs the code `first` first, which knows its `role`."""
        self._lives += 1
        assert self._process.stdin is not None
        order = {"arguments": arguments, "life": self._lives, "here": str(self.bench.here), "first": first}
        order["fault"] = fault and asdict(fault)
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Life(self._lives)

    def watch(self, life: Life, seconds: float = 0.05) -> None:
        """Note the ticks that have come, or come within `seconds`; `life.code` is set once it is over.

        Over means that no process of it is left: those that outlive the parent end on their own, or the
        nursery says so and this raises.
        """
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._reader, self._process.stdout], [], [], seconds)
        if self._reader in readable:
            *lines, self._rest = (self._rest + os.read(self._reader, 1 << 16)).split(b"\n")
            for line in lines:
                number, role, pid, event, path = line.decode(errors="replace").split(" ", 4)
                if int(number) == life.number:
                    life.ticks[role] += 1
                    life.pids[role] = int(pid)
                    if event == "os.rename":
                        life.renamed.append((role, path))
        elif self._process.stdout in readable:  # only when all ticks are read
            answer = json.loads(self._process.stdout.readline())
            assert answer["left"] == [], f"processes outlived their run: {answer['left']}"
            life.code = answer["code"]

    def run(self, *arguments: str, fault: Fault | None = None, first: str = "") -> Life:
        """Begin a command and wait until all of its processes have ended."""
        life, end = self.start(*arguments, fault=fault, first=first), time.monotonic() + 300
        while life.code is None:
            assert time.monotonic() < end, "waited in vain"
            self.watch(life, 1.0)
        return life

    @property
    def out(self) -> str:
        """What the last command printed."""
        return (self.bench.here / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self.bench.here / "err").read_text(encoding="utf-8")

    def close(self) -> None:
        self._process.communicate()
        os.close(self._reader)


def last_words(tmp_path: Path, script: str, timeout_s: float = 5.0) -> dict[str, str]:
    """Statuses after a process in a worker's place, of cells a, b and c, ran `script`; `say` prints an event.

    Where the parent wrote a failure, its file must say the same.
    """
    code = (
        "import json, os, signal, sys, time\n"
        "def say(event, cell, **more):\n"
        "    print(json.dumps({'event': event, 'cell': cell, 't_s': 0, **more}), flush=True)\n" + script
    )
    common = {"run": "r", "machine": "m", "sources": {}, "weights": {}}
    supervisor = Supervisor(tmp_path, Settings("tiny", timeout_s=timeout_s), common)
    cells = {key: Cell(key, "transformer", "decode", {"context": 1}) for key in "abc"}
    with (
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) as process,
        tempfile.TemporaryFile("w+") as errors,
    ):
        try:
            _Listener(supervisor, process, [], cells).listen(errors)
        finally:
            process.kill()
    for key, status in supervisor.statuses.items():
        if status in ("crash", "timeout"):
            assert outcome(tmp_path / "cells" / f"{key}.parquet")[0] == status
    return supervisor.statuses


# --- in the nursery and its children ---------------------------------------------------------------


def nursery(ticks: int, warm: list[str]) -> None:
    """Import everything, then fork a command for every line of stdin."""
    import ctypes

    import torch

    import harness
    import harness.cli
    import harness.environment

    for found in pkgutil.walk_packages(harness.__path__, "harness."):
        if found.name != "harness.lm_eval_entry":  # imports the whole of another library
            importlib.import_module(found.name)
    torch.set_num_threads(1)
    harness.environment.source_hash()
    if warm:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            harness.cli.app(["plan", *warm])
    os.dup2(ticks, _TICKS)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whoever is orphaned is ours to reap
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if (pid := os.fork()) == 0:
            _born("parent", order)
            _exit_of(partial(harness.cli.app, order["arguments"], prog_name="kvmark"))
        print(json.dumps({"code": _reap(pid), "left": _reap_orphans()}), flush=True)


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap_orphans(seconds: float = 60.0) -> list[int]:
    """Wait for those that a dead parent left; returns whoever does not end, killed."""
    end, left = time.monotonic() + seconds, []
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return left
        if pid == 0:
            if time.monotonic() > end:
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                left += map(int, children)
                for child in children:
                    os.kill(int(child), signal.SIGKILL)
            time.sleep(0.002)


def _born(role: str, order: dict) -> None:
    """A new process: streams of its own, ticks, and the tick at which it shall die."""
    if role == "parent":
        os.setsid()
        null, here = os.open(os.devnull, os.O_RDONLY), Path(order["here"])
        os.dup2(null, 0)
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(here / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        subprocess.Popen = _forking(order)
    os.closerange(3, _TICKS)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
    fault = Fault(**order["fault"]) if order["fault"] else None
    fault = fault if fault and fault.role == role else None
    seen = 0
    me = os.getpid()  # a fork inherits the hook and gets its own beside it

    def tick(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in _EVENTS or os.getpid() != me:
            return
        path = str(arguments[1 if event == "os.rename" else 0])
        os.write(_TICKS, f"{order['life']} {role} {me} {event} {path[-200:]!r}\n".encode())
        if fault and fault.event == event and fault.path in path:
            seen += 1
            if seen == fault.nth and fault.act == BEFORE:
                os.kill(me, signal.SIGKILL)
            if seen == fault.nth and fault.act == FILL:
                fill(fault.filler)

    if fault and fault.act == AFTER:
        replace, os.replace = os.replace, lambda *paths: die_after(*paths)

        def die_after(*paths: object) -> None:
            replace(*paths)
            if os.getpid() == me and fault.path in str(paths[1]) and seen == fault.nth:
                os.kill(me, signal.SIGKILL)

    exec(order["first"], {"role": role})
    sys.addaudithook(tick)


def fill(filler: str) -> None:
    """Leave no byte free on the file system of this file."""
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def _forking(order: dict) -> type:
    """subprocess.Popen for whom our own modules are forked instead of started."""

    class Forking(subprocess.Popen):
        _original = inspect.signature(subprocess.Popen._execute_child)

        def _execute_child(self, *arguments, **named):
            bound = self._original.bind(self, *arguments, **named).arguments
            words = bound["args"]
            if "-m" not in words:
                return super()._execute_child(*arguments, **named)
            module, rest = words[words.index("-m") + 1], list(words[words.index("-m") + 2 :])
            self.pid = os.fork()
            if self.pid == 0:
                if bound["start_new_session"]:
                    os.setsid()
                for fd, at in (("p2cread", 0), ("c2pwrite", 1), ("errwrite", 2)):
                    if bound[fd] != -1:
                        os.dup2(bound[fd], at)
                if bound["env"] is not None:
                    os.environ.clear()
                    os.environ.update(bound["env"])
                _born(module.split(".")[-1], order)
                argument = rest[0] if module == "harness.worker" else rest
                _exit_of(partial(sys.modules[module].main, argument))
            self._child_created = True
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(bound[name] for name in pipes))

    return Forking


def _exit_of(main) -> None:
    """End this process as an interpreter would."""
    code = 1
    try:
        code = main() or 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
