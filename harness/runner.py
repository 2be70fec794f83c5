"""The parent: resolve a plan to cells, keep a run folder, supervise the jobs, assemble the tables.

    prepare(plan) -> Prepared     cells with their keys, text, weights, machine card; nothing is run
    run(prepared, out)            run.json first, then job after job; finished cells are never redone

Never creates a CUDA context: models are asked for sizes on torch's meta device only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import suites
from models import lookup
from models.spec import split_spec
from suites.data import cache_folder
from suites.suite import Context
from suites.text import Text, resolve
from suites.tokenizer import ByteTokenizer, Tokenizer

from .environment import machine_card
from .errors import UsageError
from .executors import Execute, local
from .loading import Weights, weights_of
from .manifest import SPELLING, write_manifest
from .plan import Cell, Job, Plan, Settings, digest, jobs
from .pretrained import Opened, beyond, locate, most_fed, open_model, within_window
from .sampler import joined
from .series import collect
from .store import SCHEMA, StoreError, outcome, read_table, write_table
from .supervise import EnvironmentRefuses, Event, Supervisor

#: Settings that do not change what a finished cell's numbers are.
UNKEYED = ("replicates", "timeout_s", *SPELLING)


@dataclass(frozen=True)
class Prepared:
    """A plan with everything that its numbers depend on, looked up."""

    plan: Plan
    cells: list[Cell]
    interleaved: dict[str, bool]
    text: Text | None
    weights: dict[str, Weights]
    machine: dict[str, Any]
    notes: dict[str, dict[str, str]]  # by suite: protocol and the like
    opened: Opened | None = None  # the checkpoint of --model
    sources: dict[str, str | None] = field(default_factory=dict)  # by suite: the label of what it read
    remarks: tuple[str, ...] = ()  # what the user should know before it runs
    # As they were when the keys were made: what a worker opens must still be that.
    checkpoint: str | None = None
    architectures: dict[str, str | None] = field(default_factory=dict)  # hash of a file that is not ours

    @property
    def settings(self) -> Settings:
        """The plan's settings as a worker needs them: the checkpoint is a path on this machine."""
        if self.opened is None:
            return self.plan.settings
        return dataclasses.replace(self.plan.settings, model=str(self.opened.pretrained.path))

    @property
    def tokenizer(self) -> Tokenizer:
        return ByteTokenizer() if self.opened is None else self.opened.tokenizer

    def suite(self, spec: str) -> suites.Suite:
        """A suite on this plan's text and tokens."""
        length = self.opened and self.opened.pretrained.context_length
        return suites.load(spec, Context(self.tokenizer, self.text, self.plan.settings.seed, length))

    @property
    def name(self) -> str:
        """Folder name: the same plan on the same inputs and sources finds its finished cells."""
        return f"{self.plan.name}-{digest([cell.key for cell in self.cells])[:8]}"

    def jobs(self, done: set[str]) -> list[Job]:
        """Jobs over the cells that are not done yet."""
        left = [cell for cell in self.cells if cell.key not in done]
        return jobs(left, self.interleaved)


def prepare(plan: Plan, commit: str | None = None) -> Prepared:
    """Look everything up; fetches a checkpoint of the hub that is not on this machine yet.

    Raises SpecError, TextError, WeightsError, PretrainedError, TokenizerError, UsageError or
    EnvironmentRefuses: one sentence each.
    """
    settings = plan.settings
    specs = list(dict.fromkeys(models.canonical_spec(spec) for spec in plan.architectures))
    suite_specs = list(dict.fromkeys(suites.canonical_spec(spec) for spec in plan.suites))
    classes = {spec: suites.suite_class(spec) for spec in suite_specs}
    if settings.shape is not None:
        for spec, cls in classes.items():
            if cls.axis == "quality":
                raise UsageError(
                    f"Suite '{spec}' marks answers, and random weights (--shape {settings.shape}) have none "
                    "worth marking; drop --shape or the suite."
                )
    text = None
    if any(cls.needs_text for cls in classes.values()):
        text = resolve(plan.text, data_dir=cache_folder())
    elif plan.text is not None:
        raise UsageError(
            f"No suite of this plan reads a text, so '{plan.text}' would not be used; leave it out."
        )
    opened = None
    if settings.model is not None:
        path = locate(settings.model, settings.allow_pickle)
        opened = open_model(path, settings.tokenizer, settings.allow_pickle)
    weights = {spec: weights_of(spec, settings, opened and opened.pretrained) for spec in specs}
    machine = machine_card(settings.device, settings.threads, commit)
    plan = dataclasses.replace(plan, architectures=tuple(specs), suites=tuple(suite_specs))
    interleaved = {spec: cls.interleaved and settings.interleave for spec, cls in classes.items()}
    prepared = Prepared(
        plan, [], interleaved, text, weights, machine, {}, opened,
        checkpoint=opened and opened.fingerprints(),
        architectures={spec: lookup.fingerprint(split_spec(spec)[0]) for spec in specs},
    )  # fmt: skip
    inputs = [
        {key: value for key, value in dataclasses.asdict(settings).items() if key not in UNKEYED},
        machine["id"], machine["packages"], machine["source_hash"],
        opened and [opened.card(), opened.tokenizer.eos],
    ]  # fmt: skip
    remarks = []
    if opened:
        idle: dict[str, list[str]] = {}
        for spec in specs:
            if said := within_window(opened.pretrained.shape, weights[spec].budget):
                idle.setdefault(said, []).append(spec)
        remarks += [f"{', '.join(owners)}: {said}." for said, owners in idle.items()]
    for suite_spec, cls in classes.items():
        suite = prepared.suite(suite_spec)
        prepared.notes[suite_spec], prepared.sources[suite_spec] = suite.notes(), suite.source()
        grid = suite.cells()
        # A text that is too short, or lost on the tokenizer, is found now and not by a worker.
        largest = [] if cls.driven else list(suite.cases(grid[-1]))
        if opened and (said := beyond(most_fed(largest), opened.pretrained.context_length)):
            remarks.append(f"{suite_spec} goes up to {said}.")
        for spec in specs:
            own = [weights[spec].label, weights[spec].shape, prepared.architectures[spec]]
            for replicate in range(settings.replicates if cls.interleaved else 1):
                for axes in grid:
                    key = digest(spec, suite_spec, axes, replicate, own, suite.source(), inputs)
                    prepared.cells.append(Cell(key, spec, suite_spec, axes, replicate))
    return dataclasses.replace(prepared, remarks=tuple(remarks))


def predicted_bytes(prepared: Prepared, job: Job) -> tuple[int, int] | None:
    """Predicted bytes of a job: all distinct weights that its process holds, and its largest cache.

    Cases are drawn, no model is run. None for a suite that another library drives.
    """
    from models.shapes import shape_from
    from models.skeleton import without_memory

    from .execute import requests
    from .loading import torch_dtype

    settings = prepared.plan.settings
    dtype = torch_dtype(settings.dtype)
    suite = prepared.suite(job.groups[0][0].suite)
    if suite.driven:
        return None
    parameters: dict[tuple[str, str], int] = {}
    largest = 0
    for cell in job.groups[-1]:  # groups ascend in size
        cases = list(suite.cases(cell.axes))
        batch = len(cases)
        if not suite.interleaved:
            batch = min(max(requests(cases)) + 1, settings.batch, suite.most_together or settings.batch)
        found = prepared.weights[cell.architecture]
        with without_memory():
            model = models.build(cell.architecture, shape_from(found.shape), dtype)
        parameters |= {(found.owners[name], name): p.numel() for name, p in model.named_parameters()}
        capacity, prompt = max(case.num_tokens for case in cases), min(len(case.prompt) for case in cases)
        largest = max(largest, model.cache_bytes(capacity, batch, dtype, prompt=prompt).total)
    return sum(parameters.values()) * dtype.itemsize, largest


def run(
    prepared: Prepared,
    out: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    retry_failed: bool = False,
    execute: Execute = local,
    ceilings: bool = True,
) -> dict[str, str]:
    """Run what is not yet done in `out`; returns the status of every cell.

    `retry_failed` measures cells that crashed or timed out once more; `execute` says where; `ceilings` False
    leaves out what the machine can do at most. Raises UsageError (the folder holds another plan, or is in
    use), EnvironmentRefuses, KeyboardInterrupt.
    """
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
        (out / "telemetry").mkdir(exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(f"{out} cannot be written ({error.strerror}).") from None
    if (out / "rows.parquet").exists() and not any((out / "cells").iterdir()):
        raise UsageError(f"{out} holds a finished run without its journal; choose another --out.")
    with _locked(out):
        for part in out.glob("**/.partial-*"):  # a killed process's half-written file
            part.unlink(missing_ok=True)
        manifest = write_manifest(prepared, out, ceilings)
        common = {
            "run": manifest["run"],
            "out": str(out.resolve()),
            "settings": dataclasses.asdict(prepared.settings),
            "text": prepared.plan.text,
            "text_label": None if prepared.text is None else prepared.text.label,
            "sources": prepared.sources,
            "machine": prepared.machine["id"],
            "weights": {spec: found.label for spec, found in prepared.weights.items()},
            "checkpoint": prepared.checkpoint,
            "architectures": prepared.architectures,
        }
        done = finished(out, [cell.key for cell in prepared.cells])
        if retry_failed:
            done = {key: status for key, status in done.items() if status not in ("crash", "timeout")}
        # Of a checkpoint, text, package or source that has changed since; the journal keeps them.
        others = {path.stem for path in (out / "cells").glob("*.parquet")} - {c.key for c in prepared.cells}
        counts = {"done": len(done), "others": len(others), "cells": len(prepared.cells)}
        on_event({"event": "resume", **counts})
        supervisor = Supervisor(out, prepared.plan.settings, common, on_event, dict(done))
        keys = [cell.key for cell in prepared.cells]
        try:
            put_right(out, keys, done)
            execute(prepared.jobs(set(done)), supervisor, manifest["machine"])
            assemble(out, keys)
        except BaseException as error:
            with contextlib.suppress(StoreError, OSError):
                assemble(out, keys)
            if not isinstance(error, OSError):
                raise
            raise EnvironmentRefuses(
                f"Results cannot be written to {out} ({error.strerror or error})."
            ) from None
        return supervisor.statuses


def put_right(out: Path, keys: list[str], done: dict[str, str]) -> None:
    """What a killed session left: its time series are merged, journals of finished cells go."""
    collect(out / "telemetry", keys)
    for key, status in done.items():
        if status == "ok":
            (out / "unfinished" / f"{key}.jsonl").unlink(missing_ok=True)


def finished(out: Path, keys: list[str]) -> dict[str, str]:
    """Status of every cell whose file is there and whole; a damaged file counts as not measured."""
    statuses = {}
    for key in keys:
        if found := outcome(out / "cells" / f"{key}.parquet"):
            statuses[key], _ = found
    return statuses


def assemble(out: Path, keys: list[str]) -> None:
    """`rows.parquet`, judged and with what follows from it, and `telemetry.parquet`: all finished cells in
    plan order. Raises StoreError, OSError; a series that cannot be read costs what is derived from it, and
    no row.
    """
    import pyarrow as pa

    from . import derived

    series: list[pa.Table] = []
    for path in sorted((out / "telemetry").glob("[!.]*.parquet")):
        with contextlib.suppress(StoreError):
            series.append(read_table(path))
    telemetry = joined(series)
    paths = [path for key in keys if (path := out / "cells" / f"{key}.parquet").exists()]
    if paths:
        rows = pa.concat_tables([read_table(path) for path in paths]).cast(SCHEMA).to_pandas()
        rows = derived.complete(rows, telemetry.to_pandas(), json.loads((out / "run.json").read_text()))
        write_table(out / "rows.parquet", derived.to_table(rows))
    if series:
        write_table(out / "telemetry.parquet", telemetry)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Two runs in one folder would write each other's cells; the lock dies with its process."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{out} is in use by another kvmark run; wait, or choose another --out."
            ) from None
        yield
