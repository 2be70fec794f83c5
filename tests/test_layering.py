"""Who may import whom: the contracts of pyproject.toml hold, and would notice a bad import."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.environment import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = ["--config", str(folder / "pyproject.toml"), "--no-cache"]
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments], cwd=folder, capture_output=True, text=True,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path) -> Path:
    for name in ("harness", "models", "suites"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("models/layers.py", "from suites import suite"),
        ("models/layers.py", "from harness import store"),
        ("suites/suite.py", "import harness.clock"),
        ("harness/report/load.py", "import torch"),
        ("harness/report/load.py", "import models"),
        ("harness/report/load.py", "import ray"),
        ("harness/store.py", "import pynvml"),
        ("harness/report/load.py", "from .. import execute"),
    ],
)
def test_a_bad_import_is_noticed(copy, file, line):
    """The last one reaches torch through another module of ours."""
    path = copy / file
    lines = path.read_text(encoding="utf-8").splitlines()
    after = lines.index("from __future__ import annotations") + 1
    path.write_text("\n".join([*lines[:after], line, *lines[after:]]) + "\n", encoding="utf-8")
    done = lint(copy)
    assert done.returncode != 0 and "BROKEN" in done.stdout, done.stdout + done.stderr


def test_the_report_imports_no_torch():
    code = (
        "import sys\n"
        "import harness.report, harness.report.page, harness.report.sections\n"
        "bad = {'torch', 'models', 'suites', 'pynvml'} & sys.modules.keys()\n"
        "sys.exit(f'imported {bad}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ray_is_imported_by_nobody_but_its_executor():
    """By name, when it is asked for: whoever has not installed it notices nothing."""
    code = (
        "import sys\n"
        "import harness.cli, harness.runner, harness.executors.node, harness.executors.ray_executor\n"
        "sys.exit('imported ray' if 'ray' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [file for top in ("harness", "models", "suites") for file in (ROOT / top).rglob("*.py")]
    found = r"\b(import|from) ray\b|import_module\(.ray"
    named = [file.name for file in files if re.search(found, file.read_text())]
    assert named == ["ray_executor.py"]
