"""The doctor on the machine: cores, load, disk, data, and whether memory can be measured."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from .. import clock
from .check import Check

LOW_DISK_BYTES = 2 << 30
NO_DISK_BYTES = 100 << 20
BUSY_SHARE = 0.05


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
