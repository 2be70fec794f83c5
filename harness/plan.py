"""What is to be measured, as pure data: a Plan, its Jobs, their Cells.

    Plan   architectures x suites, and the settings they share
      └── Job     one process: one architecture x one suite with all its cells in ascending size;
          │       for latency suites one suite with all architectures, repeats interleaved
          └── Cell   one architecture at one point of one suite's grid; the unit that is journalled

A cell's `key` hashes everything that determines its numbers: specs, axes, settings, weights, text,
machine and the sources of harness, models and suites. Changed code never finds old numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.spec import SpecError

DTYPES = ("fp32", "bf16")
#: As `models.kernels` has them; here nothing imports torch.
IMPLEMENTATIONS = ("torch", "fused")


@dataclass(frozen=True)
class Settings:
    """How cells are measured. `shape` means random weights, the systems axis; else weights are trained.

    `model` is a checkpoint of others, a path or org/name[@revision] of the hub, with `tokenizer` another
    file than its own; pickles in it are opened with `allow_pickle` only. None: our own weights.
    `weights` is a folder of our own networks' weights: they are taken from there and nowhere else.
    `batch` bounds the requests of a quality cell that run together; latency suites state their own.
    `interleave` False gives each architecture of a latency suite a process of its own: its memory is
    then its own too, and slow drift of the machine is not shared.
    `implementation` says who computes (`models.kernels`), and `graphs` whether decode steps are replayed as
    CUDA graphs (`models.replay`): the same for all architectures.
    """

    shape: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    weights: str | None = None
    dtype: str = "fp32"
    implementation: str = "torch"
    graphs: bool = False
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    repeats: int = 5
    replicates: int = 1
    batch: int = 16
    interleave: bool = True
    prefill_chunk: int | None = None
    timeout_s: float = 600.0
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        kinds = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
        for entry in dataclasses.fields(self):
            value, (kind, *none) = getattr(self, entry.name), str(entry.type).split(" | ")
            if type(value) not in kinds[kind] and not (none and value is None):
                raise SpecError(f"{entry.name} must be of type {entry.type}, not {value!r}.")
            if type(value) in (int, float) and not abs(value) < 1e15:
                raise SpecError(f"{entry.name} must be below 1e15, not {value}.")
            if isinstance(value, str) and "\0" in value:
                raise SpecError(f"{entry.name} must not hold a null character, as '{value}' does.")
        if self.shape is not None and self.model is not None:
            raise SpecError("model and shape exclude each other: a checkpoint has its own shape.")
        if self.model is None and (self.tokenizer is not None or self.allow_pickle):
            raise SpecError("tokenizer and allow_pickle are for a model, and none is given.")
        if self.weights is not None and (self.model is not None or self.shape is not None):
            raise SpecError("weights are of our own networks: not with model, nor with shape.")
        if self.dtype not in DTYPES:
            raise SpecError(f"Unknown dtype '{self.dtype}'; known: {', '.join(DTYPES)}.")
        if self.implementation not in IMPLEMENTATIONS:
            known = ", ".join(IMPLEMENTATIONS)
            raise SpecError(f"Unknown implementation '{self.implementation}'; known: {known}.")
        if self.graphs and (self.implementation, self.device[:4]) != ("fused", "cuda"):
            raise SpecError("graphs need implementation fused on a CUDA device.")
        if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", self.device):
            raise SpecError(f"Unknown device '{self.device}'; known: cpu, cuda, cuda:N.")
        for name in ("threads", "repeats", "replicates", "batch"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.threads > 4096:
            raise SpecError(f"threads must be at most 4096, not {self.threads}.")
        if not 0 < self.timeout_s < 1e9:
            raise SpecError(f"timeout_s must be between 0 and 1e9, not {self.timeout_s}.")
        for name in ("prefill_chunk", "memory_limit_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SpecError(f"{name} must be at least 1, not {value}.")


@dataclass(frozen=True)
class Plan:
    """A named comparison. `text` is a file or folder; None follows the order in `suites.text`.

    `device_memory_bytes`: of the device that a plan is meant for; `kvmark plan` names what will not fit.
    """

    name: str
    architectures: tuple[str, ...]
    suites: tuple[str, ...]
    settings: Settings = field(default_factory=Settings)
    text: str | None = None
    device_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.architectures or not self.suites:
            raise SpecError("A plan needs at least one architecture and one suite.")
        folder = self.name.isprintable() and self.name.strip() and len(self.name.encode()) <= 200
        if not folder or self.name == ".." or Path(self.name).name != self.name:
            raise SpecError(f"A plan's name names its folder, too: '{self.name}' will not do.")


@dataclass(frozen=True)
class Cell:
    key: str
    architecture: str
    suite: str
    axes: dict[str, Any]
    replicate: int = 0


@dataclass(frozen=True)
class Job:
    """Work of one process: groups run in order; the cells of a group are interleaved by repeat."""

    id: str
    groups: tuple[tuple[Cell, ...], ...]


#: Every architecture with the budget that is 1/8 of the longest prompt of the demo.
DEMO = Plan(
    name="demo",
    architectures=(
        "transformer",
        "yoco",
        "yoco:mixer=retention",
        "tova:budget=128",
        "lococo:budget=128",
        "window:budget=128",
        "random:budget=128",
    ),
    suites=("decode:contexts=256+1024+2048", "needle", "pg19"),
)


def plan_from_toml(path: Path) -> Plan:
    """A plan from a TOML file whose keys are those of Plan and Settings; its name is the file's unless given.

    Raises SpecError.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"Plan file {path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits, and deep nesting
        raise SpecError(f"Plan file {path} is not valid TOML ({str(error).splitlines()[0]}).") from None
    settings = {f.name for f in dataclasses.fields(Settings)}
    own = {"name", "architectures", "suites", "text", "device_memory_bytes"}
    for key in values:
        if key not in settings | own:
            raise SpecError(
                f"Unknown key '{key}' in {path}; valid keys: {', '.join(sorted(settings | own))}."
            )
    for key in ("architectures", "suites"):
        found = values.get(key)
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise SpecError(f"{path} needs {key} = a list of strings.")
    text, name = values.get("text", ""), values.get("name", path.stem)
    if not isinstance(text, str) or "\0" in text:
        raise SpecError(f"{path} needs text = a string, the name of a file or folder.")
    if not isinstance(name, str):
        raise SpecError(f"{path} needs name = a string, the name of a folder.")
    memory = values.get("device_memory_bytes")
    if memory is not None and (type(memory) is not int or memory < 1):
        raise SpecError(f"{path} needs device_memory_bytes = a whole number of bytes, not {memory!r}.")
    return Plan(
        name=name,
        architectures=tuple(values["architectures"]),
        suites=tuple(values["suites"]),
        settings=Settings(**{k: v for k, v in values.items() if k in settings}),
        text=values.get("text"),
        device_memory_bytes=memory,
    )


#: Plans that come with kvmark: the demo, and a file each in `harness/plans/`.
PLANS = {
    plan.name: plan
    for plan in (DEMO, *map(plan_from_toml, sorted((Path(__file__).parent / "plans").glob("*.toml"))))
}


def digest(*parts: Any) -> str:
    """Sixteen hex digits over the canonical JSON of the parts."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def jobs(cells: list[Cell], interleaved: dict[str, bool]) -> list[Job]:
    """Group cells into jobs, latency suites first (a machine is coolest and quietest at the start).

    `interleaved` tells for each suite spec whether its architectures share a process.
    """
    suites = list(dict.fromkeys(cell.suite for cell in cells))
    result = []
    for suite in sorted(suites, key=lambda s: not interleaved[s]):
        chosen = [cell for cell in cells if cell.suite == suite]
        owners = [None] if interleaved[suite] else list(dict.fromkeys(c.architecture for c in chosen))
        for replicate in sorted({cell.replicate for cell in chosen}):
            for owner in owners:
                mine = [c for c in chosen if c.replicate == replicate and owner in (None, c.architecture)]
                points: dict[str, list[Cell]] = {}
                for cell in mine:
                    points.setdefault(json.dumps(cell.axes, sort_keys=True), []).append(cell)
                groups = tuple(tuple(group) for group in points.values())
                result.append(Job(digest(owner, suite, replicate), groups))
    return result
