"""The noise of one machine: how far two runs of the same code lay apart (`kvmark calibrate`).

    {"schema": 1, "machine": "3f2a…", "source_hash": …, "created": …,
     "noise": [{"architecture", "suite", "axes", "metric", "noise": 0.021, "processes": 8}, …]}

`noise` is the outer end of the 95 % interval of the effect in a comparison of code with itself: an effect
as large as this is nothing that this machine could tell from none. It belongs to the machine: a comparison
of runs from another one refuses it.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..store import StoreError, first_line, write_atomic

if TYPE_CHECKING:
    from .findings import Comparison

CALIBRATION_SCHEMA = 1


@dataclass(frozen=True)
class Noise:
    """Relative noise of one latency at one point."""

    architecture: str
    suite: str
    axes: str
    metric: str
    noise: float
    processes: int


@dataclass(frozen=True)
class Calibration:
    """The noise of a machine, point by point."""

    machine: str | None
    source_hash: str | None
    created: str
    entries: tuple[Noise, ...]

    def noise(self, point: tuple[str, str, str], metric: str) -> float:
        """Noise at a point, at least the median of its metric: one comparison may find a point quiet by luck.
        A point that was not calibrated has the largest of its metric (0 without any)."""
        own = [entry for entry in self.entries if entry.metric == metric]
        here = [entry.noise for entry in own if (entry.architecture, entry.suite, entry.axes) == point]
        if not here:
            return max((entry.noise for entry in own), default=0.0)
        return max(*here, statistics.median(entry.noise for entry in own))

    @classmethod
    def of(cls, same: Comparison) -> Calibration:
        """From a comparison of code with itself on one machine: every latency finding with an interval."""
        return cls(
            machine=same.base.machine.get("id"),
            source_hash=same.base.source_hash,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            entries=tuple(
                Noise(*found.point, found.metric, max(abs(found.low), abs(found.high)), found.num_base)
                for found in same.findings
                if found.kind == "latency" and found.low is not None and found.high is not None
            ),
        )

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read a calibration file. Raises StoreError, one sentence."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{path} does not exist; kvmark calibrate writes it.") from None
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} is not readable JSON ({first_line(error)}).") from None
        schema = found.get("schema") if isinstance(found, dict) else None
        if schema != CALIBRATION_SCHEMA:
            raise StoreError(f"{path} is no calibration of schema {CALIBRATION_SCHEMA} (found {schema}).")
        try:
            entries = tuple(Noise(**entry) for entry in found["noise"])
            if not all(math.isfinite(entry.noise) and entry.noise >= 0 for entry in entries):
                raise ValueError("a noise that is no share")
            return cls(found["machine"], found["source_hash"], found["created"], entries)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is no calibration ({first_line(error)}).") from None

    def write(self, path: Path) -> None:
        """Write the file atomically. Raises OSError."""
        data = {
            "schema": CALIBRATION_SCHEMA,
            "machine": self.machine,
            "source_hash": self.source_hash,
            "created": self.created,
            "noise": [asdict(entry) for entry in self.entries],
        }
        write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
