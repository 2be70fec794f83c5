"""What the operating system lets a process have, and whom it dies with. Linux; no torch, no NVML.

    parent ──► worker     die_with_parent(os.getpid() of the parent), limit_memory(bytes)
           └─► sampler    die_with_parent(...), and the end of its stdin

Limits that are not there, or cannot be read on this system, are None.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
#: Inode of the first PID namespace of every Linux kernel (PROC_PID_INIT_INO).
_FIRST_PID_NAMESPACE = "pid:[4026531836]"


def die_with_parent(parent_pid: int, with_signal: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent ends; exit at once if it already has.

    Linux sends the signal when the *thread* that started us ends: start children from a thread that
    lives as long as they should (the parent's main thread). Elsewhere than on Linux only the check is made.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have ended between our start and the call above: then the signal never comes.
    if os.getppid() != parent_pid:
        raise SystemExit(0)


def signal_name(number: int) -> str:
    """ "SIGKILL" of 9; real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def limit_memory(limit_bytes: int) -> None:
    """Make allocations beyond `limit_bytes` of private writable memory fail instead of the machine.

    RLIMIT_DATA, not RLIMIT_AS: address space that is only reserved (CUDA, thread arenas) does not count.
    What the process already holds counts, so import everything first, or allow for it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def lift_memory_limit() -> None:
    """Undo `limit_memory`, as far as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def status_bytes(name: str, status: Path = Path("/proc/self/status")) -> int | None:
    """A size of this process: VmHWM is its resident peak, VmData what `limit_memory` counts."""
    return _kib(status, name)


def available_memory_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What a new process could take without pushing others out. None where the system does not tell."""
    found = [_kib(meminfo, "MemAvailable")]
    limit, used = cgroup_memory_bytes(cgroups), cgroup_memory_used_bytes(cgroups)
    found.append(None if limit is None or used is None else max(limit - used, 0))
    return min((size for size in found if size is not None), default=None)


def _kib(file: Path, name: str) -> int | None:
    """A line "name:  123 kB" of /proc, where "kB" means KiB, in bytes."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        return int(lines[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """Processes that the kernel has ended for want of memory since boot. None where it does not tell."""
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU quota in cores, of cgroup v2 or v1. None: no quota, or none that can be read."""
    try:
        quota, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def cgroup_memory_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit of our control group. None: no limit, or none that can be read."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        # v1 writes "no limit" as the largest page-aligned 63-bit number.
        return None if text == "max" or int(text) >= 1 << 62 else int(text)
    return None


def cgroup_memory_used_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What our control group uses, without files that the kernel would drop. None: unreadable."""
    for used, statistics, cached in (
        ("memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            counts = dict(line.split() for line in (root / statistics).read_text().splitlines())
            return max(int((root / used).read_text()) - int(counts[cached]), 0)
        except (OSError, ValueError, KeyError):
            continue
    return None


def container_hint() -> str | None:
    """A word for the container we seem to be in. None: no sign of one, which proves nothing."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return "pid-namespace" if in_pid_namespace() else None


def in_pid_namespace() -> bool | None:
    """Whether our PIDs differ from the host's. NVML may list processes by host PID. None: unreadable."""
    try:
        return os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE
    except OSError:
        return None
