"""Does the gate do on this machine what the simulation promises? Real gates on the plan "gate".

    python tests/simulations/gate_real.py --out results/reference/gate-real.csv      (some minutes per gate)
    python tests/simulations/gate_real.py --table results/reference/gate-real.csv

    same      head is base: no latency may be called SLOW or FAST (--runs of these, 10)
    loop      every decode step of one policy spins for 15 % of its own time: SLOW there, and nowhere else
    copy      the same policy keeps a copy of its keys and values: MORE bytes
    removed   the same policy is gone from the plan: MISSING

Each gate is `kvmark gate --base HEAD` in a repository of its own, whose working tree differs from the commit
by nothing but that. A line is appended to the CSV when a gate is over: killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POLICY, SPEC = "models/architectures/tova.py", "tova:budget=64"

#: Kind -> (file, what is there, what stands there instead).
INJECTED = {
    "loop": (
        POLICY,
        "    def layer_cache(self, heads, layer, request):\n",
        """    def decode(self, token_B, cache, valid_B=None):
        import time

        start_s = time.process_time()
        logits_BV = super().decode(token_B, cache, valid_B)
        now_s = time.process_time()
        while time.process_time() < now_s + 0.15 * (now_s - start_s):
            pass
        return logits_BV

    def layer_cache(self, heads, layer, request):
""",
    ),
    "copy": (
        POLICY,
        "    def rate(self, meta, row_BPn, pos_BPn, newest_B):\n",
        """    def attend(self, *arguments):
        out = super().attend(*arguments)
        self.as_they_were = [self.tensors[name].clone() for name in ("k", "v")]
        return out

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
""",
    ),
    "removed": ("harness/plans/gate.toml", f', "{SPEC}"', ""),
}
KINDS = ("same", *INJECTED)
VERDICTS = (
    "SLOW",
    "FAST",
    "AMBIGUOUS",
    "MORE",
    "FEWER",
    "WORSE",
    "MISSING",
    "INVALID",
    "INSUFFICIENT",
    "SAME",
)
COLUMNS = (
    *("kind", "run", "exit_code", "as_expected", "latencies", "measured_twice"),
    *(verdict.lower() for verdict in VERDICTS), "calibrated", "load_average", "cpu_s", "wall_s",
)  # fmt: skip


def repository(folder: Path, kind: str) -> Path:
    """Our sources committed, and one thing changed in the working tree."""
    if folder.exists():
        return folder
    new = folder.with_suffix(".partial")
    shutil.rmtree(new, ignore_errors=True)
    for name in ("harness", "models", "suites"):
        shutil.copytree(ROOT / name, new / name, ignore=shutil.ignore_patterns("__pycache__"))
    own = ["git", "-C", str(new), "-c", "user.name=kvmark", "-c", "user.email=kvmark@localhost"]
    for arguments in (["init", "-q"], ["add", "--force", "."], ["commit", "-q", "--message", "base"]):
        subprocess.run([*own, *arguments], check=True)
    if kind in INJECTED:
        file, old, injected = INJECTED[kind]
        text = (new / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"{file} is not as it was: nothing was injected.")
        (new / file).write_text(text.replace(old, injected), encoding="utf-8")
    return new.rename(folder)


def gated(work: Path, kind: str, run: int, replicates: int | None) -> dict[str, Any]:
    """One gate, as a line of the table."""
    source, out = repository(work / f"{kind}-source", kind), work / f"{kind}-{run}"
    command = [sys.executable, "-P", "-m", "harness.cli", "gate", "--base", "HEAD", "--out", str(out)]
    command += ["--json", str(out) + ".json", *(["--replicates", str(replicates)] if replicates else [])]
    load, start = os.getloadavg()[0], (time.monotonic(), _cpu_s())
    environment = os.environ | {"PYTHONPATH": str(source), "KVMARK_CEILINGS": "0"}
    done = subprocess.run(command, env=environment, cwd=work, check=False)
    line = {"wall_s": time.monotonic() - start[0], "cpu_s": _cpu_s() - start[1], "load_average": load}
    if done.returncode not in (0, 1, 4):
        raise SystemExit(f"The gate of kind '{kind}' ended with {done.returncode}.")
    found = json.loads(Path(str(out) + ".json").read_text(encoding="utf-8"))
    latency = [f for f in found["findings"] if f["kind"] == "latency"]
    fewest = min((f["num_base"] for f in latency), default=0)
    return {name: f"{value:.1f}" for name, value in line.items()} | {
        "kind": kind,
        "run": run,
        "exit_code": done.returncode,
        "as_expected": int(as_expected(kind, done.returncode, found["findings"])),
        "latencies": len(latency),
        "measured_twice": sum(f["num_base"] > fewest for f in latency),
        "calibrated": int(found["rules"]["calibrated"]),
        **{v.lower(): sum(f["verdict"] == v for f in found["findings"]) for v in VERDICTS},
    }


def as_expected(kind: str, code: int, findings: list[dict[str, Any]]) -> bool:
    """Whether the gate said what it should have said, and nothing false beside it."""

    def said(verdict: str) -> set[tuple[str, str]]:
        return {(f["architecture"], f["metric"]) for f in findings if f["verdict"] == verdict}

    if kind == "same":
        return code == 0 and not said("SLOW") and not said("FAST")
    if kind == "loop":
        return code == 1 and said("SLOW") == {(SPEC, "decode_step_cpu_s")}
    if kind == "copy":
        return code == 1 and said("MORE") == {(SPEC, "cache_bytes_live")}
    return code == 1 and {architecture for architecture, _ in said("MISSING")} == {SPEC}


def _cpu_s() -> float:
    """CPU time of all that this process has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(path: Path) -> str:
    """The Markdown table of README from the committed lines."""
    out = [
        "| head | gates | as expected | latencies | undecided | CPU time of a gate |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines = read(path)
    for kind in KINDS:
        own = [line for line in lines if line["kind"] == kind]
        if own:
            latencies, undecided = (
                sum(int(line[name]) for line in own) for name in ("latencies", "ambiguous")
            )
            cpu_s = sorted(float(line["cpu_s"]) for line in own)[len(own) // 2]
            good = sum(int(line["as_expected"]) for line in own)
            share = f"{undecided / latencies:.1%}" if latencies else "–"
            out.append(f"| {kind} | {len(own)} | {good} | {latencies} | {share} | {cpu_s:.0f} s |")
    return "\n".join(out) + "\n"


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Gate this checkout against itself, and against injected faults."
    )
    parser.add_argument("--out", type=Path, default=Path("results/reference/gate-real.csv"))
    parser.add_argument("--work", type=Path, default=Path("results/local/gate-real"))
    parser.add_argument("--runs", type=int, help="gates of each kind (10 of 'same', 1 of the others)")
    parser.add_argument("--only", choices=KINDS, help="this kind alone")
    parser.add_argument("--replicates", type=int, help="processes per side (default: the plan's)")
    parser.add_argument("--table", type=Path, help="print the Markdown table of these lines")
    asked = parser.parse_args()
    if asked.table:
        print(table(asked.table), end="")
        return
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for kind in [asked.only] if asked.only else KINDS:
        done = {int(line["run"]) for line in read(asked.out) if line["kind"] == kind}
        for run in range(asked.runs or (10 if kind == "same" else 1)):
            if run not in done:
                line = gated(work, kind, run, asked.replicates)
                append(asked.out, line)
                print(line, flush=True)


def append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
