"""`kvmark train family` in real processes: who fails costs no other, and whoever kills it changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from train_help import write_books, write_recipe

from harness import train_family as train_family_module
from harness import train_member
from harness.train_ahead import ahead
from harness.train_data import training_books
from harness.train_family import train_family
from harness.train_member import Job
from harness.train_recipe import RecipeError, read_recipe
from models import checkpoint

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.full


@pytest.fixture
def place(tmp_path):
    """A folder with books, where the command runs."""
    write_books(tmp_path / "books")
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.cli", "train", "family", "--recipe", "mine.toml",
         "--data", "books", "--out", "weights", *arguments],
        cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], within_s: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=within_s)
    return process.returncode, out, err


def wait_for(condition, within_s: float = 200):
    """The first value of `condition()` that is true."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.0005)
    raise AssertionError("it never happened")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def trainer(lock: Path) -> int | None:
    """The process that trains now, by its lock; one that was killed leaves the file behind."""
    pid = lock.read_text() if lock.exists() else ""
    return int(pid) if pid and not gone(int(pid)) else None


def test_a_family_trains_and_one_that_diverges_costs_no_other(place):
    """Members, their compressors, the table; NaN is one sentence; finished ones are skipped the next time."""
    diverging = ("seeds = [0, 1]", "seeds = [0]\nadamw_lr = 1e6\nmuon_lr = 1e6\nclip = 0")
    write_recipe(place / "mine.toml", diverging, ("batch_workers = 0", "batch_workers = 1"))
    code, out, err = ended(start(place, "--workers", "2"))
    rows = {line.split("  ")[0].strip(): line for line in out.splitlines()[-4:]}
    assert code == 1 and "2 trainings did not finish" in err and err.count("\n") == 1
    assert "finished" in rows["transformer"] and "34,984 parameters, 5,120 tokens" in rows["transformer"], (
        rows
    )
    assert "a lower learning rate may help." in rows["others/0/transformer"]
    assert "failed" in rows["others/0/yoco-swa"] and "finished" in rows["lococo-32"]
    assert "transformer: 5,120 tokens, " in out and " tokens/s, MFU " in out and "0:00:00 left" in out
    weights = place / "weights"
    assert not list((weights / "others").rglob("*.json"))
    base, card = (json.loads((weights / f"{n}.json").read_text()) for n in ("transformer", "lococo-32"))
    assert card["base"] == {"name": "transformer", "fingerprint": base["sha256"]}
    assert card["command"] == (
        "kvmark train family --recipe mine.toml --only lococo-32 --data PG19_TRAIN_FOLDER"
    )
    curve = pq.read_table(weights / "transformer.curve.parquet").to_pydict()
    assert curve["tokens"][-1] == 5120 and {"digits_128", "digits_256", "eta_s", "mfu"} <= curve.keys()
    assert curve["eta_s"][-1] == 0 and curve["tokens_per_s"][-1] > 0 and curve["mfu"][-1] > 0

    code, out, err = ended(start(place, "--only", "final", "--only", "compressors"))
    assert code == 0 and out.count("was finished") == 4 and err == ""
    other = write_recipe(place / "mine.toml", ("muon_lr = 0.02", "muon_lr = 0.01"))
    code, out, err = ended(start(place))
    assert (code, out) == (2, "") and "transformer.json is a finished training whose recipe is not" in err
    other.unlink()

    write_recipe(place / "mine.toml", diverging, ("batch_workers = 0", "batch_workers = 1"))
    (weights / "transformer.json").unlink()
    with pytest.raises(RecipeError, match=r"lococo-32.json was trained on .*transformer.json, which is gone"):
        train_family(place / "books", weights, str(place / "mine.toml"), say=print)


def test_what_nobody_foresaw_is_told_in_full(place, monkeypatch):
    """A training that ends with Python's own traceback: all of it, and its last line in the table."""
    write_recipe(place / "mine.toml")
    monkeypatch.setattr(train_family_module.pickle, "dumps", lambda job: b"no job")
    said: list[str] = []
    (outcome,) = train_family(
        place / "books", place / "weights", str(place / "mine.toml"), ["transformer"], say=said.append
    )
    assert outcome.status == "failed" and "Error" in outcome.message
    assert any("Traceback (most recent call last)" in line for line in said)


def test_compressors_of_a_base_that_failed_are_not_begun(place):
    write_recipe(
        place / "mine.toml", ("adamw_lr = 3e-3", "adamw_lr = 1e6"), ("muon_lr = 0.02", "muon_lr = 1e6")
    )
    said: list[str] = []
    outcomes = train_family(
        place / "books",
        place / "weights",
        str(place / "mine.toml"),
        ["final", "compressors"],
        say=said.append,
    )
    assert [(o.label, o.status) for o in outcomes] == [("transformer", "failed"), ("lococo-32", "not begun")]
    assert outcomes[1].message == "its base 'transformer' is not finished."


def test_one_that_somebody_stopped_is_not_finished(place):
    """SIGINT to the training alone: it writes its checkpoint, its compressors do not begin, the code is 1."""
    write_recipe(place / "mine.toml", ("tokens = 5120", "tokens = 512_000"))
    lock, saved = place / "weights" / ".transformer.lock", place / "weights" / "transformer.training.pt"
    process = start(place, "--only", "final", "--only", "compressors", "--checkpoint-s", "0")
    pid = wait_for(lambda: saved.exists() and trainer(lock))
    os.kill(pid, signal.SIGINT)
    code, out, err = ended(process)
    assert code == 1 and "2 trainings did not finish" in err, (out, err)
    assert "transformer: interrupted" in out and "lococo-32: not begun: its base 'transformer'" in out
    assert saved.exists()


def test_killed_anywhere_and_resumed_it_ends_the_same(place, monkeypatch):
    """SIGKILL to the command and to the training, at random steps and half-way through a checkpoint: the
    weights are bit-identical to those of a run that nobody disturbed, and so is the card but for times."""
    monkeypatch.chdir(place)
    write_recipe(place / "mine.toml", ("tokens = 5120", "tokens = 15360"))
    member = read_recipe("mine.toml").members[0]
    job = Job(member, Path("books"), Path("whole"), "", "cpu", 1, 0, 3600.0, None, os.getpid())
    train_member.train_member(job)

    weights, rng = place / "weights", random.Random(time.time_ns())
    saved, lock = weights / "transformer.training.pt", weights / ".transformer.lock"
    half_written = steps = 0
    for kill in ("command", "training", "half-way"):
        process = start(place, "--only", "transformer", "--checkpoint-s", "0")
        pid = wait_for(lambda: trainer(lock))
        if kill == "half-way":
            while not half_written:
                wait_for(lambda: [*weights.glob("transformer.training.pt.*.tmp")])
                os.kill(pid, signal.SIGSTOP)
                half_written = len([*weights.glob("transformer.training.pt.*.tmp")])
                os.kill(pid, signal.SIGKILL if half_written else signal.SIGCONT)
        else:
            changes = rng.randint(1, 6)
            for _ in range(changes):
                before = saved.stat().st_mtime_ns if saved.exists() else 0
                wait_for(lambda b=before: saved.exists() and saved.stat().st_mtime_ns != b)
            time.sleep(rng.random() * 0.02)
            os.kill(process.pid if kill == "command" else pid, signal.SIGKILL)
        code, out, err = ended(process)
        wait_for(lambda p=pid: gone(p), 20)  # also where only its parent was killed
        assert code == (-signal.SIGKILL if kill == "command" else 1), (out, err)
        assert kill == "command" or "the training was ended by SIGKILL" in out
        there = torch.load(saved, weights_only=True)["step"]
        assert steps <= there < 60 and not (weights / "transformer.json").exists()
        steps = there
    assert half_written == len([*weights.glob("*.tmp")]) == 1

    code, out, err = ended(start(place, "--only", "transformer"))
    assert code == 0, (out, err)
    whole, card = checkpoint.load("transformer", [place / "whole"])
    parts, other = checkpoint.load("transformer", [weights])
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    times = ("wall_s", "cpu_s", "ceiling_flops", "command")
    assert card["losses"].pop("curve")[-1] == other["losses"].pop("curve")[-1]
    assert all(card[key] == other[key] for key in card.keys() | other.keys() if key not in times)
    assert sorted(file.name for file in weights.iterdir()) == [
        *("transformer.curve.parquet", "transformer.json", "transformer.safetensors"),
    ]


def test_ctrl_c_stops_all_after_a_checkpoint(place):
    write_recipe(place / "mine.toml", ("tokens = 5120", "tokens = 5_120_000"), ("1024", "1_024_000"))
    process = start(place, "--workers", "2", "--only", "final", "--only", "others", "--checkpoint-s", "2")
    labels = ("transformer", "others/0/transformer")
    checkpoints = [place / "weights" / f"{label}.training.pt" for label in labels]
    wait_for(lambda: all(path.exists() for path in checkpoints))
    pids = [trainer(path.with_name(".transformer.lock")) for path in checkpoints]
    before = [path.stat().st_mtime_ns for path in checkpoints]
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130 and all(gone(pid) for pid in pids)
    assert "kvmark: Interrupted; the same command goes on where this one stopped." in err
    for label, path, then in zip(labels, checkpoints, before, strict=True):
        assert path.stat().st_mtime_ns > then and f"{label}: interrupted" in out
        saved = torch.load(path, weights_only=True)
        assert saved["step"] >= 2 and path.with_name("transformer.curve.parquet").exists() == bool(
            saved["log"]
        )


def test_batches_drawn_ahead_are_the_same(place):
    """Whatever step comes first; the processes end with the block."""
    books, _ = training_books(place / "books")
    mix = read_recipe(str(write_recipe(place / "mine.toml"))).members[0].plan.mix(books)
    with ahead(mix, 2) as batches:
        drawn = [batches(step) for step in (7, 8, 9, 3)]
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    for batch, step in zip(drawn, (7, 8, 9, 3), strict=True):
        own = mix.batch(step)
        assert all(np.array_equal(getattr(batch, name), getattr(own, name)) for name in vars(own))
    with ahead(mix, 0) as batches:
        assert batches == mix.batch
