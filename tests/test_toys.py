"""One file dropped into a folder is an architecture or a suite: in `list`, the laws, `run` and the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from harness_help import ROOT, Bench, rows

ARCHITECTURE = '''"""Toy of a test: the window, but without sinks.

Nothing else names it."""

from dataclasses import dataclass

from .window import Model as Window


@dataclass(frozen=True)
class Options:
    budget: int = 64
    sinks: int = 0


class Model(Window):
    implementation = "toy"
'''

SUITE = '''"""Toy of a test: how probable the letter a is after a number of b."""

from dataclasses import dataclass

from ..suite import Case, Suite, seed_of


@dataclass(frozen=True)
class Options:
    counts: tuple[int, ...] = (4, 8)


class Workload(Suite):
    axis = "systems"
    needs_text = False

    def cells(self):
        return [{"count": count} for count in self.options.counts]

    def cases(self, cell):
        for row in range(2):
            id = f"toysuite/{cell['count']}/{row}"
            prompt = (98,) * (cell["count"] + row)
            yield Case(id, prompt, forced=(97,), axes=dict(cell), seed=seed_of(id))

    def score(self, case, answer):
        return {"toy_nats": -answer.logprobs[0]}
'''


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    (bench.source / "models" / "architectures" / "toyarch.py").write_text(ARCHITECTURE)
    (bench.source / "suites" / "workloads" / "toysuite.py").write_text(SUITE)
    yield bench
    bench.close()


def test_toys_appear_in_list_run_and_report(bench):
    listed = bench.ask("list").out
    assert re.search(r"^  toyarch +Toy of a test: the window", listed, re.MULTILINE)
    assert re.search(r"^  toysuite +Toy of a test: how probable", listed, re.MULTILINE)

    done = bench.ask(
        "run", "--arch", "toyarch:budget=3", "--arch", "transformer", "--suite", "toysuite:counts=4+9",
        "--shape", "tiny", "--out", "run",
    )  # fmt: skip
    assert (done.code, done.broke) == (0, None), done.err
    table = rows(bench.cwd / "run")
    scored = table[table.metric == "toy_nats"]
    assert len(scored) == 2 * 2 * 2 and (scored.value > 0).all()
    assert set(scored.case) == {f"toysuite/{count}/{row}" for count in (4, 9) for row in (0, 1)}
    mine = table[table.architecture == "toyarch:budget=3"]
    assert set(mine.implementation) == {"toy"} and set(mine.suite) == {"toysuite:counts=4+9"}
    # Two cells of two requests, four layers each, three of the tokens kept; the forced one is never fed.
    evicted = mine[mine.metric == "evicted_tokens"]
    assert sorted(evicted.value) == [4 * (n - 3) for n in (4, 5, 9, 10)]
    assert set(mine[mine.metric == "toy_nats"].evictions) == {4 * (1 + 2), 4 * (6 + 7)}

    page = (bench.cwd / "reports" / "local" / "run" / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    assert "toyarch:budget=3" in text and "toysuite" in text and "toy_nats" in text

    wrong = bench.ask("run", "--arch", "toyarch:size=3", "--suite", "toysuite", "--shape", "tiny")
    assert wrong.code == 2 and "budget, sinks" in wrong.err
    manifest = json.loads((bench.cwd / "run" / "run.json").read_text())
    assert manifest["text"] is None, "no suite asked for text"


@pytest.mark.full
def test_a_toy_architecture_is_held_to_the_laws(bench):
    """The law tests of this checkout, run against the copy: they find the file and it obeys."""
    ignore = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    shutil.copytree(ROOT / "tests", bench.source / "tests", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", bench.source)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "toyarch",
         "tests/test_laws.py"],
        cwd=bench.source, env=os.environ | {"PYTHONPATH": str(bench.source)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(".") > 20, "dots of law tests: " + done.stdout
