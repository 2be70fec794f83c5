"""One member of a family in a process of its own: `python -m harness.train_member`, run by `train_family.py`.

The job comes pickled on stdin, log lines go to stdout, what went wrong is one sentence on stderr. Exit codes
are those of the command. It dies with its parent; what is lost then is made again from the checkpoint.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .machine_limits import die_with_parent

if TYPE_CHECKING:  # the processes of `train_ahead.py` import this file, too, and need no torch
    from .train_recipe import Member


@dataclass(frozen=True)
class Job:
    member: Member
    data: Path
    out: Path
    command: str
    device: str
    threads: int
    batch_workers: int
    checkpoint_every_s: float
    commit: str | None
    parent_pid: int


def train_member(job: Job) -> None:
    """Train and write card, weights and curve. Raises as `train.train` does."""
    import torch

    from .loading import check_device
    from .train import network
    from .train_ahead import ahead
    from .train_compressors import frozen_transformer, on_mix
    from .train_data import training_books
    from .training import carry_out

    member, plan = job.member, job.member.plan
    check_device(job.device)
    torch.set_num_threads(job.threads)
    torch.manual_seed(plan.steps.seed)
    books, hashes = training_books(job.data)
    with ExitStack() as stack:

        def draw(mix):
            return stack.enter_context(ahead(mix, job.batch_workers))

        shared = (books, hashes, job.device, job.command, draw)
        if member.base is None:
            training = network(plan, *shared)
        else:
            base = job.out / member.base
            training = on_mix(plan, frozen_transformer([base.parent], base.name), *shared)
        carry_out(
            training, job.out / member.folder, f"{job.threads} thread(s), {job.device}", job.commit, _say,
            device=job.device, checkpoint_every_s=job.checkpoint_every_s,
        )  # fmt: skip


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    # A shell's background job starts with SIGINT ignored, and our children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job: Job = pickle.load(sys.stdin.buffer)
    die_with_parent(job.parent_pid)
    from .exits import sentences

    try:
        with sentences(ValueError, FloatingPointError):
            train_member(job)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not by way of the interpreter's end: nothing is left to do, and torch takes its time.
    os._exit(code)
