"""Where the noise of this machine is kept between commands, and for what it holds.

    CACHE/noise/MACHINE-cpu-fp32-threads1-torch2.13.0.json       (the cache folder of `suites.data`)

`kvmark calibrate` writes it from a comparison of this checkout with itself; `gate` and `compare` read it. The
file is found by what the numbers were measured with: another machine, device, dtype, number of threads or
torch has noise of its own, and does not get this one's. What the numbers say is in harness.comparison.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from .comparison import Calibration, Comparison
from .store import StoreError, first_line


def place(run: Path) -> Path:
    """The file that holds, or would hold, the noise for numbers of a run. Raises StoreError."""
    from suites.data import cache_folder

    settings = settings_of(run)
    parts = (
        settings["machine"], settings["device"], settings["dtype"], f"threads{settings['threads']}",
        f"torch{settings['torch']}",
    )  # fmt: skip
    return cache_folder() / "noise" / f"{re.sub(r'[^A-Za-z0-9.+-]', '', '-'.join(parts))}.json"


def settings_of(run: Path) -> dict[str, Any]:
    """A run's settings, its machine's id and its torch. Raises StoreError."""
    try:
        manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
        machine, settings = manifest["machine"], manifest["plan"]["settings"]
        return settings | {"machine": machine["id"], "torch": machine["packages"]["torch"]}
    except FileNotFoundError:
        raise StoreError(f"{run} holds no run.json, so it is no run folder.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{run}/run.json is not a readable manifest ({first_line(error)}).") from None


def kept(run: Path) -> Calibration | None:
    """This machine's noise for numbers of a run; None if it was never calibrated. Raises StoreError."""
    path = place(run)
    return Calibration.read(path) if path.exists() else None


def keep(same: Comparison, run: Path) -> tuple[Calibration, Path]:
    """Keep the noise that a comparison of code with itself shows; points that it does not have stay.

    Returns what was found now, and the file. Raises StoreError, OSError.
    """
    found, before, path = Calibration.of(same), kept(run), place(run)

    def name(entry: Any) -> tuple[str, ...]:
        return entry.architecture, entry.suite, entry.axes, entry.metric

    new = {name(entry) for entry in found.entries}
    others = [entry for entry in (before.entries if before else ()) if name(entry) not in new]
    dataclasses.replace(found, entries=(*found.entries, *others)).write(path)
    return found, path
