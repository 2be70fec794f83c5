"""`kvmark doctor`: can this machine run kvmark, and can its numbers be trusted? Each answer says what to do.

    ok    nothing to do
    warn  it runs; some number will be missing or noisier than it could be
    fail  it does not run

Looks without touching: no CUDA context, no network, no change of settings. Takes a few seconds, most of them
for importing torch in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import clock, environment, machine_limits, nvml

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
LOW_DISK_BYTES = 2 << 30
NO_DISK_BYTES = 100 << 20
BUSY_SHARE = 0.05
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Check:
    """One answer. `detail` is one sentence; unless the status is ok it says what to do."""

    name: str
    status: str  # "ok" | "warn" | "fail"
    detail: str


def checks(threads: int = 1, out: Path = Path(".")) -> list[Check]:
    """All checks, for a run with this many threads that writes to `out`."""
    questions: list[Callable[[], Check]] = [
        check_python,
        check_torch,
        check_packages,
        check_gpu,
        check_pynvml,
        lambda: check_threads(threads, len(machine_limits.usable_cores()), machine_limits.cgroup_cores()),
        check_load,
        lambda: check_disk(out),
        check_data,
        check_peak_memory,
        check_browser,
        check_pid_namespace,
        check_commit,
    ]
    return [question() for question in questions]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python itself."""
    text = ".".join(map(str, version))
    if version[:2] >= MIN_PYTHON:
        return Check("python", "ok", f"Python {text}.")
    return Check(
        "python", "fail", f"Python {text} is too old: make the environment with Python 3.11 or later."
    )


def check_torch(python: str = sys.executable) -> Check:
    """Whether torch imports (in a process of its own, which sees no GPU) and is new enough."""
    try:
        done = subprocess.run(
            [python, "-c", "import torch; print(torch.__version__)"],
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    except subprocess.TimeoutExpired:
        return Check("torch", "fail", "Importing torch takes over 3 minutes: look at the disk it lies on.")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].rstrip(".")
        return Check("torch", "fail", f"torch does not import ({last}): reinstall it.")
    return judge_torch(done.stdout.strip().splitlines()[-1])


def judge_torch(version: str) -> Check:
    """Whether a torch version is one that kvmark allows."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found >= MIN_TORCH:
        return Check("torch", "ok", f"torch {version} imports.")
    return Check("torch", "fail", f"torch {version} is older than 2.11: install torch>=2.11.")


def check_packages() -> Check:
    """The packages that a run and a report cannot do without."""
    needed = ("numpy", "pandas", "pyarrow", "matplotlib", "safetensors", "typer", "rich")
    missing = [name for name in needed if environment.package_version(name) is None]
    if missing:
        return Check(
            "packages", "fail", f"Not installed: {', '.join(missing)}; install kvmark's requirements."
        )
    return Check("packages", "ok", "All required packages are installed.")


def check_gpu(torch_version: str | None = None) -> Check:
    """Whether NVML answers, and whether torch is the build that can use what it shows."""
    try:
        card = nvml.open_gpu("cuda").card()
    except nvml.NoGpu as error:
        advice = "runs on the CPU work; GPU numbers need an NVIDIA driver"
        return Check("gpu", "warn", f"{str(error).rstrip('.')}: {advice}.")
    torch_version = torch_version or environment.package_version("torch") or ""
    name = f"{card['name']}, driver {card['driver']}"
    if "+cpu" in torch_version:
        return Check("gpu", "warn", f"{name}, but torch {torch_version} cannot use it: install a CUDA build.")
    return Check("gpu", "ok", f"{name}.")


def check_pynvml(
    installed: Callable[[str], str | None] = environment.package_version,
) -> Check:
    """nvidia-ml-py is the maintained package; pynvml before 12 installs an old module of the same name."""
    old, right = installed("pynvml"), installed("nvidia-ml-py")
    if old is not None and int(old.split(".")[0]) < 12:
        advice = "uninstall pynvml, then reinstall nvidia-ml-py"
        return Check("pynvml", "warn", f"The unmaintained pynvml {old} shadows nvidia-ml-py: {advice}.")
    if right is None:
        return Check("pynvml", "warn", "No GPU telemetry without nvidia-ml-py: install it.")
    return Check("pynvml", "ok", f"nvidia-ml-py {right}.")


def check_threads(threads: int, usable: int, quota_cores: float | None) -> Check:
    """More threads than cores time the scheduler, not the architecture."""
    if threads > usable:
        advice = f"use --threads {usable} or widen the affinity"
        return Check("threads", "warn", f"{threads} threads on {usable} usable cores: {advice}.")
    if quota_cores is not None and threads > quota_cores:
        advice = "lower --threads or raise the container's quota"
        return Check("threads", "warn", f"{threads} threads on a quota of {quota_cores:g} cores: {advice}.")
    return Check("threads", "ok", f"{threads} of {usable} usable cores.")


def check_load(window_s: float = 0.5) -> Check:
    """What others do on this machine now: measured over a moment, since the load average lags by a minute."""
    before, own_s = clock.cpu_ticks(), time.process_time()
    time.sleep(window_s)
    share = clock.foreign_share(before, clock.cpu_ticks(), time.process_time() - own_s)
    if share is None:
        return Check(
            "load", "warn", "The load by others cannot be read here: make sure that nothing else runs."
        )
    text = f"{share:.0%} of the machine is busy with other work (load average {os.getloadavg()[0]:.2f})"
    if share > BUSY_SHARE:
        return Check("load", "warn", f"{text}: stop it, or expect noisy latencies.")
    return Check("load", "ok", f"{text}.")


def check_disk(out: Path) -> Check:
    """Room for results, below the nearest folder that exists."""
    folder = next(path for path in (out.resolve(), *out.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free where results go"
    if free < NO_DISK_BYTES:
        return Check("disk", "fail", f"{text}: free some, or choose another --out.")
    if free < LOW_DISK_BYTES:
        return Check(
            "disk", "warn", f"{text}: enough for a small run only; free some, or choose another --out."
        )
    return Check("disk", "ok", f"{text}.")


def check_data(environ: dict[str, str] | None = None) -> Check:
    """The folder that KVMARK_DATA names and, if the environment is this process's own, the cache folder."""
    from suites.data import cache_folder
    from suites.data.verify import names_in

    folder = (os.environ if environ is None else environ).get("KVMARK_DATA")
    cached = names_in(cache_folder()) if environ is None else []
    if folder and not Path(folder).is_dir():
        return Check("data", "fail", f"KVMARK_DATA names {folder}, which is no folder: correct or unset it.")
    if folder and not (Path(folder) / "pg19").is_dir() and not cached:
        advice = "put PG-19 books there or use `kvmark data fetch`"
        return Check("data", "warn", f"{folder} has no pg19 folder: {advice}.")
    if not folder and not cached:
        advice = "`kvmark data fetch pg19/test` gets genuine PG-19 books"
        return Check("data", "warn", f"No data is here and KVMARK_DATA is not set: {advice}.")
    named = "KVMARK_DATA has a pg19 folder" if folder and (Path(folder) / "pg19").is_dir() else ""
    here = f"{len(cached)} sets are in the cache folder" if cached else ""
    return Check("data", "ok", f"{'; '.join(filter(None, (named, here)))}.")


def check_peak_memory(proc: Path = Path("/proc/self")) -> Check:
    """Whether a CPU worker can start a new peak of resident memory per phase."""
    peak = clock.PeakMemory("cpu", proc=proc)
    peak.reset()
    if peak.reason:
        advice = "peaks of CPU runs will be null; use a host or container that allows it"
        return Check("peak memory", "warn", f"No peak memory, because {peak.reason}: {advice}.")
    return Check("peak memory", "ok", "The peak of resident memory can be reset.")


def check_browser(which: Callable[[str], str | None] = shutil.which) -> Check:
    """Only the test that opens the report needs one."""
    found = next((name for name in BROWSERS if which(name)), None)
    if found is None:
        return Check("browser", "warn", "No Chromium: `make test` skips the report's page; install chromium.")
    return Check("browser", "ok", f"{found} is installed.")


def check_pid_namespace(inside: bool | None = None) -> Check:
    """NVML may list host PIDs; a container has others, so a worker's own GPU memory stays unknown."""
    inside = machine_limits.in_pid_namespace() if inside is None else inside
    if inside:
        advice = "start the container with --pid=host to have it"
        return Check("pid namespace", "warn", f"GPU memory per process may be null in here: {advice}.")
    if inside is None:
        return Check("pid namespace", "ok", "This system has no readable PID namespace.")
    return Check("pid namespace", "ok", "The PIDs here are the host's.")


def check_commit() -> Check:
    """A number without the commit that made it cannot be reproduced."""
    state = environment.checkout()
    if state["commit"] is None:
        return Check("commit", "warn", "No git commit found: pass --commit, so that results name their code.")
    if state["dirty"]:
        return Check("commit", "warn", "The sources have uncommitted changes: commit before a reference run.")
    return Check("commit", "ok", f"Sources are those of commit {state['commit'][:12]}.")
