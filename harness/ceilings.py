"""What this machine can do at most, measured once and kept: the roof that MFU, MBU and floors refer to.

    flops_per_s          matrix products in the run's dtype and threads: the best median over a few sizes
    read_bytes_per_s     a plain sum over sets of several sizes: what fits a cache is read much faster

      512 KiB    2 MiB    8 MiB    32 MiB    128 MiB    512 MiB       CPU
      16 MiB     64 MiB   256 MiB  1 GiB     4 GiB                    GPU
      ╰──────── caches ────────╯   ╰──────── memory ────────╯

A run's bandwidth is read off at its own working set, weights and cache (`roofline.bandwidth_at`). Everything
is timed by `clock.Stopwatch`, as the run is: device time, and on a CPU with one thread CPU time, which other
programs on the same cores do not lengthen. They do share caches and memory; what they used is in `note`.

Measured in a process of its own (`ceilings_worker`; the parent never imports torch for it), kept as JSON in
the cache folder under a name that holds machine, device, dtype, threads and torch; without that file they are
measured anew. No cell's key depends on them: they interpret a time and change none. KVMARK_CEILINGS=0 leaves
them out.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from suites.data import DataError, cache_folder

from .environment import ROOT
from .store import first_line, write_atomic

#: Of the cached file. 1: first version.
VERSION = 1
SWITCH = "KVMARK_CEILINGS"
#: Seconds for the whole process: torch's import and a GPU's context take most of it on a busy machine.
TIMEOUT_S = 180.0
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Ceilings = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """Sides of the square products, bytes of the sets that are read, and seconds for each of them."""

    sides: tuple[int, ...]
    working_sets: tuple[int, ...]
    seconds: float


CPU = Effort((512, 1024, 2048), (512 * KIB, 2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB, 512 * MIB), 0.25)
CUDA = Effort((1024, 2048, 4096, 8192), (16 * MIB, 64 * MIB, 256 * MIB, GIB, 4 * GIB), 0.2)


class _Unmeasured(Exception):
    """The ceilings cannot be had; one sentence."""


def ceilings_of(
    machine: dict[str, Any], dtype: str, again: bool = False
) -> tuple[Ceilings | None, str | None]:
    """The ceilings of a machine card's device, or None and why; a first time takes some seconds.

    Returns {"device", "dtype", "threads", "flops_per_s", "read_bytes_per_s": {"<working set bytes>": bytes
    per second}, "measured": how, "note"}. `again` measures even what is kept. Never raises for a machine that
    cannot be measured: MFU and MBU are then unknown, and a run goes on.
    """
    if os.environ.get(SWITCH) == "0":
        return None, f"Not measured: {SWITCH} is 0."
    path = _kept_at(machine, dtype)
    if path is not None and not again and (kept := _read(path)):
        return kept, None
    try:
        found = _measure(machine["device"], dtype, machine["threads"])
    except _Unmeasured as problem:
        return None, str(problem)
    if path is not None:
        try:
            write_atomic(
                path, (json.dumps({"version": VERSION, "ceilings": found}, indent=1) + "\n").encode()
            )
        except OSError as error:
            found["note"] = _joined(found["note"], f"not kept for later runs ({error.strerror})")
    return found, None


def _kept_at(machine: dict[str, Any], dtype: str) -> Path | None:
    """None for a user without a home, who has nowhere to keep them."""
    known = [machine["id"], machine["device"], dtype, f"{machine['threads']}t"]
    name = "-".join([*known, f"torch{machine['packages']['torch']}"])
    try:
        return cache_folder() / "ceilings" / f"{re.sub(r'[^A-Za-z0-9.+-]', '-', name)}.json"
    except DataError:
        return None


def _read(path: Path) -> Ceilings | None:
    """What is kept there, or None: nothing, of another version, or damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return kept["ceilings"] if kept["version"] == VERSION and is_whole(kept["ceilings"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(found: Any) -> bool:
    """Whether that is a set of ceilings: all that `ceilings_of` promises, every number above zero."""
    try:
        read = found["read_bytes_per_s"]
        numbers = [found["flops_per_s"], *read.values(), *(float(size) for size in read)]
        told = {"device", "dtype", "threads", "measured", "note"} <= found.keys()
        return told and len(read) > 0 and all(math.isfinite(number) and number > 0 for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _measure(device: str, dtype: str, threads: int) -> Ceilings:
    """Start the worker and wait for its answer. Raises _Unmeasured."""
    effort = CPU if device == "cpu" else CUDA
    asked = {
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "parent_pid": os.getpid(),
        **asdict(effort),
    }
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(threads),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "harness.ceilings_worker", json.dumps(asked)],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=environment, timeout=TIMEOUT_S, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _Unmeasured(f"Measuring the ceilings took longer than {TIMEOUT_S:g} s.") from None
    except OSError as error:
        raise _Unmeasured(f"Measuring the ceilings could not begin ({error.strerror}).") from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        found = None
    if done.returncode != 0 or not is_whole(found):
        words = done.stderr.strip().splitlines() or ["it gave no reason"]
        said = first_line(ValueError(words[-1]))
        raise _Unmeasured(f"Measuring the ceilings ended with exit code {done.returncode}: {said}.")
    return found


def _joined(*notes: str | None) -> str:
    return "; ".join(filter(None, notes))
