"""NVIDIA's management library, asked politely: every reading in SI units, and None where it has no answer.

NVML needs no CUDA context, so the parent and the sampler may use it. Traps that this file knows of:

- NVML counts devices in PCI order, CUDA in an order of its own and after CUDA_VISIBLE_DEVICES: `device_uuid`.
- Memory: v2 of the call, without the driver's reserve. Per process None in many containers and under MIG.
- Power is an average over 1 s on Ampere and later (except GA100). Energy is a counter that moves every 20 to
  100 ms: only differences over much longer windows mean anything.
- The module is called pynvml, the package to install nvidia-ml-py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Bits of "clocks event reasons". gpu_idle is no throttling.
THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display_clock",
    0x200: "board_limit",
    0x400: "reliability",
}


class NoGpu(Exception):
    """There is no NVIDIA GPU to ask, or we cannot know which one is meant; the message is one sentence."""


def open_nvml() -> Any:
    """The initialised module. Raises NoGpu."""
    try:
        import pynvml
    except ImportError:
        raise NoGpu("nvidia-ml-py is not installed.") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpu(f"No NVIDIA driver answers ({error}).") from None
    return pynvml


def device_uuid(nvml: Any, index: int = 0, environ: Mapping[str, str] = os.environ) -> str:
    """The UUID of what a process with this environment calls cuda:`index`. Raises NoGpu."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(len(uuids))] if wanted is None else [w.strip() for w in wanted.split(",")]
    visible: list[str] = []
    by_number = False
    for name in names:
        if name.isdigit() and int(name) < len(uuids):
            visible.append(uuids[int(name)])
            by_number = True
        elif name.startswith("MIG-"):
            visible.append(name)
        elif name.startswith("GPU-") and len(found := [u for u in uuids if u.startswith(name)]) == 1:
            visible.append(found[0])
        else:
            break  # CUDA, too, ignores everything from the first invalid entry on
    if index >= len(visible):
        raise NoGpu(
            f"No GPU cuda:{index} is visible (CUDA_VISIBLE_DEVICES={wanted!r}, {len(uuids)} installed)."
        )
    models = {_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    if by_number and len(models) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # By default CUDA puts the fastest first, and only CUDA knows which that is.
        raise NoGpu("GPUs of several models: set CUDA_DEVICE_ORDER=PCI_BUS_ID to say which is which.")
    return visible[index]


def open_gpu(device: str, uuid: str | None = None, nvml: Any = None) -> Gpu:
    """The GPU of a worker's device ("cuda", "cuda:1"), or the one with this UUID. Raises NoGpu."""
    nvml = nvml or open_nvml()
    try:
        return Gpu(nvml, uuid or device_uuid(nvml, int(device.partition(":")[2] or 0)))
    except nvml.NVMLError as error:
        raise NoGpu(f"NVML does not answer ({error}).") from None


class Gpu:
    """One device. Each reading is None where the driver refuses it, never 0."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml, self.uuid = nvml, uuid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def ask(self, call: str, *arguments: Any, **options: Any) -> Any:
        """One NVML call on this device. An old module without the function is a refusal, too."""
        function: Callable[..., Any] | None = getattr(self._nvml, call, None)
        if function is None:
            return None
        try:
            return function(self._handle, *arguments, **options)
        except self._nvml.NVMLError:
            return None

    def sample(self, pid: int) -> dict[str, Any]:
        """What changes over time, under the column names of the telemetry table."""
        nvml = self._nvml
        memory = self.ask("nvmlDeviceGetMemoryInfo", version=nvml.nvmlMemory_v2)
        processes = self.ask("nvmlDeviceGetComputeRunningProcesses") or []
        return {
            "gpu_used_bytes": None if memory is None else int(memory.used),
            "gpu_process_bytes": _process_bytes(processes, pid),
            "foreign_gpu_processes": _foreign(processes, pid),
            "power_w": _scaled(self.ask("nvmlDeviceGetPowerUsage"), 1e-3),
            "energy_j": _scaled(self.ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            "sm_clock_hz": _scaled(self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            "memory_clock_hz": _scaled(self.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            "temperature_c": _scaled(self.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0),
            "throttle_reasons": throttle_names(self._throttle_bits()),
        }

    def card(self) -> dict[str, Any]:
        """What stays the same during a run, for the machine card; without the UUID, which names a machine."""
        nvml = self._nvml
        memory = self.ask("nvmlDeviceGetMemoryInfo", version=nvml.nvmlMemory_v2)
        cuda = _system(nvml, "nvmlSystemGetCudaDriverVersion")
        return {
            "name": _text(self.ask("nvmlDeviceGetName")),
            "memory_bytes": None if memory is None else int(memory.total),
            "driver": _text(_system(nvml, "nvmlSystemGetDriverVersion")),
            "cuda_driver": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            "sm_clock_max_hz": _scaled(self.ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            "memory_clock_max_hz": _scaled(self.ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            "power_limit_w": _scaled(self.ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3),
            "count": nvml.nvmlDeviceGetCount(),
        }

    def _throttle_bits(self) -> int | None:
        bits = self.ask("nvmlDeviceGetCurrentClocksEventReasons")
        return (
            self.ask("nvmlDeviceGetCurrentClocksThrottleReasons") if bits is None else bits
        )  # its older name


def _process_bytes(processes: Sequence[Any], pid: int) -> int | None:
    # In a container the driver may list host PIDs, or nobody: then ours is not found, and unknown.
    found = (process.usedGpuMemory for process in processes if process.pid == pid)
    return next((int(used) for used in found if used is not None), None)


def _foreign(processes: Sequence[Any], pid: int) -> int | None:
    """How many processes but `pid` compute on the device. None where ours is not listed: it may not have
    begun, or the driver lists the PIDs of another namespace, and then ours would count as foreign."""
    others = {process.pid for process in processes} - {pid}
    return len(others) if any(process.pid == pid for process in processes) else None


def throttle_names(bits: int | None) -> str | None:
    """The names of the bits, comma-separated; "none" for no bit, None for unknown."""
    if bits is None:
        return None
    names = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    unknown = bits & ~sum(THROTTLE_REASONS)
    return ",".join(names + ([f"unknown_{unknown:#x}"] if unknown else [])) or "none"


def _system(nvml: Any, call: str) -> Any:
    try:
        return getattr(nvml, call)()
    except nvml.NVMLError:
        return None


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value  # old versions return bytes
