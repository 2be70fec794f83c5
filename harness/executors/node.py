"""One job on a node: a generator that Ray runs there, whose messages are all that comes back.

    driver ──content──► node     common part of the job file, groups, journals of unfinished cells
           ◄─────────── {"kind": "machine", "card"}           first: what this node is
           ◄─────────── {"kind": "event", "event"}            a cell begins; a note of the sampler
           ◄─────────── {"kind": "journal", "cell", "data"}   a batch of a long cell is done
           ◄─────────── {"kind": "cell", "cell", "status", "message", "data"}   a cell is done: its file
           ◄─────────── {"kind": "telemetry", "data"}         last: memory, power and clocks of the job
           ◄─────────── {"kind": "refused", "sentence"}       instead of all that follows

No file system is shared. The Supervisor of local runs does the job in a scratch folder, with the same worker
and sampler, and each finished cell travels at once: a node that dies takes no finished cell with it. What a
cell's key names must be here, too: same sources, same packages, same weights (checked here), same text, data
and checkpoint (checked by the worker). Relative paths are looked up in the folder where the driver runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..ceilings import ceilings_of
from ..environment import machine_card, source_hash
from ..plan import Cell, Job, Settings
from ..store import first_line
from ..supervise import EnvironmentRefuses, Event, Supervisor

Message = dict[str, Any]

#: Variables that say where data lies; a node's own win.
CARRIED = ("KVMARK_DATA", "KVMARK_CACHE")

_SCRATCH = "kvmark-ray-"


def measure(content: dict[str, Any]) -> Iterator[Message]:
    """Do the job and tell; see the module. Raises nothing that is to be expected."""
    with contextlib.suppress(OSError):
        os.chdir(content["folder"])
    for name, value in content["environment"].items():
        os.environ.setdefault(name, value)
    settings = Settings(**content["settings"])
    card = machine_card(settings.device, settings.threads)
    try:
        refuse_other_inputs(content, card)
    except EnvironmentRefuses as error:
        yield {"kind": "refused", "sentence": str(error)}
        return
    # The sources are the same, wherever they came from: what the driver knows of their commit holds here.
    card |= {key: content["driver"][key] for key in ("commit", "commit_source", "dirty")}
    if card["id"] == content["driver"]["id"]:
        card |= {key: content["driver"].get(key) for key in ("ceilings", "ceilings_note")}
    else:
        asked = content["ceilings"]
        found = ceilings_of(card, settings.dtype) if asked else (None, "Not measured: --no-ceilings.")
        card |= {"ceilings": found[0], "ceilings_note": found[1]}
    yield {"kind": "machine", "card": card}
    with scratch() as out:
        yield from _in_folder(out, content, settings, card)


def refuse_other_inputs(content: dict[str, Any], card: dict[str, Any]) -> None:
    """Cells' keys hold the driver's sources, packages and weights: rows of others would lie.

    Raises EnvironmentRefuses.
    """
    driver = content["driver"]
    if source_hash() != driver["source_hash"]:
        raise EnvironmentRefuses("A Ray node has other sources of kvmark: install the same on every node.")
    for name, version in driver["packages"].items():
        if card["packages"].get(name) != version:
            here = card["packages"].get(name) or "none"
            raise EnvironmentRefuses(
                f"A Ray node has {name} {here} and this machine {version or 'none'}: "
                "install the same packages on every node."
            )
    settings = Settings(**content["settings"])
    if settings.model is not None:
        return  # the worker compares the checkpoint's fingerprint
    from ..loading import weights_of

    for spec, label in content["weights"].items():
        try:
            here = weights_of(spec, settings).label
        except ValueError as error:
            raise EnvironmentRefuses(
                f"A Ray node cannot read the weights of {spec} ({first_line(error)})."
            ) from None
        if here != label:
            raise EnvironmentRefuses(f"A Ray node has other weights of {spec} ({here}, not {label}).")


def _in_folder(out: Path, content: dict[str, Any], settings: Settings, card: dict) -> Iterator[Message]:
    """The Supervisor works in a thread, so that what it tells can leave while it goes on."""
    for name in ("cells", "telemetry", "unfinished"):
        (out / name).mkdir()
    for key, data in content["journals"].items():
        (out / "unfinished" / f"{key}.jsonl").write_bytes(data)
    told: queue.SimpleQueue[Message | BaseException | None] = queue.SimpleQueue()
    hear = _Hear(out, told, {key: len(data) for key, data in content["journals"].items()})
    names = ("run", "settings", "text", "text_label", "sources", "weights", "checkpoint", "architectures")
    common = {name: content[name] for name in names} | {"out": str(out), "machine": card["id"]}
    groups = tuple(tuple(Cell(**cell) for cell in group) for group in content["groups"])
    job = Job(content["job"], groups)

    def work() -> None:
        try:
            Supervisor(out, settings, common, hear).run(job)
            told.put(None)
        except BaseException as error:
            told.put(error)

    # Workers die with the thread that started them: this one ends when the job does.
    threading.Thread(target=work, name="kvmark job", daemon=True).start()
    while isinstance(message := told.get(), dict):
        yield message
    if isinstance(message, OSError):
        message = EnvironmentRefuses(f"A Ray node cannot write results ({message.strerror or message}).")
    if isinstance(message, EnvironmentRefuses):
        yield {"kind": "refused", "sentence": str(message)}
    elif message is not None:
        raise message
    elif (telemetry := out / "telemetry" / f"{job.id}.parquet").exists():
        yield {"kind": "telemetry", "data": telemetry.read_bytes()}


class _Hear:
    """Turns the Supervisor's events into messages; most of them are of no use elsewhere."""

    def __init__(self, out: Path, told: queue.SimpleQueue, sent: dict[str, int]) -> None:
        self.out, self.told, self.sent = out, told, sent
        self.begun: set[str] = set()

    def __call__(self, event: Event) -> None:
        kind, key = event["event"], event.get("cell")
        if kind == "settled":
            data = (self.out / "cells" / f"{key}.parquet").read_bytes()
            fields = {name: event[name] for name in ("cell", "status", "message")}
            self.told.put({"kind": "cell", **fields, "data": data})
        elif kind == "sampler" or (kind == "start" and key not in self.begun):
            self.begun.add(key)
            self.told.put({"kind": "event", "event": event})
        elif kind == "phase" and event["phase"] == "allocate":  # so the batch before it is in the journal
            self._journal(key)

    def _journal(self, key: str) -> None:
        with (
            contextlib.suppress(FileNotFoundError),
            (self.out / "unfinished" / f"{key}.jsonl").open("rb") as file,
        ):
            file.seek(self.sent.get(key, 0))
            if data := file.read():
                self.sent[key] = file.tell()
                self.told.put({"kind": "journal", "cell": key, "data": data})


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one job. Those of killed processes are removed here, since nobody else would."""
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError), (old / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock dies with its process
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=base))
    try:
        with (folder / ".taken").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / ".taken").rename(folder / ".lock")  # nobody sees it before it is held
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
