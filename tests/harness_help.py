"""A private copy of our sources to break, toys to drop into it, and the processes that run it.

Cell keys hash the sources and tests run side by side, so whoever drops a file or needs stable keys
works on a copy: `Bench(tmp_path).run("run", *TINY, "--arch", "transformer", "--out", "r")`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

import models

ROOT = Path(models.__file__).parent.parent

#: The smallest run that still has prefill, decode and two sizes.
TINY = ("--shape", "tiny", "--suite", "decode:new_tokens=3", "--contexts", "32,64", "--repeats", "1")

#: A toy is the Transformer that does something when a call has so many tokens; `HERE` is a scratch folder.
_TOY = '''"""The toy {name}."""

import os
import signal
import time
from pathlib import Path

import torch

from .transformer import Model as Transformer
from .transformer import Options as Options

HERE = Path(os.environ.get("TOY_HERE", "."))


class Model(Transformer):
    def extend(self, tokens_BT, valid_BT, cache, logits="last"):
        if tokens_BT.shape[1] == {at}:
            self.act()
        return super().extend(tokens_BT, valid_BT, cache, logits)

    def act(self):
        {act}
'''

#: Answers commands in one process, so that torch is imported once.
_SERVER = """
import json, sys
from typer.testing import CliRunner
from harness.cli import app
out = sys.stdout
for line in sys.stdin:
    r = CliRunner().invoke(app, json.loads(line))
    broke = r.exception is not None and not isinstance(r.exception, SystemExit)
    broke = repr(r.exception) if broke else None
    answer = {"code": r.exit_code, "out": r.stdout, "err": r.stderr, "broke": broke}
    print(json.dumps(answer), file=out, flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended. `broke` is an exception that nobody turned into a sentence."""

    code: int
    out: str
    err: str
    broke: str | None = None


class Bench:
    """A copy of the sources, a working directory beside it, and kvmark run there."""

    def __init__(self, folder: Path) -> None:
        self.source, self.cwd, self.here = folder / "source", folder / "cwd", folder / "here"
        for name in ("harness", "models", "suites"):
            # What is compiled comes along, without what another process is just writing.
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("*.pyc.*"))
        shutil.copy(ROOT / ".gitignore", self.source)  # else compiled files make a committed copy dirty
        self.cwd.mkdir()
        self.here.mkdir()
        self._server: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def toy(self, name: str, act: str = "pass", at: int = 64) -> str:
        """Drop an architecture that does `act` when `at` tokens come in one call; returns its name."""
        body = act.strip().replace("\n", "\n        ")
        path = self.source / "models" / "architectures" / f"{name}.py"
        path.write_text(_TOY.format(name=name, act=body, at=at), encoding="utf-8")
        return name

    @property
    def environment(self) -> dict[str, str]:
        mine = {"PYTHONPATH": str(self.source), "TOY_HERE": str(self.here), "COLUMNS": "200"}
        return {k: v for k, v in os.environ.items() if k != "KVMARK_DATA"} | mine

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A kvmark process of its own, as a shell would start it."""
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.cli", *arguments],
            cwd=self.cwd, env=self.environment, text=True, stdout=pipe, stderr=pipe,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, *arguments: str, give_up_s: float = 400.0) -> Done:
        """Start it and wait. `give_up_s` only keeps a hanging run from hanging the tests."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=give_up_s)
        finally:
            process.kill()
        return Done(process.returncode, out, err)

    def ask(self, *arguments: str) -> Done:
        """The same through a process that stays: it sees sources as they were at the first question."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVER], cwd=self.cwd, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(arguments) + "\n")
        self._server.stdin.flush()
        return Done(**json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        for process in self._started:  # a test that failed left it as it was, and its pipes open
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._started.clear()
        if self._server is not None:
            self._server.communicate()
            self._server = None


def cells(run: Path) -> dict[str, bytes]:
    """Every finished cell's file, as it lies there."""
    return {path.name: path.read_bytes() for path in sorted((run / "cells").glob("[!.]*"))}


def rows(run: Path) -> pd.DataFrame:
    return pq.read_table(run / "rows.parquet").to_pandas()


def telemetry(run: Path) -> pd.DataFrame:
    return pq.read_table(run / "telemetry.parquet").to_pandas()


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder; directories are empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def processes_of(run: Path) -> list[str]:
    """Command lines of workers and samplers that name this run folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "-m" in words and any(w in ("harness.worker", "harness.sampler") for w in words):
            cwd = Path(os.path.realpath(path.with_name("cwd")))
            if any(
                (cwd / word).is_relative_to(run) for word in words if word.endswith((".json", ".parquet"))
            ):
                found.append(" ".join(words))
    return found


def wait_for(condition, seconds: float = 300.0):
    """The first true answer. Generous: on a busy machine a Python start takes many seconds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return answer


def one_sentence(done: Done, code: int) -> str:
    """What stderr says: a single line from kvmark, without a traceback, with the documented exit code."""
    assert done.broke is None, done.broke
    assert done.code == code, (done.code, done.out, done.err)
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("kvmark: "), done.err
    assert lines[0].endswith("."), lines[0]
    assert "Traceback" not in done.out + done.err
    return lines[0]
