"""Memory that the driver, or the kernel, saw the worker take: the highest sample in the windows of a phase.

    GPU   nvml_delta_*   `gpu_process_bytes` where the driver tells them apart, else what the device holds
                         in use, less what it held before this worker's job
    CPU   rss_delta_*    `rss_bytes`, less what the interpreter held before it had imported anything

The sampler begins before the worker has imported torch, so the first sample of a job is the state before. A
GPU job's delta holds the CUDA context and whatever torch's allocator keeps, on behalf of the interleaved
architectures too. Samples are 20 ms apart: a short peak falls between two, and the exact one is the
allocator's (peak_*_bytes). Without a sample in any window the value is NaN and the message says so.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from .windows import Windows

PROCESS = "bytes of the process"
DEVICE = "bytes in use on the device, less those before the job"
NO_SAMPLE = "No sample was taken while this phase ran."
NO_READING = "The driver does not tell memory in use."
NO_BEFORE = "Memory was not sampled before the job began."

#: (device's kind, metric without its place) and what each place is called in it.
NAMES = {"prefill": "prefill", "continuation": "decode"}


def deltas(found: Windows, places: pd.DataFrame, device: pd.Series) -> pd.DataFrame:
    """(cell, metric, place, value, message) of every (cell, place) in `places`; `device` by cell."""
    reading = {name: _highest(found, name) for name in ("gpu_process_bytes", "gpu_used_bytes", "rss_bytes")}
    before = {name: _before(found, name) for name in ("gpu_used_bytes", "rss_bytes")}
    job_of = found.windows.drop_duplicates(["cell", "place"]).set_index(["cell", "place"])["job"].to_dict()
    lines = []
    for cell, place in zip(places["cell"], places["place"], strict=True):
        on_cpu = str(device[cell]).split(":")[0] == "cpu"
        at, job = (cell, place), job_of.get((cell, place))
        process = np.nan if on_cpu else reading["gpu_process_bytes"].get(at, np.nan)
        column = "rss_bytes" if on_cpu else "gpu_used_bytes"
        highest, start = reading[column].get(at, np.nan), before[column].get(job, np.nan)
        if not np.isnan(process):
            value, message = process, PROCESS
        elif not np.isnan(highest):
            value, message = highest - start, NO_BEFORE if np.isnan(start) else None if on_cpu else DEVICE
        else:
            sampled = not on_cpu and not np.isnan(reading["rss_bytes"].get(at, np.nan))
            value, message = np.nan, NO_READING if sampled else NO_SAMPLE
        name = f"{'rss' if on_cpu else 'nvml'}_delta_{NAMES[place]}_bytes"
        lines.append((cell, name, place, value, message))
    return pd.DataFrame(lines, columns=["cell", "metric", "place", "value", "message"])


def _highest(found: Windows, column: str) -> dict[tuple[str, str], float]:
    """The highest reading of all windows of a (cell, place)."""
    per_window = found.of(column).groupby(level=0).max()
    where = found.windows.loc[per_window.index, ["cell", "place"]]
    return where.assign(most=per_window).groupby(["cell", "place"])["most"].max().to_dict()


def _before(found: Windows, column: str) -> dict[str, float]:
    """The first sample of every job; NaN where it has no reading, or a mark came before it."""
    first = found.samples.drop_duplicates("job").set_index("job")
    return pd.to_numeric(first[column].where(~first["marked"])).dropna().to_dict()
