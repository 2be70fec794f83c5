"""Where the jobs of a run are done: one after another on this machine, or spread over GPUs and nodes by Ray.

    runner.run ──jobs──► execute(jobs, supervisor, machine) ──► out/cells/KEY.parquet as each cell is done

An executor is a function. It is handed the jobs that are left and the run's Supervisor, whose folder,
statuses and events it keeps up to date; `machine` is the card in run.json, of the machine that made the plan.
Rows, resume and report know nothing of it: a run that began with one executor may go on with the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import UsageError
from ..plan import Job
from ..supervise import Supervisor

EXECUTORS = ("local", "ray")


class Execute(Protocol):
    """Do all jobs. Raises EnvironmentRefuses, OSError (the run folder), KeyboardInterrupt."""

    def __call__(self, jobs: Sequence[Job], supervisor: Supervisor, machine: dict[str, Any]) -> None: ...


def local(jobs: Sequence[Job], supervisor: Supervisor, machine: dict[str, Any]) -> None:
    """One job at a time: nothing of ours disturbs what is being timed."""
    for job in jobs:
        supervisor.on_event({"event": "job", "job": job.id, "suite": job.groups[0][0].suite})
        supervisor.run(job)


def executor(
    name: str = "local", workers: int | None = None, device: str = "cpu", ceilings: bool = True
) -> Execute:
    """The executor of that name, for jobs on this device. `workers` limits how many jobs Ray does at a time;
    `ceilings` False: nodes are not asked what they can do at most.

    Raises UsageError, and EnvironmentRefuses where Ray is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"Unknown executor '{name}'; known: {', '.join(EXECUTORS)}.")
    if name == "local":
        if workers is not None:
            raise UsageError("--workers is for --executor ray; locally one job runs at a time.")
        return local
    if ":" in device:
        raise UsageError(f"--executor ray gives each job a GPU of its own: --device cuda, not {device}.")
    from .ray_executor import RayExecutor

    return RayExecutor(workers, ceilings)
