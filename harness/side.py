"""One side of a gate: a process of one checkout that measures what it is told, when it is told.

    gate ── stdin, JSON lines ──► python -P -m harness.side        (PYTHONPATH: the checkout)
         {"do": "prepare", "version", "parent_pid", "options"}     first, and once
         {"do": "measure", "out", "cells": [key, ...], "turns"}    as often as wanted; turns: where all jobs
                                                                   at once ask for theirs
         ◄── stdout, JSON lines ──
         {"event": "ready", "name", "cells", "refused", "remarks", "abreast"}
         {"event": "settled", "cell", "status", "message"} ...  {"event": "measured"}

It ends with its stdin. Between two orders it blocks in a read and costs nothing, so the other side can be
measured. Plans, keys, weights, workers and rows are those of its own checkout; the gate only says when. Every
order is one `harness.runner.run` of some cells of the plan: killed anywhere, finished cells stay.

What it cannot do ends it as it would end a command: one sentence on stderr, and the exit code of that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .errors import UsageError
from .exits import sentences
from .machine_limits import available_memory_bytes, die_with_parent

if TYPE_CHECKING:
    from .plan import Plan
    from .runner import Prepared

#: 1: first version. 2: turns.
SIDE_VERSION = 2
#: Resident memory of a worker that has imported torch and holds no weights.
PROCESS_BYTES = 400_000_000


def main() -> int:
    """Obey until stdin ends. The exit code is 0, or that of the sentence on stderr."""
    # Whoever starts a gate in a shell's background hands down that Ctrl-C is ignored; the gate's own is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Whatever a model or a library prints must not get between the answers: it goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        with sentences():
            prepared: Prepared | None = None
            for line in sys.stdin:
                order = json.loads(line)
                if prepared is None:
                    prepared, refused = _prepare(order)
                    say(event="ready", **_told(prepared), refused=refused)
                else:
                    _measure(prepared, order, say)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _prepare(order: dict[str, Any]) -> tuple[Prepared, dict[str, str]]:
    """The plan that the options ask for in this checkout, less the specs that it does not know."""
    from .asked import plan_of
    from .runner import prepare

    if order["version"] != SIDE_VERSION:
        raise UsageError(f"This checkout obeys a gate of version {SIDE_VERSION}, not {order['version']}.")
    die_with_parent(order["parent_pid"])
    _check_options(order["options"])
    plan, refused = _known(plan_of(order["options"]))
    return prepare(plan), refused


def _check_options(options: dict[str, Any]) -> None:
    """An option that this checkout does not have would be passed over in silence."""
    from .plan import Settings

    known = {"name", "arch", "suite", "contexts", "text"} | {f.name for f in dataclasses.fields(Settings)}
    for name in options.keys() - known:
        if options[name] is not None:
            raise UsageError(f"This checkout has no option '{name}'.")


def _known(plan: Plan) -> tuple[Plan, dict[str, str]]:
    """The plan with what this checkout can build, and a sentence for each spec that it cannot.

    Raises SpecError where nothing is left.
    """
    import models
    import suites
    from models.spec import SpecError

    refused: dict[str, str] = {}
    kept: dict[str, tuple[str, ...]] = {}
    for field, canonical in (("architectures", models.canonical_spec), ("suites", suites.canonical_spec)):
        specs = []
        for spec in getattr(plan, field):
            try:
                canonical(spec)
                specs.append(spec)
            except SpecError as error:
                refused[spec] = str(error)
                last = error
        if not specs:
            raise last
        kept[field] = tuple(specs)
    return dataclasses.replace(plan, **kept), refused


def _told(prepared: Prepared) -> dict[str, Any]:
    """What the gate needs to know to take turns."""
    cells = [
        # Cells with the same suite, replicate and process are measured by one worker.
        vars(cell) | {"process": None if prepared.interleaved[cell.suite] else cell.architecture}
        for cell in prepared.cells
    ]
    told = {"name": prepared.name, "cells": cells, "remarks": prepared.remarks}
    return told | {"abreast": _abreast(prepared)}


def _abreast(prepared: Prepared) -> int:
    """How many processes of a latency suite this machine holds at the same time. 0: they need a GPU, or
    nobody knows what they need."""
    from .runner import predicted_bytes

    free = available_memory_bytes()
    if prepared.settings.device != "cpu" or free is None:
        return 0
    needed = [
        predicted_bytes(prepared, job)
        for job in prepared.jobs(set())
        if prepared.interleaved[job.groups[0][0].suite] and job.groups[0][0].replicate == 0
    ]
    if not needed or None in needed:
        return 0
    # Logits, activations and what one allocator wastes: as much again.
    return int(free / 2 / (PROCESS_BYTES + 2 * max(map(sum, needed))))


def _measure(prepared: Prepared, order: dict[str, Any], say: Any) -> None:
    """Run the named cells in the named folder; its tables are then of these cells."""
    from .executors import local
    from .executors.abreast import Abreast
    from .runner import run

    wanted = set(order["cells"])
    some = dataclasses.replace(prepared, cells=[cell for cell in prepared.cells if cell.key in wanted])

    def hear(event: dict[str, Any]) -> None:
        if event["event"] in _HEARD:
            say(**event)

    # What this machine could do at best is the same for both sides.
    execute = Abreast(order["turns"]) if order.get("turns") else local
    run(some, Path(order["out"]), hear, execute=execute, ceilings=False)
    say(event="measured")


#: Events of a run that the gate passes on.
_HEARD = ("settled", "sampler")

if __name__ == "__main__":
    sys.exit(main())
