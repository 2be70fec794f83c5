"""All that wants a GPU, in stages that each end within nine minutes and are worth having alone.

    python tests/gpu/stages.py --out FOLDER                      every stage, in this order, until time is up
    python tests/gpu/stages.py paper-yoco kernels --out FOLDER   these
    python tests/gpu/stages.py --out FOLDER --from EARLIER       goes on after what earlier calls handed out
    python tests/gpu/stages.py --list

    tests            pytest -m gpu, of the files that have such tests: every kernel compiled
    ceilings         what this machine can do, and its card
    paper-yoco       3B shapes, 32K to 1M tokens
    kernels          each kernel against its floor and its rivals (kernel_table.py)
    paper-tova, paper-lococo
    train-...        one network of the family each, recipe `gpu`; wants --data, a folder of training texts

Needs no network and no .git, and a Python with kvmark's dependencies; kvmark itself need not be installed. A
stage works in `--work` (results/local/gpu). What a call worked on is handed out as FOLDER/gpu.tar.gz, cut
into .0, .1, ... above 15 MB, whether it ended or not: every finished cell of a run counts, and a call with
--from does what is left. Trainings go on only where their work folder still is: their state is too large.

Exit code 0: all asked for have ended; 1: one failed or is unfinished (its line says which); 2: usage.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE, PART_BYTES = "gpu.tar.gz", 15 << 20
#: After Ctrl-C a run writes what is finished; then it is killed.
GRACE_S = 20.0
NETWORKS = ("transformer", "yoco-swa", "yoco-retention")
KVMARK = (sys.executable, "-P", "-m", "harness.cli")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
CEILINGS = """
import json, sys
from pathlib import Path
from harness.ceilings import ceilings_of
from harness.environment import machine_card
card = machine_card(sys.argv[2])
found, note = ceilings_of(card, sys.argv[3], again=True)
card |= {"ceilings": found, "ceilings_note": note}
Path(sys.argv[1], "machine.json").write_text(json.dumps(card, indent=1) + chr(10))
sys.exit(note if found is None else 0)
"""


@dataclass(frozen=True)
class Stage:
    """Commands of which one follows another; "{work}" and "{data}" are filled in."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs_data: bool = False
    limit_s: float = 540.0


def stages() -> dict[str, Stage]:
    here, tests = Path(__file__).parent, sorted(ROOT.glob("tests/test_*.py"))
    compiled = [str(path) for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "--junitxml={work}/tests.xml")
    ceilings = (sys.executable, "-c", CEILINGS, "{work}", "cuda", "bf16")
    table = (sys.executable, str(here / "kernel_table.py"), "--out", "{work}")
    found = [
        Stage("tests", ((sys.executable, "-m", "pytest", *options, *compiled),)),
        Stage("ceilings", (ceilings,), limit_s=180),
        _plan("paper-yoco"),
        Stage("kernels", (table,)),
        _plan("paper-tova"),
        _plan("paper-lococo"),
        *(
            Stage(f"train-{name}", ((
                *KVMARK, "train", "family", "--recipe", "gpu", "--only", name, "--workers", "1",
                "--data", "{data}", "--out", "{work}",
            ),), needs_data=True)
            for name in NETWORKS
        ),
    ]  # fmt: skip
    return {stage.name: stage for stage in found}


def _plan(name: str) -> Stage:
    return Stage(name, ((*KVMARK, "run", name, "--out", "{work}/run"),))


def run(stage: Stage, work: Path, data: str | None, seconds: float) -> dict[str, object]:
    """Do a stage within so many seconds; what is written to its stage.json."""
    work.mkdir(parents=True, exist_ok=True)
    start, code, status = time.monotonic(), 0, "ended"
    with open(work / "log.txt", "ab") as log:
        for command in stage.commands:
            filled = [part.replace("{work}", str(work)).replace("{data}", data or "") for part in command]
            code, in_time = _do(filled, log, start + seconds - time.monotonic())
            if code or not in_time:
                status = "failed" if in_time else "unfinished"
                break
    done = {"stage": stage.name, "status": status, "exit_code": code, "seconds": time.monotonic() - start}
    (work / "stage.json").write_text(json.dumps(done, indent=1) + "\n")
    return done


def _do(command: Sequence[str], log: io.BufferedIOBase, seconds: float) -> tuple[int | None, bool]:
    """(exit code, whether it ended by itself)."""
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.wait(max(seconds, 0.0)), True
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(GRACE_S), False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait(), False


def hand_out(work: Path, out: Path, names: Sequence[str]) -> list[Path]:
    """Folders of stages as one archive, or as its parts."""
    out.mkdir(parents=True, exist_ok=True)
    for old in parts(out):
        old.unlink()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in names:
            archive.add(work / name, arcname=name, filter=_small)
    whole, path = packed.getvalue(), out / ARCHIVE
    if len(whole) <= PART_BYTES:
        path.write_bytes(whole)
    else:
        for number, start in enumerate(range(0, len(whole), PART_BYTES)):
            Path(f"{path}.{number}").write_bytes(whole[start : start + PART_BYTES])
    return parts(out)


def _small(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """All but the state of a training that goes on."""
    return None if member.name.endswith(".training.pt") else member


def parts(folder: Path) -> list[Path]:
    """What `hand_out` wrote, in order."""
    numbered = folder.glob(f"{ARCHIVE}.*")
    return [*folder.glob(ARCHIVE), *sorted(numbered, key=lambda path: int(path.suffix[1:]))]


def take_in(folder: Path, work: Path) -> None:
    """Unpack the stages that were handed out and are not at hand."""
    packed = io.BytesIO(b"".join(path.read_bytes() for path in parts(folder)))
    present = {path.name for path in work.iterdir()} if work.exists() else set()
    with tarfile.open(fileobj=packed, mode="r:gz") as archive:
        missing = [member for member in archive if Path(member.name).parts[0] not in present]
        archive.extractall(work, members=missing, filter="data")


def ended(work: Path) -> bool:
    try:
        return json.loads((work / "stage.json").read_text())["status"] == "ended"
    except (OSError, ValueError, KeyError):
        return False


def main(arguments: Sequence[str] | None = None, known: dict[str, Stage] | None = None) -> int:
    known = stages() if known is None else known
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", nargs="*", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--out", type=Path, help="where archives go")
    parser.add_argument(
        "--from", dest="earlier", type=Path, action="append", default=[], help="what earlier calls handed out"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "local" / "gpu")
    parser.add_argument("--data", help="folder of training texts")
    parser.add_argument(
        "--limit-s", type=float, default=540.0, help="of this call, all of its stages together"
    )
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.list:
        print("\n".join(known))
        return 0
    wrong = [name for name in asked.stage if name not in known]
    if wrong or asked.out is None:
        parser.error(
            f"no such stage: {', '.join(wrong)}; known: {', '.join(known)}" if wrong else "--out is needed"
        )
    chosen = [known[name] for name in asked.stage or known]
    if asked.stage and not asked.data and any(stage.needs_data for stage in chosen):
        parser.error("trainings need --data, a folder of texts")
    folder, worked = asked.work.resolve(), []
    for earlier in asked.earlier:
        if not parts(earlier):
            parser.error(f"{earlier} holds no {ARCHIVE}")
        take_in(earlier, folder)
    deadline, good = time.monotonic() + asked.limit_s, True
    for stage in chosen:
        left = min(deadline - time.monotonic() - GRACE_S, stage.limit_s)
        if ended(folder / stage.name):
            said = "ended before"
        elif stage.needs_data and not asked.data:
            said, good = "not begun: it needs --data", False
        elif left <= 0:
            said, good = "not begun: time is up", False
        else:
            done = run(stage, folder / stage.name, asked.data, left)
            said = f"{done['status']} after {done['seconds']:.0f} s (exit code {done['exit_code']})"
            good = good and done["status"] == "ended"
            worked.append(stage.name)
            hand_out(folder, asked.out, worked)  # now: the next one may be cut off
        print(f"{stage.name}: {said}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
