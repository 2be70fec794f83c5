"""Time and peak memory of what runs in this process. Used by the worker only: here a GPU is touched.

    with clock.window() as w:          one number per window
        prefill(...)
    w.device_s, w.wall_s, w.cpu_s, w.foreign_cpu_share, w.launch_share

    with clock.steps() as steps:       one number per decode step, nothing waited for in between
        for ...: decode(...); steps.mark()
    steps.step_s, steps.launch_share

What is inside each number, in the order in which the window reads them:

    /proc/stat, gc off, synchronise│ cpu │ wall │ event ║ body ║ event │ synchronise │ wall │ cpu │ /proc/stat
                                                ╰─ device_s ─╯
                                         ╰─── host_s ──╯
                                         ╰──────────────── wall_s ─────────────────────╯
                                   ╰────────────────────── cpu_s ─────────────────────────────╯

- device_s: from the moment the (idle) GPU passes the first event until it passes the second: all kernels of
  the body, *and* the gaps in which it waited for the host to launch them. On a CPU it is wall_s.
- wall_s: what a user waits: device_s + the launch of the first kernel + the return from synchronise.
- cpu_s: CPU time of all threads of this process. CUDA's synchronise spins, so waiting counts as CPU time.
- launch_share: the host's time to issue the work over the device's time to do it, at most 1. CUDA only.
  Near 1 the device had to wait for the host: then a faster kernel, or fewer bytes, changes nothing. Of a
  window: host_s / device_s. Of steps: the shortest time between two marks over the median step, because the
  driver's queue holds about a thousand launches; once it is full, the host issues at the device's pace, and
  only steps before that show its own. Of a window with more launches than that it is an upper bound. A
  policy that reads the device back in every step waits there, and counts as launch-bound.
- foreign_cpu_share: CPU time of everybody else (our parent and sampler, other programs, the hypervisor's
  steal), as a share of the machine's total core-seconds in the window. /proc/stat counts in ticks of 10 ms:
  a window below a tenth of a second has None, and a difference below zero is a rounding of ticks: 0.
- step_s[i]: from mark i-1 (or the start, synchronised) to mark i. On CUDA, events on the current stream: the
  host may run ahead, as it does in real decoding.

An exception in the body leaves every reading None. Windows nest (a `steps` inside a `window`).
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_MIN_TICKS_PER_CORE = 10


def device_kind(device: Any) -> str:
    """ "cpu" or "cuda" of a device or its name. Raises ValueError for any other: we could not time it."""
    kind = str(device).split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"cannot time device {device}; known are cpu and cuda")
    return kind


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection inside: a collection would be billed to whoever happens to run."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def cpu_ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """(busy, all) ticks of all cores since boot. None where the kernel does not tell."""
    try:
        ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(ticks) < 8 or sum(ticks) == 0:  # some sandboxes show a line of zeros
        return None
    idle_and_iowait = ticks[3] + ticks[4]  # guest time (fields 9, 10) is already inside user time
    return sum(ticks) - idle_and_iowait, sum(ticks)


def foreign_share(
    before: tuple[int, int] | None, after: tuple[int, int] | None, own_s: float
) -> float | None:
    """Share of the machine's core-seconds between two readings that was busy, but not with our own_s."""
    if before is None or after is None:
        return None
    busy, total = after[0] - before[0], after[1] - before[1]
    if total < _MIN_TICKS_PER_CORE * (os.cpu_count() or 1):
        return None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return max(0.0, busy * tick_s - own_s) / (total * tick_s)


@dataclass
class Window:
    """Readings of one window; None until it has closed without an exception."""

    device_s: float | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    foreign_cpu_share: float | None = None
    host_s: float | None = None  # until the body had issued all of its work; None on a CPU

    @property
    def launch_share(self) -> float | None:
        """See the module. None on a CPU, which launches nothing."""
        if self.host_s is None or not self.device_s:
            return None
        return min(1.0, self.host_s / self.device_s)

    def __add__(self, other: Window) -> Window:
        """Two windows that have closed as one; load by others counts by their lengths."""

        def total(*values: float | None) -> float | None:
            return None if None in values else sum(values)

        wall_s = total(self.wall_s, other.wall_s)
        shares = (self.foreign_cpu_share, other.foreign_cpu_share)
        loads = [
            None if None in pair else math.prod(pair)
            for pair in zip(shares, (self.wall_s, other.wall_s), strict=True)
        ]
        load_s = total(*loads)
        return Window(
            total(self.device_s, other.device_s), wall_s, total(self.cpu_s, other.cpu_s),
            load_s / wall_s if load_s is not None and wall_s else None,
            total(self.host_s, other.host_s),
        )  # fmt: skip


class Stopwatch:
    """Times work on one device. `cuda` and `stat` are for tests; the default is the real thing."""

    def __init__(self, device: Any = "cpu", cuda: Any = None, stat: Path = Path("/proc/stat")) -> None:
        self.kind = device_kind(device)
        self._device, self._stat = device, stat
        self._cuda = _torch_cuda() if self.kind == "cuda" and cuda is None else cuda

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Time the body as a whole; see the module for what is inside."""
        reading = Window()
        ticks = cpu_ticks(self._stat)
        with gc_paused():
            self.synchronise()
            cpu_start = time.process_time()
            wall_start = time.perf_counter()
            first = self.event()
            yield reading
            host_s = time.perf_counter() - wall_start
            last = self.event()
            self.synchronise()
            wall_s = time.perf_counter() - wall_start
            cpu_s = time.process_time() - cpu_start
        reading.wall_s, reading.cpu_s = wall_s, cpu_s
        reading.host_s = None if self.kind == "cpu" else host_s
        reading.device_s = wall_s if self.kind == "cpu" else first.elapsed_time(last) / 1000  # ms
        reading.foreign_cpu_share = foreign_share(ticks, cpu_ticks(self._stat), cpu_s)

    def steps(self) -> StepTimer:
        """A timer of many steps on this device."""
        return StepTimer(self)

    def synchronise(self) -> None:
        """Wait until the device has done all it was given. On a CPU there is nothing to wait for."""
        if self.kind == "cuda":
            self._cuda.synchronize(self._device)

    def event(self) -> Any:
        """A point in the device's time: a recorded CUDA event, or perf_counter seconds."""
        if self.kind == "cpu":
            return time.perf_counter()
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event


class StepTimer:
    """Times consecutive steps, waiting for the device only at both ends; filled on leaving.

    `step_s` has a number per step, `launch_share` is one of all of them (None on a CPU; see the module).
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._gc = gc_paused()
        self._events: list[Any] = []
        self._host_s: list[float] = []
        self.step_s: list[float] = []
        self.launch_share: float | None = None

    def __enter__(self) -> Self:
        self._gc.__enter__()
        self._watch.synchronise()
        self._events, self._host_s = [self._watch.event()], [time.perf_counter()]
        return self

    def mark(self) -> None:
        """The step ends here. Does not wait for the device."""
        self._events.append(self._watch.event())
        self._host_s.append(time.perf_counter())

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._gc.__exit__(None, None, None)
        if kind is not None:
            return
        self._watch.synchronise()
        pairs = list(itertools.pairwise(self._events))
        if self._watch.kind == "cpu":
            self.step_s = [b - a for a, b in pairs]
        else:
            self.step_s = [a.elapsed_time(b) / 1000 for a, b in pairs]
            self.launch_share = self._launch_share()

    def _launch_share(self) -> float | None:
        issued_s = min((b - a for a, b in itertools.pairwise(self._host_s)), default=0.0)
        step_s = statistics.median(self.step_s) if self.step_s else 0.0
        return min(1.0, issued_s / step_s) if step_s > 0 else None


class PeakMemory:
    """The highest memory since `reset`: allocator bytes on CUDA, resident bytes of the process on a CPU.

    Neither is the cache alone. CUDA: `max_memory_allocated`, exact, with weights, logits and workspaces,
    without CUDA context and fragmentation. CPU: VmHWM, set back to the present RSS by writing "5" to
    clear_refs; the interpreter, all libraries and pages that the C library keeps after a free are in it.
    Where the kernel refuses the reset, `read` is None and `reason` says why.
    """

    def __init__(self, device: Any = "cpu", cuda: Any = None, proc: Path = Path("/proc/self")) -> None:
        self.kind = device_kind(device)
        self.source = "cuda-allocated" if self.kind == "cuda" else "rss-peak"
        self.reason: str | None = "reset() was not called"
        self.baseline_bytes: int | None = None  # in use at the reset
        self._device, self._proc = device, proc
        self._cuda = _torch_cuda() if self.kind == "cuda" and cuda is None else cuda

    def reset(self) -> None:
        """Start a new peak from what is in use now."""
        if self.kind == "cuda":
            self._cuda.synchronize(self._device)
            self._cuda.reset_peak_memory_stats(self._device)
            self.baseline_bytes, self.reason = self._cuda.memory_allocated(self._device), None
        else:
            self.baseline_bytes, self.reason = self._reset_rss()

    def in_use(self) -> int | None:
        """Bytes that torch's allocator has given out now. None on a CPU."""
        return self._cuda.memory_allocated(self._device) if self.kind == "cuda" else None

    def read(self) -> int | None:
        """Peak bytes since the reset, or None (see `reason`)."""
        if self.reason is not None:
            return None
        if self.kind == "cuda":
            return self._cuda.max_memory_allocated(self._device)
        return self._status().get("VmHWM")

    def read_reserved(self) -> int | None:
        """Peak bytes that torch's allocator held from the driver, fragmentation included. None on a CPU."""
        if self.kind == "cpu" or self.reason is not None:
            return None
        return self._cuda.max_memory_reserved(self._device)

    def _status(self) -> dict[str, int]:
        lines = (self._proc / "status").read_text().splitlines()
        return {
            n: int(v.split()[0]) * 1024
            for n, v in (x.split(":", 1) for x in lines)
            if n in ("VmHWM", "VmRSS")
        }

    def _reset_rss(self) -> tuple[int | None, str | None]:
        try:
            before = self._status().get("VmHWM")
            (self._proc / "clear_refs").write_text("5")
            after = self._status()
        except OSError as error:
            return None, f"the kernel does not let us reset the peak of resident memory ({error.strerror})"
        rss, peak = after.get("VmRSS"), after.get("VmHWM")
        if before is None or rss is None or peak is None:
            return None, "the kernel does not report the peak of resident memory"
        # A sandbox may accept the write and do nothing: then the old peak stands, far above what is in use.
        if peak >= before > rss + (16 << 20):
            return None, "the kernel accepted the reset of peak resident memory and did not do it"
        return rss, None


def _torch_cuda() -> Any:
    import torch  # only here, and only for a GPU: this module must stay cheap to import

    return torch.cuda
