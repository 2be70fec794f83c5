"""All jobs of one side of a gate at once, each waiting for its turns (`harness.rounds`)."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Sequence
from typing import Any

from ..plan import Job
from ..rounds import Ended, announce
from ..supervise import EnvironmentRefuses, Event, Supervisor


class Abreast:
    """An executor: a thread per job supervises its worker; only who has the turn measures."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, jobs: Sequence[Job], supervisor: Supervisor, machine: dict[str, Any]) -> None:
        """Do all jobs. Raises EnvironmentRefuses, OSError (the run folder), KeyboardInterrupt."""
        try:
            announce(self.address, len(jobs))
        except Ended:
            raise EnvironmentRefuses("Nobody gives turns to measure any more.") from None
        told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        for job in jobs:
            # Nothing is shared between threads but the queue.
            own = dataclasses.replace(
                supervisor,
                common=supervisor.common | {"turns": self.address},
                on_event=told.put,
                statuses=dict(supervisor.statuses),
                before={},
            )
            threading.Thread(target=_supervise, args=(own, job, told), name=job.id, daemon=True).start()
        left, faults = len(jobs), []
        while left:
            match told.get():
                case None:
                    left -= 1
                case BaseException() as fault:
                    faults.append(fault)
                case event:
                    if event["event"] == "settled":
                        supervisor.statuses[event["cell"]] = event["status"]
                    supervisor.on_event(event)
        if faults:
            raise faults[0]


def _supervise(supervisor: Supervisor, job: Job, told: queue.SimpleQueue[Any]) -> None:
    # A worker dies with the thread that started it: this one lasts as long as its job.
    try:
        supervisor.run(job)
    except BaseException as fault:
        told.put(fault)
    finally:
        told.put(None)
