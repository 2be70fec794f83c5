"""A pynvml with recorded answers, handed to harness.nvml where the real module would go.

Values are of one H100 under load, as the driver gives them: mW, mJ, MHz, bytes.
"""

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
        return {self.NVML_CLOCK_SM: 1755}[clock]

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
