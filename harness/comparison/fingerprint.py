"""What must be the same on both sides, or a difference says nothing about the code.

    machine    cpu, cores, affinity, cpu_quota, memory; on CUDA gpu, driver, clocks: their limits, and how
               fast they ran, within 5 % (the driver tells nobody whether they are locked)
    packages   python, torch, triton and whatever else the card lists
    settings   device, dtype, threads, seed, batch, shape, prefill_chunk, interleave, …
    inputs     model, weights (by architecture), text (by suite)

Commit and sources may differ: they are what is compared. Plans may, too: a cell that is not there is a
finding and no reason to look away. How often was repeated and replicated says how sure one can be, not what
was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from ..errors import UsageError
from ..report.load import Run
from .rules import Rules
from .runs import machine_of

#: Settings that do not change what a number means. Weights and the checkpoint count by their content.
NOT_COMPARED = ("repeats", "replicates", "timeout_s", "memory_limit_bytes", "executor") + (
    *("model", "tokenizer", "allow_pickle", "weights"),
)
#: Of the GPU's card: compared by themselves, or no matter of speed.
_NAMED = ("name", "driver", "cuda_driver", "memory_bytes", "count")
_GIB = 2**30
#: Share by which the clocks of two runs may differ: as much as those of one may vary (harness.validity).
CLOCK = 0.05

Fingerprint = dict[str, Any]


def fingerprint(run: Run) -> Fingerprint:
    """Everything of a run that the other side must share, by the names that --allow-different takes."""
    manifest = run.manifest
    machine = machine_of(run)
    settings: dict[str, Any] = (manifest.get("plan") or {}).get("settings") or {}
    model: dict[str, Any] = manifest.get("model") or {}
    affinity, memory = machine.get("affinity"), machine.get("memory_bytes")
    found: Fingerprint = {
        "cpu": machine.get("cpu_model"),
        "cores": machine.get("cores"),
        "affinity": None if affinity is None else len(affinity),
        "cpu_quota": machine.get("cpu_quota_cores"),
        "memory": None if memory is None else f"{round(memory / _GIB)} GiB",
        "python": machine.get("python"),
        **(machine.get("packages") or {}),
        **{name: value for name, value in settings.items() if name not in NOT_COMPARED},
        "model": model and [model.get("name"), model.get("fingerprint"), model.get("tokenizer")],
        "weights": _labels(run, "architecture", "weights"),
        "text": _labels(run, "suite", "text"),
    }
    if str(settings.get("device") or machine.get("device") or "cpu").startswith("cuda"):
        gpu: dict[str, Any] = machine.get("gpu") or {}
        limits = {name: value for name, value in gpu.items() if name not in _NAMED}
        found |= {"gpu": gpu.get("name"), "driver": gpu.get("driver"), "clocks": limits}
    return found


def _labels(run: Run, by: str, column: str) -> dict[str, list[str]]:
    """Which weights each architecture had, which text each suite read."""
    pairs = run.rows[[by, column]].drop_duplicates().dropna()
    labels: dict[str, list[str]] = {}
    for name, label in sorted(pairs.itertuples(index=False, name=None)):
        labels.setdefault(str(name), []).append(str(label))
    return labels


def differences(one: Fingerprint, other: Fingerprint, sides: tuple[str, str]) -> dict[str, str]:
    """Name -> what differs, as half a sentence. What only one of them states is not compared."""
    found = {}
    for name in one.keys() & other.keys():
        left, right = one[name], other[name]
        if isinstance(left, dict) and isinstance(right, dict):
            common = sorted(left.keys() & right.keys())
            odd = [key for key in common if left[key] != right[key]]
            if odd:
                found[name] = (
                    f"{name} of {odd[0]} ({_told(left[odd[0]])} in {sides[0]}, "
                    f"{_told(right[odd[0]])} in {sides[1]})"
                )
        elif left != right:
            found[name] = f"{name} ({_told(left)} in {sides[0]}, {_told(right)} in {sides[1]})"
    return dict(sorted(found.items()))


def _told(value: Any) -> str:
    if value in (None, [], {}):
        return "none"
    return (
        value
        if isinstance(value, str)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else (json.dumps(value))
    )


def examine(base: Sequence[Run], head: Sequence[Run], rules: Rules) -> tuple[list[str], list[str]]:
    """Differences that refuse the comparison, and those that the user allowed. Raises UsageError."""
    prints = [[fingerprint(run) for run in runs] for runs in (base, head)]
    pairs = [(prints[0][0], other, ("base", "head")) for other in prints[1]]
    for runs, name in zip(prints, ("base", "head"), strict=True):
        pairs += [(runs[0], other, (f"the first run of {name}", "another")) for other in runs[1:]]
    found: dict[str, str] = {}
    for one, other, sides in pairs:
        found = differences(one, other, sides) | found
    found |= _of_clocks(base, head) | _of_calibration(base[0], rules)
    _known(rules.allow_different, {"calibration", *(name for side in prints for one in side for name in one)})
    allowed = found.keys() if rules.anyway else found.keys() & set(rules.allow_different)
    return (
        [told for name, told in found.items() if name not in allowed],
        [told for name, told in found.items() if name in allowed],
    )


def _of_clocks(base: Sequence[Run], head: Sequence[Run]) -> dict[str, str]:
    """Clocks of the GPU that ran at another speed, as far as both sides were sampled."""
    for name in ("sm_clock_hz", "memory_clock_hz"):
        fast = [[_busy_clock_hz(run, name) for run in side] for side in (base, head)]
        left, right = (max((hz for hz in side if hz is not None), default=None) for side in fast)
        if left is not None and right is not None and abs(left - right) > CLOCK * min(left, right):
            told = f"{left / 1e6:.0f} MHz in base, {right / 1e6:.0f} MHz in head"
            return {"clocks": f"clocks of the busy GPU, {name.removesuffix('_hz')} ({told})"}
    return {}


def _busy_clock_hz(run: Run, name: str) -> float | None:
    """What a clock reached in a tenth of its samples: an idle GPU slows down, and is no matter here."""
    if str((run.manifest.get("machine") or {}).get("device") or "cpu") == "cpu":
        return None
    sampled = pd.to_numeric(run.telemetry[name]).dropna()
    return float(sampled.quantile(0.9)) if len(sampled) else None


def _of_calibration(run: Run, rules: Rules) -> dict[str, str]:
    machine = (run.manifest.get("machine") or {}).get("id")
    if rules.calibration is None or rules.calibration.machine == machine:
        return {}
    told = f"machine {_told(rules.calibration.machine)} in the calibration, {_told(machine)} in base"
    return {"calibration": f"calibration ({told})"}


def _known(asked: Iterable[str], known: set[str]) -> None:
    for name in asked:
        if name not in known:
            raise UsageError(f"'{name}' is no part of the fingerprint; known: {', '.join(sorted(known))}.")
