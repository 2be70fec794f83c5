"""The machine card: where a number was measured and with what code. Never a hostname, path, UUID or date.

    {"id": "3f2a…", "device", "threads", "cpu_model", "cores", "affinity", "memory_bytes", …,
     "packages": {"torch": "2.13.0", …}, "gpu": {"name", "driver", …} | None, "commit", "dirty",
     "source_hash"}

`id` hashes what makes two machines comparable (CPU, cores, memory, GPU, driver), so a reboot keeps it and a
new driver changes it. Nothing here imports torch or creates a CUDA context. What cannot be found out is None.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from . import machine_limits, nvml

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = (
    *("torch", "triton", "numpy", "pandas", "pyarrow", "safetensors", "nvidia-ml-py", "lm-eval"),
    *("tokenizers", "huggingface_hub", "rouge-score"),
)

_SOURCES = ("harness", "models", "suites")
_SOURCE_SUFFIXES = (".py", ".toml")
#: What is made of measured numbers afterwards, and anew from them where it changes.
_JUDGING = (
    *("report", "validity", "comparison", "derived.py", "roofline.py", "throughput.py"),
    *("compare_commands.py", "show_comparison.py"),
)


def machine_card(device: str = "cpu", threads: int = 1, commit: str | None = None) -> dict[str, Any]:
    """Describe this machine and checkout as JSON-able data. `commit` is for checkouts without .git."""
    gpu, gpu_note = _gpu(device)
    stable = {
        "cpu_model": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": _gib(memory_bytes()),  # MemTotal moves by some MB with every kernel
        "gpu": gpu and {key: gpu[key] for key in ("name", "driver")},
    }
    return {
        "id": hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:12],
        "device": device,
        "threads": threads,
        "cpu_model": stable["cpu_model"],
        "cores": stable["cores"],
        "affinity": machine_limits.usable_cores(),
        "cpu_quota_cores": machine_limits.cgroup_cores(),
        "memory_bytes": memory_bytes(),
        "memory_limit_bytes": machine_limits.cgroup_memory_bytes(),
        "container": machine_limits.container_hint(),
        "os": _os_name(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: package_version(name) for name in PACKAGES},
        "gpu": gpu,
        "gpu_note": gpu_note,
        "load_average": list(os.getloadavg()),  # over 1, 5 and 15 minutes, before the run
        **checkout(commit=commit),
        "source_hash": source_hash(),
    }


@functools.cache
def source_hash(root: Path = ROOT) -> str:
    """SHA-256 of the code that can change a measured number: harness (without `_JUDGING`), models, suites.

    Part of every cell key, so changed code never serves old rows. Path and length go in with each file:
    moving a line from one file's end to the next one's start is a change. Cached for the life of the process.
    """
    digest = hashlib.sha256()
    for file in _source_files(root):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _source_files(root: Path) -> list[Path]:
    files = [f for top in _SOURCES for f in (root / top).rglob("*") if f.suffix in _SOURCE_SUFFIXES]
    judging = {root / "harness" / name for name in _JUDGING}
    return sorted(f for f in files if f.is_file() and not judging & {f, *f.parents})


def checkout(root: Path = ROOT, commit: str | None = None) -> dict[str, Any]:
    """The commit of this checkout and whether its sources differ from it.

    `dirty` looks at harness, models and suites only, untracked files included: notes and results in the
    checkout do not make a number doubtful. A commit given by hand has dirty None: nobody can check it.
    """
    if commit is not None:
        return {"commit": commit, "commit_source": "given", "dirty": None}
    # An installed copy may lie inside somebody else's repository, whose commit says nothing about us.
    top = _git(root, "rev-parse", "--show-toplevel")
    found = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or found is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "commit_source": None, "dirty": None}
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_SOURCES)
    return {"commit": found, "commit_source": "git", "dirty": None if changes is None else changes != ""}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # looking must not touch the index
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def package_version(name: str) -> str | None:
    """The installed version, read without importing the package. None: not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's name as the kernel gives it. ARM kernels give none."""
    return _field(cpuinfo, "model name")


def memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """All memory of the machine, or of the virtual machine; a container may use less of it."""
    text = _field(meminfo, "MemTotal")
    return None if text is None else int(text.split()[0]) * 1024  # "kB" there means KiB


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), None
    )


def _gib(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else round(size_bytes / 2**30)


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _gpu(device: str) -> tuple[dict[str, Any] | None, str | None]:
    """The GPU's card, or None and why. A CPU run describes the GPU, too: it is part of the machine."""
    try:
        return nvml.open_gpu("cuda" if device == "cpu" else device).card(), None
    except nvml.NoGpu as error:
        return None, str(error)
