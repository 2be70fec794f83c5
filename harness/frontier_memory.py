"""How much memory a search may fill.

limit     = --memory-limit-bytes; without it on a CPU half of what the machine has available,
            on a GPU what its driver calls free
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from .environment import ROOT
from .errors import UsageError
from .machine_limits import available_memory_bytes
from .plan import Settings
from .supervise import EnvironmentRefuses

#: Of the memory that is available, what a search on a CPU may take unless it is told.
DEFAULT_SHARE = 0.5
#: The default limit is rounded down to a multiple of this.
ROUND_BYTES = 1 << 26


@dataclass(frozen=True)
class Memory:
    """What a worker may fill. `limit_bytes` counts from zero, `held_bytes` of it are gone at its start."""

    limit_bytes: int
    held_bytes: int


def default_limit_bytes() -> int:
    """A stated share of this machine's available memory. Raises UsageError where that is unknown."""
    available = available_memory_bytes()
    if available is None:
        raise UsageError("This system does not tell how much memory is available; give --memory-limit-bytes.")
    return max(int(available * DEFAULT_SHARE) // ROUND_BYTES, 1) * ROUND_BYTES


def memory_of(settings: Settings) -> Memory:
    """Ask a fresh process on the device. Raises EnvironmentRefuses."""
    done = subprocess.run(
        [
            sys.executable, "-P", "-m", "harness.frontier_probe",
            settings.device, str(settings.threads), settings.dtype,
        ],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(settings.threads)},
    )  # fmt: skip
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["A fresh process ended without a word."]
        raise EnvironmentRefuses(words[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    limits = [size for size in (settings.memory_limit_bytes, told["free_bytes"]) if size is not None]
    return Memory(min(limits), told["held_bytes"] or 0)
