"""One process per job: `python -m harness.worker JOB.json`.

Contract (version 5; a worker of another checkout can be driven by the same file):

    in     JOB.json  {"version", "run", "out", "parent_pid", "settings", "text", "text_label",
                      "sources", "machine", "weights", "checkpoint", "architectures",
                      "groups": [[cell, ...], ...], "turns" (of a gate: where to ask for them)}
    out    out/cells/KEY.parquet, one per cell, the moment it is finished
    stdout one JSON object per line: start, phase, wait, done, failed (all with t_s on time.monotonic)
    exit   0 all groups done; 10 a cell failed and has its row, a fresh worker should go on;
           11 results cannot be written; 12 this environment cannot run the job; 13 turns have ended

A failed cell ends the process: after an out-of-memory or a crash nobody knows what is left behind.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .machine_limits import die_with_parent, lift_memory_limit, limit_memory, status_bytes
from .plan import Cell, Settings
from .rounds import Ended, Turn
from .rows import base_row, failure_row
from .store import Row, first_line, write_rows

if TYPE_CHECKING:
    from .journal import Journal

#: 2: settings name a checkpoint and its tokenizer. 3: fingerprints of what is opened. 4: sources of suites.
#: 5: turns.
CONTRACT_VERSION = 5
EXIT_CELL_FAILED, EXIT_CANNOT_WRITE, EXIT_ENVIRONMENT, EXIT_NO_TURNS = 10, 11, 12, 13


class Worker:
    """State of one job: loaded models, the suite, the cell in flight."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.settings = job, Settings(**job["settings"])
        self.out = Path(job["out"])
        self.models: dict[str, Any] = {}
        self.suites: dict[str, Any] = {}
        self.pretrained: Any = None  # the checkpoint of --model
        self.shared: dict[tuple[str, str], Any] = {}
        self.load_s: dict[str, float] = {}
        self.phase = "load"
        self.turn = Turn(job["turns"]) if "turns" in job else None
        # Whatever a model or a library prints must not get between the events: it goes to stderr.
        self.events = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def say(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, "t_s": time.monotonic(), **fields}), file=self.events, flush=True)

    def run(self) -> int:
        """All groups in order; see the module for the exit codes."""
        import torch

        from suites.data import cache_folder
        from suites.suite import Context
        from suites.text import resolve
        from suites.tokenizer import ByteTokenizer

        from .loading import check_device
        from .pretrained import open_model

        self.check_architectures()
        check_device(self.settings.device)
        torch.set_num_threads(self.settings.threads)
        text = None
        if self.job["text_label"] is not None:
            text = resolve(self.job["text"], data_dir=cache_folder())
            if text.label != self.job["text_label"]:
                raise ValueError(_changed("text", self.job["text_label"], text.label))
        tokenizer, path = ByteTokenizer(), self.settings.model
        if path is not None:
            opened = open_model(Path(path), self.settings.tokenizer, self.settings.allow_pickle)
            if (now := opened.fingerprints()) != self.job["checkpoint"]:
                raise ValueError(_changed("checkpoint", self.job["checkpoint"], now))
            self.pretrained, tokenizer = opened.pretrained, opened.tokenizer
        length = self.pretrained and self.pretrained.context_length
        self.context = Context(tokenizer, text, self.settings.seed, length)
        self.load_suites()
        if self.settings.memory_limit_bytes is not None:
            self.limit_memory(self.settings.memory_limit_bytes)
        for group in self.job["groups"]:
            if not self.run_group([Cell(**cell) for cell in group]):
                return EXIT_CELL_FAILED
        if self.turn is not None:
            self.turn.close()
        return 0

    def await_turn(self, cell: Cell) -> None:
        """Before every execution, where workers take turns. Raises Ended."""
        if self.turn is not None:
            self.say("wait", cell=cell.key)
            self.turn.wait()

    def load_suites(self) -> None:
        """Each suite once; what it reads is still what the cells' keys name. Raises ValueError."""
        import suites

        for spec in dict.fromkeys(cell["suite"] for group in self.job["groups"] for cell in group):
            self.suites[spec] = suites.load(spec, self.context)
            before, now = self.job["sources"][spec], self.suites[spec].source()
            if now != before:
                raise ValueError(_changed(f"data of suite '{spec}'", before, now))

    def check_architectures(self) -> None:
        """Files of the user's are still those that the cells' keys name. Raises ValueError."""
        from models.lookup import fingerprint
        from models.spec import split_spec

        for spec, before in self.job["architectures"].items():
            if (now := fingerprint(split_spec(spec)[0])) != before:
                raise ValueError(_changed(f"file of architecture '{spec}'", before, now))

    def limit_memory(self, limit_bytes: int) -> None:
        """Libraries count as memory: first all that a measurement imports, then the limit."""
        import numpy  # noqa: F401
        import torch

        import models
        from models import checkpoint  # noqa: F401

        from . import execute  # noqa: F401

        for group in self.job["groups"]:
            for cell in group:
                models.parse(cell["architecture"])
        if self.settings.device.startswith("cuda"):
            total = torch.cuda.get_device_properties(self.settings.device).total_memory
            share = min(1.0, limit_bytes / total)
            torch.cuda.set_per_process_memory_fraction(share, self.settings.device)
        else:
            limit_memory(limit_bytes)

    def run_group(self, group: list[Cell]) -> bool:
        """Measure interleaved cells; False after a failure, whose row is then written."""
        rows: dict[str, list[Row]] = {cell.key: [] for cell in group}
        current, limited = group[0], self.settings.memory_limit_bytes is not None
        try:
            for repeat in self.rounds(group[0]):
                for cell in group:
                    current = cell
                    self.await_turn(cell)
                    self.say("start", cell=cell.key, architecture=cell.architecture, repeat=repeat)
                    rows[cell.key] += self.measure(cell, repeat)
            for cell in group:
                current = cell
                write_rows(self.out / "cells" / f"{cell.key}.parquet", rows[cell.key])
                self.journal(cell).discard()
                self.say("done", cell=cell.key)
            return True
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | Ended) or cannot_write(error):
                raise
            return self.fail(current, "oom" if is_out_of_memory(error, limited) else "crash", error)

    def fail(self, cell: Cell, status: str, error: BaseException) -> bool:
        if self.settings.memory_limit_bytes is not None:
            lift_memory_limit()  # the row needs memory, too, and the failed work still holds its own
        message = f"{type(error).__name__}: {first_line(error)}"
        row = failure_row(self.base(cell), status, message, self.phase)
        if status == "oom" and (held := most_held(self.settings.device)) is not None:
            row = dataclasses.replace(row, value=float(held), unit="bytes")
        write_rows(self.out / "cells" / f"{cell.key}.parquet", [row])
        self.say("failed", cell=cell.key, status=status, phase=self.phase, message=message)
        return False

    def rounds(self, cell: Cell) -> list[int | None]:
        """-1 is the warm-up with the same shapes; [None]: one execution, neither warmed nor repeated."""
        import suites

        if suites.suite_class(cell.suite).interleaved:
            return [-1, *range(self.settings.repeats)]
        return [None]

    def base(self, cell: Cell, **known: Any) -> Row:
        return base_row(
            self.job["run"], cell, self.settings,
            machine=self.job["machine"], text=self.job["sources"].get(cell.suite),
            weights=self.job["weights"].get(cell.architecture), **known,
        )  # fmt: skip

    def measure(self, cell: Cell, repeat: int | None) -> list[Row]:
        """One execution of a cell."""
        from .measure import Measurement

        self.phase = "load"
        if self.settings.device.startswith("cuda") and repeat in (-1, None):  # never between timed repeats
            import torch

            torch.cuda.empty_cache()  # else NVML shows the previous cell's pool
        model = self.model(cell.architecture)
        return Measurement(
            model, self.suites[cell.suite], cell, self.settings, repeat,
            base=self.base,
            on_phase=lambda phase: self.enter(phase, cell),
            load_s=self.load_s.pop(cell.architecture, None) if repeat in (None, 0) else None,
            context_length=self.context.context_length,
            journal=self.journal(cell) if repeat is None else None,
        ).measure()  # fmt: skip

    def journal(self, cell: Cell) -> Journal:
        """Batches that an earlier process finished of this very cell."""
        from .journal import Journal

        return Journal(self.out / "unfinished" / f"{cell.key}.jsonl")

    def enter(self, phase: str, cell: Cell) -> None:
        self.phase = phase
        self.say("phase", phase=phase, cell=cell.key, architecture=cell.architecture)

    def model(self, spec: str) -> Any:
        """The loaded model; loading is timed once per process."""
        if spec not in self.models:
            from .loading import load_model

            start = time.perf_counter()
            self.models[spec] = load_model(spec, self.settings, self.shared, self.pretrained)
            self.load_s[spec] = time.perf_counter() - start
        return self.models[spec]


def _changed(what: str, before: str | None, now: str | None) -> str:
    return f"the {what} changed from {before} to {now}."


def cannot_write(error: BaseException) -> bool:
    """Whether no row could be written either: that is for the parent to say."""
    kinds = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
    return isinstance(error, OSError) and error.errno in kinds


def is_out_of_memory(error: BaseException, limited: bool = False) -> bool:
    """Whether torch, Python or the operating system refused memory; `limited`: there is a limit of ours."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
    words += ("failed to map segment", "alloc_failed")  # of a library; of cuBLAS
    if limited and str(error) == "could not create a primitive":  # all that oneDNN says without memory
        return True
    return isinstance(error, RuntimeError | ImportError) and any(word in str(error).lower() for word in words)


def most_held(device: str) -> int | None:
    """Peak bytes since the last reset: torch's allocator on CUDA, resident memory on a CPU. None: unknown."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return status_bytes("VmHWM")


def main(path: str) -> int:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    if job.get("version") != CONTRACT_VERSION:
        print(f"job version {job.get('version')} is not {CONTRACT_VERSION}.", file=sys.stderr)
        return EXIT_ENVIRONMENT
    die_with_parent(job["parent_pid"])
    try:
        return Worker(job).run()
    except Ended:
        print("nobody gives turns to measure any more.", file=sys.stderr)
        return EXIT_NO_TURNS
    except OSError as error:
        print(f"results cannot be written ({error.strerror or error}).", file=sys.stderr)
        return EXIT_CANNOT_WRITE
    except ValueError as error:  # SpecError, TextError, WeightsError: one sentence each
        print(first_line(error) + ".", file=sys.stderr)
        return EXIT_ENVIRONMENT
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    # Skip the interpreter's teardown: all files are written, and torch's takes a second.
    os._exit(code)
