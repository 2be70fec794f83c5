"""Peak memory of a prompt under policies that score by attention: it grows with N, not with N x N.

    python tests/peers/bench_memory.py --out results/reference/peak-rss      (about 5 minutes; Linux)

A prompt of 4,096, 8,192 and 16,384 tokens in one call, fp32, one thread, shape `tiny` (4 layers, d = 128,
4 query and 2 KV heads); one N x N score tensor of one layer would be 268 MB, 1.07 GB and 4.3 GB. Every number
is a process of its own: models and libraries are loaded, a prompt of 64 warms them up, the kernel's
high-water mark is reset, and what the mark then rises above the resident memory is the peak: cache,
activations and scores, weights left out. Writes OUT.json (every sample, machine card) and OUT.csv (medians).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SPECS = (
    "transformer",
    "tova:budget=256",
    "tova:budget=256,prompt=bulk",
    "h2o:budget=256",
    "h2o:budget=256,prompt=stepwise",
    "snapkv:budget=256",
    "scissorhands:budget=256",
    "scissorhands:budget=256,prompt=bulk",
    "lococo:budget=256",
)
LENGTHS = (4096, 8192, 16384)
#: Four times the prompt may take this many times the memory: 4 is linear, 16 quadratic. One doubling says
#: less, because the allocator keeps holes (left at its defaults, since that is what a user pays).
LINEAR = 5.0


def high_water(name: str) -> int:
    """Bytes of this process: VmRSS is resident now, VmHWM the most since the mark was reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def child(spec: str, num_tokens: int) -> None:
    """Print the peak of one prompt in bytes."""
    import torch

    import models
    from models.shapes import SHAPES

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = models.build(spec, SHAPES["tiny"]).eval().requires_grad_(False)
    tokens = torch.randint(0, 256, (1, num_tokens), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for n in (64, num_tokens):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = high_water("VmRSS")
            cache = model.new_cache(1, num_tokens, prompts=[n])
            model.extend(tokens[:, :n], None, cache)
            peak = high_water("VmHWM") - before
            del cache
    print(peak)


def measure(spec: str, num_tokens: int) -> int:
    """Peak of one prompt in a fresh process, in bytes. Raises RuntimeError where the process fails."""
    command = [sys.executable, __file__, "--child", spec, str(num_tokens)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{spec} at {num_tokens}: {done.stderr[-800:]}")
    return int(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", help="specs, separated by spaces", default=" ".join(SPECS))
    parser.add_argument("--repeats", type=int, default=3, help="processes per number")
    parser.add_argument("--out", type=Path, help="where to write, without suffix")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], int(arguments.child[1]))
        return 0

    samples: dict[str, dict[int, list[int]]] = {}
    print("| policy | " + " | ".join(f"{n:,}" for n in LENGTHS) + " | growth per doubling | linear |")
    print("| --- |" + " ---: |" * (len(LENGTHS) + 1) + " --- |")
    rows, failed = [], False
    for spec in arguments.only.split():
        samples[spec] = {n: [measure(spec, n) for _ in range(arguments.repeats)] for n in LENGTHS}
        peaks = [statistics.median(samples[spec][n]) for n in LENGTHS]
        growth = [b / a for a, b in itertools.pairwise(peaks)]
        rows += [
            {"architecture": spec, "prompt_tokens": n, "peak_bytes": int(peak), "growth": ratio}
            for n, peak, ratio in zip(LENGTHS, peaks, [None, *growth], strict=True)
        ]
        linear = peaks[-1] / peaks[0] <= LINEAR
        failed |= not linear
        cells = [f"{peak / 2**20:.1f} MiB" for peak in peaks]
        cells += [", ".join(f"{g:.2f}" for g in growth), "yes" if linear else "NO"]
        print(f"| `{spec}` | {' | '.join(cells)} |", flush=True)
    if arguments.out:
        from harness.environment import machine_card

        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": machine_card(threads=1), "shape": "tiny", "dtype": "fp32", "peak_bytes": samples}
        text = json.dumps(data, indent=1) + "\n"
        arguments.out.with_suffix(".json").write_text(text, encoding="utf-8")
        with arguments.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
