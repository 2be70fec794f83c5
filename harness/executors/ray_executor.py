"""Ray spreads the jobs over GPUs and nodes; this machine plans, keeps the run folder, decides about losses.

    jobs ──► Ray: num_gpus=1 per CUDA job, num_cpus=threads ──► node.measure on some node
    messages of all jobs ◄── as they come; a finished cell's file is in the run folder the moment it arrives
    a job that is lost with its worker or node ──► once more, without the cells that are finished
                                lost again     ──► a row "crash" for each cell that is not

With RAY_ADDRESS in the environment the jobs go to that cluster ("auto": the one that `ray start` began here).
Without it Ray is started on this machine for the run and stopped after it, with a secret of its own, no
dashboard and no statistics to its makers. A cell's key holds the machine that made the plan; its rows hold
the machine that measured it, whose card run.json has under "machines".
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..machine_limits import usable_cores
from ..manifest import add_machine
from ..plan import Cell, Job, Settings
from ..series import Series
from ..store import first_line, write_atomic
from ..supervise import EnvironmentRefuses, Supervisor
from . import node
from .node import Message

#: Ray's smallest store is 75 MB; a cell's file has some ten KB.
_STORE_BYTES = 100 << 20


@dataclass
class Attempt:
    """A job on its way; `machine` is the node that began it, as far as it has told."""

    job: Job
    losses: int = 0
    machine: str | None = None

    def left(self, supervisor: Supervisor) -> list[list[Cell]]:
        """Groups of the cells that have no outcome yet."""
        groups = ([c for c in group if c.key not in supervisor.statuses] for group in self.job.groups)
        return [group for group in groups if group]


class RayExecutor:
    """At most `workers` jobs at a time; None: as many as there are GPUs, or cores for their threads.

    Raises EnvironmentRefuses if Ray is not installed.
    """

    def __init__(self, workers: int | None = None, ceilings: bool = True) -> None:
        self.workers, self.ceilings, self.address = workers, ceilings, os.environ.get("RAY_ADDRESS")
        # Ray reads these when it is imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self.address:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one goes to the home folder
        try:
            self.ray = importlib.import_module("ray")
        except ImportError:
            raise EnvironmentRefuses(
                "Ray is not installed: `pip install 'kvmark[ray]'`, or leave --executor ray out."
            ) from None

    def __call__(self, jobs: Sequence[Job], supervisor: Supervisor, machine: dict[str, Any]) -> None:
        """Do all jobs. Raises EnvironmentRefuses, OSError (the run folder), KeyboardInterrupt."""
        if not jobs:
            return
        self._start(supervisor.settings)
        try:
            self._refuse_if_nothing_fits(supervisor.settings)
            carried = {name: os.environ[name] for name in node.CARRIED if name in os.environ}
            shared = {"driver": machine, "ceilings": self.ceilings, "environment": carried}
            _Fan(self.ray, supervisor, shared | {"folder": str(Path.cwd())}, self.workers).run(jobs)
        except self.ray.exceptions.RayError as error:
            raise EnvironmentRefuses(f"Ray does not go on ({first_line(error)}).") from None
        finally:
            self.ray.shutdown()  # ends what is still running, too

    def _start(self, settings: Settings) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address:
                self.ray.init(address=self.address, **quiet)
                return
            at_once = self.workers or max(1, len(usable_cores()) // settings.threads)
            self.ray.init(
                address="local", num_cpus=at_once * settings.threads, include_dashboard=False,
                object_store_memory=_STORE_BYTES, **quiet,
            )  # fmt: skip
        except Exception as error:  # after 30 s on a busy machine, Ray raises just that
            where = f"at {self.address} " if self.address else ""
            raise EnvironmentRefuses(f"Ray {where}does not start ({first_line(error)}).") from None

    def _refuse_if_nothing_fits(self, settings: Settings) -> None:
        """Ray waits for ever where no node will do."""
        asked = _resources(settings)
        named = {"CPU": asked["num_cpus"], "GPU": asked["num_gpus"]}
        alive = [found["Resources"] for found in self.ray.nodes() if found["Alive"]]
        if not any(all(has.get(kind, 0) >= many for kind, many in named.items()) for has in alive):
            words = ", ".join(f"{kind} {many}" for kind, many in named.items() if many)
            raise EnvironmentRefuses(
                f"No Ray node has what a job asks for ({words}): lower --threads, or add such a node."
            )


def _resources(settings: Settings) -> dict[str, int]:
    """Ray sets CUDA_VISIBLE_DEVICES, so that "cuda" is the job's own GPU."""
    return {"num_cpus": settings.threads, "num_gpus": int(settings.device.startswith("cuda"))}


class _Fan:
    """All jobs of one call: which are waiting, which are with Ray, and what becomes of each."""

    def __init__(self, ray: Any, supervisor: Supervisor, shared: dict, workers: int | None) -> None:
        self.ray, self.supervisor, self.shared = ray, supervisor, shared
        self.workers = workers or float("inf")
        options = {**_resources(supervisor.settings), "max_retries": 0, "num_returns": "streaming"}
        self.remote = ray.remote(**options)(node.measure)
        self.seen: set[str] = set()

    def run(self, jobs: Sequence[Job]) -> None:
        waiting = deque(Attempt(job) for job in jobs)
        flying: dict[Any, Attempt] = {}  # by Ray's generator of the job's messages
        while waiting or flying:
            while waiting and len(flying) < self.workers:
                attempt = waiting.popleft()
                flying[self.remote.remote(self._content(attempt))] = attempt
            ready, _ = self.ray.wait(list(flying), num_returns=1)
            for generator in ready:
                attempt = flying[generator]
                try:
                    self._hear(attempt, self.ray.get(next(generator)))
                except StopIteration:
                    del flying[generator]
                except self.ray.exceptions.RayTaskError as error:
                    sentence = f"A Ray node cannot run a job of kvmark ({first_line(error.cause)})."
                    raise EnvironmentRefuses(sentence) from None
                except self.ray.exceptions.RayError as error:
                    del flying[generator]
                    if self._lost(attempt, f"{type(error).__name__}: {first_line(error)}"):
                        waiting.appendleft(attempt)

    def _content(self, attempt: Attempt) -> dict[str, Any]:
        """What the node gets: the common part of a job file, and what a worker would find in the folder."""
        groups = attempt.left(self.supervisor)
        keys = [cell.key for group in groups for cell in group]
        journals = {key: path.read_bytes() for key in keys if (path := self._journal(key)).exists()}
        asked = {"job": attempt.job.id, "groups": [[vars(cell) for cell in group] for group in groups]}
        return self.supervisor.common | self.shared | asked | {"journals": journals}

    def _journal(self, key: str) -> Path:
        return self.supervisor.out / "unfinished" / f"{key}.jsonl"

    def _hear(self, attempt: Attempt, message: Message) -> None:
        kind, out = message["kind"], self.supervisor.out
        if kind == "refused":
            raise EnvironmentRefuses(message["sentence"])
        if kind == "machine":
            attempt.machine = message["card"]["id"]
            if attempt.machine not in self.seen:
                self.seen.add(attempt.machine)
                add_machine(out, message["card"])
            job = attempt.job
            self.supervisor.on_event({"event": "job", "job": job.id, "suite": job.groups[0][0].suite})
        elif kind == "event":
            self.supervisor.on_event(message["event"])
        elif kind == "journal":
            path = self._journal(message["cell"])
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(message["data"])
        elif kind == "cell":
            write_atomic(out / "cells" / f"{message['cell']}.parquet", message["data"])
            if message["status"] == "ok":
                self._journal(message["cell"]).unlink(missing_ok=True)
            self.supervisor.settle(message["cell"], message["status"], message["message"])
        elif kind == "telemetry":
            series = Series(out / "telemetry", attempt.job.id)
            write_atomic(series.sample(attempt.losses), message["data"])
            series.merge({*self.supervisor.statuses, *_keys(attempt.job)})

    def _lost(self, attempt: Attempt, why: str) -> bool:
        """Whether a job that its worker or node took along is to be tried again; else its cells get rows."""
        left = attempt.left(self.supervisor)
        attempt.losses += 1
        if left and attempt.losses < 2:
            attempt.machine = None
            return True
        there = replace(self.supervisor, common=self.supervisor.common | {"machine": attempt.machine})
        message = f"the job was lost twice with the Ray worker or node that ran it ({why})"
        for cell in (cell for group in left for cell in group):
            there.record_failure(cell, "crash", message, None)
        return False


def _keys(job: Job) -> Iterator[str]:
    return (cell.key for group in job.groups for cell in group)
