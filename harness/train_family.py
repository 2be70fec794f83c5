"""`kvmark train family`: everything a recipe file lists, each training in a process of its own.

    kvmark train family --data FOLDER                     the CPU recipe (`harness/recipes/cpu.toml`)
    kvmark train family --data FOLDER --recipe my.toml --only no-start --workers 2

All that can be known to fail is found before anything is trained. After that a training that crashes or
diverges costs no other, but for compressors, which wait for their Transformer. What is finished is skipped,
what was interrupted goes on from its checkpoint. Trainings die with this process, however it ends; Ctrl-C
lets each of them write its checkpoint first.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from .environment import ROOT
from .machine_limits import usable_cores
from .train_member import Job
from .train_recipe import Member, RecipeError, RecipeFile, read_recipe
from .training import CHECKPOINT_EVERY_S, books_card, make_folder

Say = Callable[[str], None]
EXIT_INTERRUPTED = 130
#: What an `Outcome` says of weights that are there.
FINISHED = ("finished", "was finished")


@dataclass(frozen=True)
class Outcome:
    label: str
    status: str  # "finished" | "was finished" | "interrupted" | "failed" | "not begun"
    message: str = ""


def train_family(
    data: Path,
    out: Path,
    recipe: str = "cpu",
    only: list[str] | None = None,
    *,
    workers: int | None = None,
    device: str | None = None,
    threads: int | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    commit: str | None = None,
    say: Say = print,
) -> list[Outcome]:
    """Train what is not finished yet; one outcome for each member of the recipe (or of `only`), in its order.

    Raises RecipeError, SpecError, TextError or ValueError before anything is trained, KeyboardInterrupt once
    every training has stopped.
    """
    from .loading import check_device
    from .train_data import training_books

    file = read_recipe(recipe)
    members = _chosen(file, only)
    device, threads = device or file.device, threads or file.threads
    check_device(device)
    books, hashes = training_books(data)
    expected = Expected(books, hashes)
    finished = {member.label for member in members if expected.is_finished(member, out)}
    for member in members:
        if member.base is None or member.label in finished or any(m.label == member.base for m in members):
            continue
        base = next(m for m in file.members if m.label == member.base)
        if not expected.is_finished(base, out):
            raise RecipeError(
                f"'{member.label}' needs '{base.label}', which is not finished in {out}: name it, too."
            )
    make_folder(out)
    if workers is None:
        workers = max(1, len(usable_cores()) // threads) if device == "cpu" else 1
    jobs = {
        member.label: Job(
            member, data, out, f"kvmark train family --recipe {file.name} --only {member.label} "
            "--data PG19_TRAIN_FOLDER", device, threads, file.batch_workers, checkpoint_every_s, commit,
            os.getpid(),
        )
        for member in members if member.label not in finished
    }  # fmt: skip
    for label in finished:
        say(f"{label}: was finished before.")
    outcomes = {label: Outcome(label, "was finished") for label in finished}
    outcomes |= {outcome.label: outcome for outcome in _Family(jobs, workers, say).train()}
    return [outcomes[member.label] for member in members]


def _chosen(file: RecipeFile, only: list[str] | None) -> list[Member]:
    """The members that `only` names by label or group. Raises RecipeError."""
    if not only:
        return file.members
    known = {name for member in file.members for name in (member.group, member.label)}
    for name in only:
        if name not in known:
            names = ", ".join(dict.fromkeys(name for m in file.members for name in (m.group, m.label)))
            raise RecipeError(f"Recipe '{file.name}' has no '{name}'; it has {names}.")
    return [member for member in file.members if {member.group, member.label} & {*only}]


@dataclass
class Expected:
    """What the cards of a recipe's members will say, as far as it is known before."""

    books: list[tuple[str, bytes]]
    hashes: dict[str, str]
    mixes: dict[Any, dict[str, Any]] = field(default_factory=dict)  # settings -> card, the seed apart

    def card(self, member: Member) -> dict[str, Any]:
        """Raises ValueError where the books do not suffice."""
        plan, steps = member.plan, member.plan.steps
        settings = (plan.lengths, plan.length_probabilities, plan.shares, steps.tokens_per_step)
        if settings not in self.mixes:
            self.mixes[settings] = plan.mix(self.books).card()
        mix = self.mixes[settings] | {"seed": steps.seed + plan.mix_seed_offset}
        card = {
            "architecture": plan.spec,
            "shape": asdict(plan.shape),
            "recipe": asdict(steps),
            "data": mix | books_card(self.hashes),
        }
        return json.loads(json.dumps(card))

    def is_finished(self, member: Member, out: Path) -> bool:
        """Raises RecipeError for finished weights of its name that another recipe or other books made."""
        card, path = self.card(member), out / f"{member.label}.json"
        if not path.exists():
            return False
        there = _card(path)
        differing = next((key for key in card if there.get(key) != card[key]), None)
        if differing is None and member.base is not None:
            base = out / f"{member.base}.json"
            if not base.exists():
                raise RecipeError(f"{path} was trained on {base}, which is gone; delete it, too.")
            same = there.get("base", {}).get("fingerprint") == _card(base).get("sha256")
            differing = None if same else "base"
        if differing is not None:
            raise RecipeError(
                f"{path} is a finished training whose {differing} is not what the recipe says; "
                "choose another --out or delete it."
            )
        return True


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if type(card) is dict and type(card.get("base", {})) is dict:
            return card
    except (OSError, ValueError):
        pass
    raise RecipeError(f"{path} is not a readable card of weights.")


@dataclass
class _Child:
    label: str
    process: subprocess.Popen
    errors: IO[bytes]
    folder: str
    buffer: bytes = b""

    def lines(self) -> list[str] | None:
        """What it said since; None once it said its last word."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


@dataclass
class _Family:
    """Keeps up to `workers` trainings going until none is left that can begin."""

    jobs: dict[str, Job]
    workers: int
    say: Say
    outcomes: list[Outcome] = field(default_factory=list)
    children: dict[str, _Child] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def train(self) -> list[Outcome]:
        waiting = dict(self.jobs)
        try:
            while waiting or self.children:
                for label in [*waiting]:
                    base = waiting[label].member.base
                    status = next((o.status for o in self.outcomes if o.label == base), None)
                    if base in waiting or base in self.children:
                        continue
                    if status not in (None, *FINISHED):
                        del waiting[label]
                        self._settle(Outcome(label, "not begun", f"its base '{base}' is not finished."))
                    elif len(self.children) < self.workers:
                        self._start(waiting.pop(label))
                if self.children:
                    self._listen()
        except KeyboardInterrupt:
            self.say("Stopping; each training writes its checkpoint.")
            for child in self.children.values():
                child.process.send_signal(signal.SIGINT)
            while self.children:
                self._listen()
            raise
        finally:
            for child in self.children.values():
                child.process.kill()
                child.process.wait()
        return self.outcomes

    def _start(self, job: Job) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(job.threads),
        }
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the training has ended)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.train_member"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
            start_new_session=True,  # Ctrl-C comes from here, once
        )  # fmt: skip
        label = job.member.label
        child = self.children[label] = _Child(label, process, errors, job.member.folder)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once: `_ended` says why
            process.stdin.write(pickle.dumps(job))
            process.stdin.close()
        self.selector.register(process.stdout, selectors.EVENT_READ, child)

    def _listen(self) -> None:
        for key, _ in self.selector.select():
            child: _Child = key.data
            lines = child.lines()
            if lines is None:
                self._ended(child)
                continue
            for line in lines:
                self.say(f"{child.folder}/{line}" if child.folder else line)

    def _ended(self, child: _Child) -> None:
        stream = child.process.stdout
        self.selector.unregister(stream)
        stream.close()
        code = child.process.wait()
        del self.children[child.label]
        with child.errors:
            child.errors.seek(0)
            words = child.errors.read().decode(errors="replace").strip().splitlines()
        if code == 0:
            self._settle(Outcome(child.label, "finished"))
            return
        last = words[-1].removeprefix("kvmark: ") if words else "no message."
        if code == EXIT_INTERRUPTED:
            self._settle(Outcome(child.label, "interrupted"))
            return
        if code < 0:
            last = f"the training was ended by {signal.Signals(-code).name}; the same command resumes it."
        elif words and not words[-1].startswith("kvmark: "):  # no sentence of ours: all of it
            self.say("\n".join(words))
        self._settle(Outcome(child.label, "failed", last))

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.say(f"{outcome.label}: {outcome.status}{'' if not outcome.message else ': ' + outcome.message}")


def table(outcomes: list[Outcome], out: Path) -> list[str]:
    """One line for each training: status, size, tokens, final figures, or what went wrong."""
    width = max(len(outcome.label) for outcome in outcomes)
    lines = []
    for outcome in outcomes:
        told = outcome.message
        if outcome.status in FINISHED:
            card = json.loads((out / f"{outcome.label}.json").read_text(encoding="utf-8"))
            final = card["losses"]["final"]
            bits = final["bits_per_byte"]
            told = (
                f"{card['parameters']:,} parameters, {card['tokens']:,} tokens, loss {final['loss']:.3f}, "
                f"{'no' if bits is None else f'{bits:.3f}'} bits/byte (running), {card['wall_s']:,.0f} s"
            )
        lines.append(f"{outcome.label:<{width}}  {outcome.status:<12}  {told}")
    return lines
