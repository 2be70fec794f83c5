"""`kvmark doctor`: can this machine run kvmark, and can its numbers be trusted? Each answer says what to do.

    ok    nothing to do
    warn  it runs; some number will be missing or noisier than it could be
    fail  it does not run

    software.py  Python, torch, triton, packages, pynvml, browser, commit
    gpu.py       driver, torch's build, clocks, who else uses the GPU, PIDs
    machine.py   threads, load, disk, data, peak memory

Looks without touching: no CUDA context, no network, no change of settings. Takes a few seconds, most of them
for importing torch in a process of its own.
"""

from __future__ import annotations

from pathlib import Path

from .. import machine_limits
from .check import Check
from .gpu import (
    check_build,
    check_clocks,
    check_driver,
    check_pid_namespace,
    check_processes,
    find_gpu,
)
from .machine import check_data, check_disk, check_load, check_peak_memory, check_threads
from .software import (
    check_browser,
    check_commit,
    check_packages,
    check_pynvml,
    check_python,
    check_torch,
    check_triton,
    find_torch,
)


def checks(threads: int = 1, out: Path = Path("."), device: str = "cpu") -> list[Check]:
    """All checks, for a run with this many threads on this device that writes to `out`."""
    torch, gpu = find_torch(), find_gpu(device)
    found = [check_python(), check_torch(torch), check_packages(), check_triton(), check_pynvml()]
    found.append(check_driver(gpu, device))
    if not isinstance(gpu, Exception):
        found += [check_build(torch, gpu.card(), device), check_clocks(gpu), check_processes(gpu)]
    return [
        *found,
        check_pid_namespace(),
        check_threads(threads, len(machine_limits.usable_cores()), machine_limits.cgroup_cores()),
        check_load(),
        check_disk(out),
        check_data(),
        check_peak_memory(),
        check_browser(),
        check_commit(),
    ]
