"""The doctor on software: what is installed, whether it fits together, whether results name their code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from .. import environment
from .check import Check

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

_ASK_TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda]))"


@dataclass(frozen=True)
class Torch:
    """What torch says of itself; `problem` is why it says nothing."""

    version: str = ""
    cuda: str | None = None  # the CUDA version that it was built for; None: no CUDA build
    problem: str | None = None


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python itself."""
    text = ".".join(map(str, version))
    if version[:2] >= MIN_PYTHON:
        return Check("python", "ok", f"Python {text}.")
    return Check(
        "python", "fail", f"Python {text} is too old: make the environment with Python 3.11 or later."
    )


def find_torch(python: str = sys.executable) -> Torch:
    """Import torch in a process of its own, which sees no GPU."""
    try:
        done = subprocess.run(
            [python, "-c", _ASK_TORCH],
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        return Torch(problem="Importing torch takes over 3 minutes: look at the disk it lies on.")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].rstrip(".")
        return Torch(problem=f"torch does not import ({last}): reinstall it.")
    return Torch(*json.loads(done.stdout.strip().splitlines()[-1]))


def check_torch(torch: Torch) -> Check:
    """Whether torch imports and is a version that kvmark allows."""
    if torch.problem:
        return Check("torch", "fail", torch.problem)
    found = tuple(int(part) for part in re.findall(r"\d+", torch.version)[:2])
    if found >= MIN_TORCH:
        return Check("torch", "ok", f"torch {torch.version} imports.")
    return Check("torch", "fail", f"torch {torch.version} is older than 2.11: install torch>=2.11.")


def check_packages() -> Check:
    """The packages that a run and a report cannot do without."""
    needed = ("numpy", "pandas", "pyarrow", "matplotlib", "safetensors", "typer", "rich")
    missing = [name for name in needed if environment.package_version(name) is None]
    if missing:
        return Check(
            "packages", "fail", f"Not installed: {', '.join(missing)}; install kvmark's requirements."
        )
    return Check("packages", "ok", "All required packages are installed.")


def check_triton(
    installed: Callable[[str], str | None] = environment.package_version,
    requires: Callable[[str], list[str] | None] = metadata.requires,
) -> Check:
    """Each build of torch is made for one version of triton; another one fails at its first kernel."""
    try:
        lines = requires("torch") or []
    except metadata.PackageNotFoundError:
        lines = []
    asked = (re.match(r"((?:pytorch-)?triton)\s*\(?==\s*([^\s;)]+)", line) for line in lines)
    name, wanted = next((match.groups() for match in asked if match), ("triton", None))
    found = installed(name)
    if wanted is None:
        here = "none is installed" if found is None else f"{found} is installed"
        return Check("triton", "ok", f"This build of torch asks for no version of triton; {here}.")
    if found == wanted:
        return Check("triton", "ok", f"{name} {found} is the one that torch wants.")
    here = "none is installed" if found is None else f"{found} is installed"
    return Check("triton", "warn", f"torch wants {name} {wanted} and {here}: pip install {name}=={wanted}.")


def check_pynvml(
    installed: Callable[[str], str | None] = environment.package_version,
) -> Check:
    """nvidia-ml-py is the maintained package; others install an old module of the same name over its own."""
    for name in ("pynvml", "nvidia-ml-py3"):
        version = installed(name)
        if version is not None and (name != "pynvml" or int(version.split(".")[0]) < 12):
            advice = f"pip uninstall {name}, then reinstall nvidia-ml-py"
            return Check("pynvml", "warn", f"The old {name} {version} shadows nvidia-ml-py: {advice}.")
    if (right := installed("nvidia-ml-py")) is None:
        return Check("pynvml", "warn", "No GPU telemetry without nvidia-ml-py: install it.")
    return Check("pynvml", "ok", f"nvidia-ml-py {right}.")


def check_browser(which: Callable[[str], str | None] = shutil.which) -> Check:
    """Only the test that opens the report needs one."""
    found = next((name for name in BROWSERS if which(name)), None)
    if found is None:
        return Check("browser", "warn", "No Chromium: `make test` skips the report's page; install chromium.")
    return Check("browser", "ok", f"{found} is installed.")


def check_commit() -> Check:
    """A number without the commit that made it cannot be reproduced."""
    state = environment.checkout()
    if state["commit"] is None:
        return Check("commit", "warn", "No git commit found: pass --commit, so that results name their code.")
    if state["dirty"]:
        return Check("commit", "warn", "The sources have uncommitted changes: commit before a reference run.")
    return Check("commit", "ok", f"Sources are those of commit {state['commit'][:12]}.")
