"""A pynvml with recorded answers, handed to harness.nvml where the real module would go.

Values are of one H100 under load, as the driver gives them: mW, mJ, MHz, bytes.
"""

import itertools
import math
import time
from types import SimpleNamespace

UUIDS = ("GPU-aaaa1111", "GPU-aaab2222", "GPU-cccc3333")


class FakeNvml:
    """`refuse` names calls that raise NVMLError, as MIG, containers and old drivers do."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, nvmlMemory_v2 = 1, 2, 0, 0x02000028

    class NVMLError(Exception):
        pass

    def __init__(self, refuse=(), names=("NVIDIA H100",) * 3, processes=((4242, 3 << 30), (7, None))):
        self.refuse, self.names, self.processes = set(refuse), names, processes

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in object.__getattribute__(self, "refuse"):
            return self._refusing
        return object.__getattribute__(self, name)

    def _refusing(self, *_, **__):
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCount(self):
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in UUIDS:
            raise self.NVMLError("Not Found")
        return UUIDS.index(uuid)

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle].encode()  # bytes, as old versions of the module give

    def nvmlDeviceGetName(self, handle):
        return self.names[handle]

    def nvmlDeviceGetMemoryInfo(self, handle, version):
        assert version == self.nvmlMemory_v2
        return SimpleNamespace(used=5 << 30, total=80 << 30)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 312_500

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return 987_654_321

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return {self.NVML_CLOCK_SM: 1755, self.NVML_CLOCK_MEM: 2619}[clock]

    def nvmlDeviceGetMaxClockInfo(self, handle, clock):
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[clock]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return 0x4 | 0x20

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlSystemGetDriverVersion(self):
        return b"580.65.06"

    def nvmlSystemGetCudaDriverVersion(self):
        return 13000


class Replay(FakeNvml):
    """Readings that change: `frames[handle]` is a list of dicts, one per tick, and `tick` goes on to the
    next.

    Keys, in the driver's units: used, processes ((pid, bytes or None), ...), power_mw, energy_mj, sm_mhz,
    memory_mhz, throttle; "lost" makes every call on the device fail, as when it falls off the bus. A key
    that a frame lacks has the value of the frame before.
    """

    def __init__(self, frames, **options):
        super().__init__(**options)
        self.frames = {handle: list(_filled(own)) for handle, own in frames.items()}
        self.now = 0

    def tick(self):
        self.now += 1

    def _at(self, handle):
        frame = self.frames[handle][min(self.now, len(self.frames[handle]) - 1)]
        if frame.get("lost"):
            raise self.NVMLError("GPU is lost")
        return frame

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return 0 if uuid.startswith("MIG-") else super().nvmlDeviceGetHandleByUUID(uuid)

    def nvmlDeviceGetMemoryInfo(self, handle, version):
        return SimpleNamespace(used=self._at(handle)["used"], total=80 << 30)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._at(handle)["power_mw"]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self._at(handle)["energy_mj"]

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return self._at(handle)["sm_mhz" if clock == self.NVML_CLOCK_SM else "memory_mhz"]

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._at(handle)
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self._at(handle)["throttle"]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        found = self._at(handle)["processes"]
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in found]


class Trace(FakeNvml):
    """A driver whose readings are functions of time, for a process of its own: that of two GPUs and a slice.

    power_w         device -> [[seconds after start_s, W], ...]; energy is its integral, as a counter that
    moves every 100 ms slow_s, lost_s  from then on device 0 is too hot and slow; from then on it is gone
    """

    PERIOD_S = 0.1

    class NVMLError_GpuIsLost(FakeNvml.NVMLError):
        pass

    def __init__(self, start_s, power_w, processes, slow_s=None, lost_s=None):
        super().__init__(names=("NVIDIA H100",) * 2)
        self.start_s, self.power_w, self.listed = start_s, power_w, processes
        self.slow_s, self.lost_s = slow_s, lost_s

    def changes(self, device="0"):
        """Times at which a reading of the device may change, over ten seconds."""
        edges = [s for s, _ in self.power_w[device]]
        edges += [s for s in (self.slow_s, self.lost_s) if s is not None]
        return [self.start_s + s for s in edges + [n * self.PERIOD_S for n in range(100)]]

    def at(self, name, t_s, device="0"):
        """What the telemetry's column `name` should say of that moment."""
        since_s = t_s - self.start_s
        hot = self.slow_s is not None and since_s >= self.slow_s
        if name == "sm_clock_hz":
            return 1.2e9 if hot else 1.98e9
        if name == "throttle_reasons":
            return "hw_thermal" if hot else "none"
        if name == "power_w":
            return [watts for begin_s, watts in self.power_w[device] if begin_s <= max(since_s, 0.0)][-1]
        until_s = int(since_s / self.PERIOD_S) * self.PERIOD_S
        steps = [*self.power_w[device], [math.inf, 0.0]]
        parts = [w * max(min(until_s, end) - begin, 0) for (begin, w), (end, _) in itertools.pairwise(steps)]
        return round(1000 * sum(parts)) / 1000

    def _now(self, handle, name):
        now_s = time.monotonic()
        if handle == 0 and self.lost_s is not None and now_s - self.start_s >= self.lost_s:
            raise self.NVMLError_GpuIsLost("GPU is lost")
        if handle == "MIG" and name is not None:
            raise self.NVMLError("Not Supported")
        return None if name is None else self.at(name, now_s, str(handle))

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByUUID(self, uuid):
        handle = "MIG" if uuid.startswith("MIG-") else super().nvmlDeviceGetHandleByUUID(uuid)
        self._now(handle, None)
        return handle

    def nvmlDeviceGetMemoryInfo(self, handle, version):
        self._now(handle, None)
        return SimpleNamespace(used=(7 if handle == "MIG" else 5) << 30, total=80 << 30)

    def nvmlDeviceGetPowerUsage(self, handle):
        return round(1000 * self._now(handle, "power_w"))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return round(1000 * self._now(handle, "energy_j"))

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return round(self._now(handle, "sm_clock_hz") / 1e6)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._now(handle, None)
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return {"none": 0, "hw_thermal": 0x40}[self._now(handle, "throttle_reasons")]

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self._now(handle, None)
        listed = self.listed.get(str(handle), [])
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in listed]


#: An H100 that computes and is disturbed by nothing.
CALM = {
    "used": 2 << 30, "processes": (), "power_mw": 400_000, "energy_mj": 0, "sm_mhz": 1980, "memory_mhz": 2619,
    "throttle": 0,
}  # fmt: skip


def _filled(frames):
    last = CALM
    for frame in frames:
        last = {**last, **frame}
        yield last
