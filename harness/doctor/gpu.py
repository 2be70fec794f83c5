"""The doctor on the GPU: asks NVML, changes nothing. Without a GPU only the driver and PIDs are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import machine_limits, nvml
from .check import Check
from .software import Torch

#: Words of NVML's refusals, and what to do.
ADVICE = {
    "Shared Library Not Found": "install the NVIDIA driver; in a container, start it with --gpus all",
    "Driver Not Loaded": "load the driver's kernel module (modprobe nvidia)",
    "version mismatch": "the driver was updated under the running kernel module, so reboot",
    "Insufficient Permissions": "let this user open /dev/nvidia*",
    "GPU is lost": "reboot; if it comes back, look at the kernel's log for Xid errors",
    "requires restart": "reboot",
    "is visible": "set CUDA_VISIBLE_DEVICES or --device to a GPU that is there",
    "CUDA_DEVICE_ORDER": "otherwise its numbers may be another GPU's",
    "not installed": "install nvidia-ml-py",
}
#: The kernel's side of the driver. In a container it may be there without the library that NVML needs.
_KERNEL_SIDE = Path("/proc/driver/nvidia/version")
_CAP_SYS_ADMIN = 21
_APPLICATION_CLOCKS = 0  # NVML_RESTRICTED_API_SET_APPLICATION_CLOCKS
#: More than an idle driver keeps.
_IN_USE_BYTES = 512 << 20


def find_gpu(device: str = "cpu", module: Any = None) -> nvml.Gpu | nvml.NoGpu:
    """The GPU that a run on this device would use (of a CPU run: the first), or why there is none."""
    try:
        return nvml.open_gpu("cuda" if device == "cpu" else device, nvml=module)
    except nvml.NoGpu as error:
        return error


def _severity(device: str) -> str:
    return "fail" if device.startswith("cuda") else "warn"


def check_driver(gpu: nvml.Gpu | nvml.NoGpu, device: str = "cpu", kernel_side: Path = _KERNEL_SIDE) -> Check:
    """Whether NVML answers, and how far its driver reaches."""
    if isinstance(gpu, nvml.NoGpu):
        said = str(gpu).rstrip(".")
        advice = next((advice for words, advice in ADVICE.items() if words in said), "reinstall the driver")
        if "Library Not Found" in said and kernel_side.exists():
            advice = "the kernel has the driver, so start the container with NVIDIA_DRIVER_CAPABILITIES=all"
        rest = "" if device.startswith("cuda") else "runs on the CPU work; for GPU numbers, "
        return Check("driver", _severity(device), f"{said}: {rest}{advice}.")
    card = gpu.card()
    count = f", {card['count']} GPUs" if card["count"] > 1 else ""
    reach = f", CUDA up to {card['cuda_driver']}" if card["cuda_driver"] else ""
    return Check("driver", "ok", f"{card['name']}{count}, driver {card['driver']}{reach}.")


def check_build(torch: Torch, card: dict[str, Any], device: str = "cpu") -> Check:
    """Whether torch is a build that can use this GPU with this driver. Minor versions of CUDA get along."""
    name, reach = "torch build", card["cuda_driver"]
    if torch.problem:
        return Check(name, _severity(device), "Unknown, since torch does not import: see there.")
    if torch.cuda is None:
        most = f" for CUDA {reach} or earlier" if reach else ""
        said = f"torch {torch.version} cannot use the {card['name']}: install a build{most}."
        return Check(name, _severity(device), said)
    built = f"torch {torch.version} is built for CUDA {torch.cuda}"
    if reach and int(torch.cuda.split(".")[0]) > int(reach.split(".")[0]):
        advice = f"update the driver, or install a build for CUDA {reach.split('.')[0]}"
        return Check(name, _severity(device), f"{built}, driver {card['driver']} reaches {reach}: {advice}.")
    return Check(name, "ok", f"{built}.")


def check_clocks(gpu: nvml.Gpu, status: Path = Path("/proc/self/status")) -> Check:
    """Whether this user could hold the SM clock still. Looks at rights only: nothing is locked."""
    if not _may_administrate(status):
        advice = "ask an administrator for `nvidia-smi -lgc MHZ`; clocks are recorded in any case"
        # 0: not restricted to root.
        if gpu.ask("nvmlDeviceGetAPIRestriction", _APPLICATION_CLOCKS) == 0:
            advice = "`nvidia-smi -ac MEMORY,SM` may set application clocks instead"
        return Check("clocks", "warn", f"This user may not lock the SM clock (no CAP_SYS_ADMIN): {advice}.")
    how = "`nvidia-smi -lgc MHZ` before a run, `nvidia-smi -rgc` after it"
    if gpu.ask("nvmlDeviceGetPersistenceMode") == 0:
        advice = "`nvidia-smi -pm 1` first, or a lock ends with the last process on the GPU"
        return Check("clocks", "warn", f"The SM clock may be locked, but persistence mode is off: {advice}.")
    return Check("clocks", "ok", f"The SM clock may be locked: {how}.")


def _may_administrate(status: Path) -> bool:
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return bool(int(lines["CapEff"], 16) >> _CAP_SYS_ADMIN & 1)
    except (OSError, KeyError, ValueError):
        return False


def check_processes(gpu: nvml.Gpu) -> Check:
    """Who uses the GPU now. The doctor does not, so everybody is somebody else."""
    name, computing = "gpu processes", gpu.ask("nvmlDeviceGetComputeRunningProcesses")
    if computing is None:
        return Check(name, "warn", "Who uses the GPU cannot be read here: make sure that nobody else does.")
    drawing = gpu.ask("nvmlDeviceGetGraphicsRunningProcesses") or []
    found = {process.pid: process.usedGpuMemory for process in [*drawing, *computing]}
    if found:
        parts = [f"PID {pid}{f' with {_gib(used)}' if used else ''}" for pid, used in sorted(found.items())]
        who = "1 process uses" if len(found) == 1 else f"{len(found)} processes use"
        advice = "end what is yours, or choose another GPU"
        return Check(name, "warn", f"{who} the GPU now ({', '.join(parts)}): {advice}.")
    used = gpu.sample(0)["gpu_used_bytes"]
    if used is not None and used > _IN_USE_BYTES:
        advice = "look for it with nvidia-smi on the host"
        return Check(name, "warn", f"{_gib(used)} are in use by nobody who is visible here: {advice}.")
    return Check(name, "ok", "Nobody else uses the GPU.")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def check_pid_namespace(inside: bool | None = None) -> Check:
    """NVML may list host PIDs; a container has others, so a worker's own GPU memory stays unknown."""
    inside = machine_limits.in_pid_namespace() if inside is None else inside
    if inside:
        advice = "start the container with --pid=host to have it"
        return Check("pid namespace", "warn", f"GPU memory per process may be null in here: {advice}.")
    if inside is None:
        return Check("pid namespace", "ok", "This system has no readable PID namespace.")
    return Check("pid namespace", "ok", "The PIDs here are the host's.")
