"""A whole book in one stream: memory against tokens seen, for every policy, on the shipped weights.

    python tests/peers/bench_stream.py --book BOOK.txt.gz --out results/reference/stream-rss      (Linux)

The case is that of `pg19:books=1,bytes_per_book=0`, and it goes through `harness.execute`: BOS, then the book
in segments of 512 tokens, each token scored; fp32, one thread, a process for every architecture. Every 8,192
tokens it notes the resident memory and its high-water mark since the last note, both above the process as
it was with model and case loaded, and the CPU time so far.

Caches are allocated whole when they are made, and so are tables of rotary positions (128 B a token here). A
cache with a budget is as large for 10,000 tokens as for 10 million; a full one is as large from the first
token on as its last one needs (`cache` says how large), and what grows there are its masks.
`flat`: the high-water mark in the last quarter of the book is at most 4 MiB above that in the second.
Writes OUT.csv (every note) and OUT.json (totals, machine card).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPECS = (
    *("tova:budget=128", "tova:budget=128,prompt=bulk", "h2o:budget=128", "h2o:budget=128,prompt=stepwise"),
    *("scissorhands:budget=128", "window:budget=128", "streaming:budget=128", "random:budget=128"),
    *("lococo:budget=128", "short:budget=128"),
    *("snapkv:budget=128", "yoco", "yoco:mixer=retention", "transformer"),  # these keep every token
)
EVERY = 8192
#: Bytes that may come on top in the course of a book: a score of every token, and what the heap wastes.
FLAT = 4 * 2**20


def memory(name: str) -> int:
    """Bytes of this process: VmRSS is resident now, VmHWM the most since the mark was reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def child(spec: str, book: str, num_bytes: int) -> None:
    """Score the book; print a JSON line for every note, and one with the totals."""
    import torch

    import suites
    from harness.execute import execute
    from harness.loading import load_model
    from harness.plan import Settings
    from suites import Context
    from suites.text import resolve
    from suites.tokenizer import ByteTokenizer

    torch.set_num_threads(1)
    model = load_model(spec, Settings())
    suite = suites.load(f"pg19:books=1,bytes_per_book={num_bytes}", Context(ByteTokenizer(), resolve(book)))
    (case,) = suite.cases(suite.cells()[0])
    extend, seen, begun, before = model.extend, 0, time.process_time(), memory("VmRSS")

    def noted(tokens_BT, *rest, **kinds):
        nonlocal seen
        logits = extend(tokens_BT, *rest, **kinds)
        after = seen + tokens_BT.shape[1]
        if after // EVERY > seen // EVERY or after == case.num_tokens - 1:
            note = {name: memory(key) - before for name, key in (("rss", "VmRSS"), ("peak", "VmHWM"))}
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            print(json.dumps(note | {"tokens": after, "cpu_s": time.process_time() - begun}), flush=True)
        seen = after
        return logits

    model.extend = noted
    (answer,), readings = execute(model, [case], suite.context.tokenizer, "cpu")
    score = suite.score(case, answer)
    total = {"bits_per_byte": score["bits_per_byte"], "evicted": sum(readings.evicted)}
    print(json.dumps(total | {"cache": readings.live.total, "cpu_s": time.process_time() - begun}))


def measure(spec: str, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Notes and totals of one architecture; what a time limit cut short has totals without numbers."""
    command = [sys.executable, __file__, "--child", spec, "--book", arguments.book]
    process = subprocess.Popen(
        [*command, "--bytes", str(arguments.bytes)], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, _ = process.communicate(timeout=arguments.limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    found = [json.loads(line) for line in out.splitlines(keepends=True) if line.endswith("\n")]
    notes = [entry for entry in found if "tokens" in entry]
    totals = next((entry for entry in found if "cache" in entry), {})
    if process.returncode not in (0, -9) or not notes:
        raise RuntimeError(f"{spec}: exit code {process.returncode}")
    last = notes[-1]["tokens"]
    early = max(note["peak"] for note in notes if last / 4 <= note["tokens"] <= last / 2)
    late = max(note["peak"] for note in notes if note["tokens"] > last * 3 / 4)
    return notes, totals | {"tokens": last, "grown": late - early, "peak": late}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--book", required=True, help="a text file, *.txt or *.txt.gz")
    parser.add_argument("--only", help="specs, separated by spaces", default=" ".join(SPECS))
    parser.add_argument("--bytes", type=int, default=0, help="of the book; 0: all")
    parser.add_argument("--limit-s", type=float, default=2400.0, help="of one architecture")
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.book, arguments.bytes)
        return 0

    rows, summary = [], {}
    print("| architecture | tokens | cache | peak | grown by | flat | bits/byte | CPU s |")
    print("| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    for spec in arguments.only.split():
        notes, totals = measure(spec, arguments)
        rows += [
            {"architecture": spec, "tokens_seen": note["tokens"], "rss_bytes": note["rss"]}
            | {"peak_bytes": note["peak"], "cpu_s": round(note["cpu_s"], 2)}
            for note in notes
        ]
        summary[spec] = totals
        whole = "cache" in totals
        cells = [f"{totals['tokens']:,}", f"{totals['cache'] / 2**20:.1f} MiB" if whole else "–"]
        cells += [f"{totals['peak'] / 2**20:.1f} MiB", f"{totals['grown'] / 2**20:.2f} MiB"]
        cells += ["yes" if totals["grown"] <= FLAT else "NO"]
        cells += [f"{totals['bits_per_byte']:.3f}" if whole else "–", f"{notes[-1]['cpu_s']:.0f}"]
        print(f"| `{spec}` | {' | '.join(cells)} |", flush=True)
    if arguments.out:
        from harness.environment import machine_card

        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": machine_card(threads=1), "book": Path(arguments.book).name, "streams": summary}
        arguments.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        with arguments.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
