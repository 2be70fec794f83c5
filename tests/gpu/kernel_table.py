"""Each kernel against its floor and against its public rivals: a Parquet file and a Markdown table.

    python tests/gpu/kernel_table.py --out FOLDER [--device cuda] [--dtype bf16] [--rounds 5] [--samples 10]
    python tests/gpu/kernel_table.py --out FOLDER --device cpu --tiny      (interpreter; times mean nothing)

floor       the longer one of work / matrix-product ceiling and bytes / read bandwidth, both measured on this
            machine (harness.ceilings)
time        from event to event on an idle GPU, cold L2: 256 MB are written first, which also hides the
            launch. All contestants of a case in turn, round after round; the median of all samples
worst       largest difference from the definition's output, over its largest number; where the definition
            does not fit into memory, from ours
status      ok; refused: this contestant cannot do the case, in its own words; wrong: it differs by more than
            TOLERANCE, and is not timed

One case's inputs are dropped before the next is made. The definition is timed where its memory allows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from contestants import Case, cases  # noqa: E402

from harness.ceilings import ceilings_of  # noqa: E402
from harness.environment import machine_card  # noqa: E402
from harness.loading import torch_dtype  # noqa: E402
from harness.metrics import format_seconds  # noqa: E402
from harness.roofline import bandwidth_at  # noqa: E402

FLUSH_BYTES = 256 << 20
#: A contestant whose first call takes longer is not timed again.
LONGEST_S = 5.0
#: bf16 outputs of different orders of sums.
TOLERANCE = 3e-2


def floor_s(case: Case, ceilings: dict[str, Any] | None) -> tuple[float | None, str | None]:
    """(seconds, what bounds it), or (None, None) where the machine's ceilings are unknown."""
    if ceilings is None:
        return None, None
    compute = case.flops / ceilings["flops_per_s"]
    read = case.bytes / float(bandwidth_at(ceilings, np.array([case.bytes]))[0])
    return max(compute, read), "compute" if compute > read else "bytes"


def sampler(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """What times one call, in seconds."""
    if device.type == "cpu":

        def on_cpu(call: Callable[[], Any]) -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        return on_cpu
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def on_cuda(call: Callable[[], Any]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        flush.zero_()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize(device)
        return first.elapsed_time(last) / 1000  # ms

    return on_cuda


def measured(
    case: Case, device: torch.device, dtype: torch.dtype, rounds: int, samples: int
) -> Iterator[dict[str, Any]]:
    """One line per contestant."""
    torch.manual_seed(0)
    contestants, sample = case.make(device, dtype), sampler(device)
    lines = {who: {"who": who, "status": "ok", "message": None} for who in contestants}
    outputs = {}
    for who, call in contestants.items():
        try:
            outputs[who] = call().float()
            if (first_s := sample(call)) > LONGEST_S:
                lines[who] |= {"status": "refused", "message": f"{first_s:.0f} s: too long to repeat"}
        except Exception as error:  # whatever a rival raises is its answer
            said = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            lines[who] |= {"status": "refused", "message": said.replace("|", "/")}
    truth = outputs.get("torch", outputs.get("ours"))
    for who, found in outputs.items():
        worst = ((found - truth).abs().max() / truth.abs().max()).item()
        lines[who]["worst"] = worst
        if not worst <= TOLERANCE:
            lines[who] |= {"status": "wrong", "message": f"differs by {worst:.1e}"}
    able = [who for who, line in lines.items() if line["status"] == "ok"]
    outputs.clear()
    times: dict[str, list[float]] = {who: [] for who in able}
    for _ in range(rounds):
        for who in able:
            times[who] += [sample(contestants[who]) for _ in range(samples)]
    for who, line in lines.items():
        if who in times:
            line |= {"time_s": statistics.median(times[who]), "samples": len(times[who])}
        yield line


def table(found: pd.DataFrame) -> str:
    lines = [
        "| operation | size | who | time | floor | of the floor's rate | worst |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for one in found.itertuples():
        size = " ".join(f"{name}={value:,}" for name, value in json.loads(one.size).items())
        if one.status != "ok":
            lines.append(f"| {one.op} | {size} | {one.who} | {one.message} | | | |")
            continue
        floor = format_seconds(one.floor_s)
        share = "" if pd.isna(one.floor_s) else f"{one.floor_s / one.time_s:.0%}"
        lines.append(
            f"| {one.op} | {size} | {one.who} | {format_seconds(one.time_s)} | {floor} | {share} "
            f"| {one.worst:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10, help="per contestant and round")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    device, dtype = torch.device(asked.device), torch_dtype(asked.dtype)
    card = machine_card(asked.device)
    ceilings, why = ceilings_of(card, asked.dtype)
    lines = []
    for case in cases(asked.tiny):
        floor, bound = floor_s(case, ceilings)
        fixed = {
            "op": case.op,
            "size": json.dumps(case.size),
            "dtype": asked.dtype,
            "floor_s": floor,
            "bound": bound,
        }
        lines += [
            fixed | {"time_s": None, "samples": 0, "worst": None} | line
            for line in measured(case, device, dtype, asked.rounds, asked.samples)
        ]
        if device.type == "cuda":
            torch.cuda.empty_cache()
    found = pd.DataFrame(lines).astype({"floor_s": float, "time_s": float, "worst": float})
    asked.out.mkdir(parents=True, exist_ok=True)
    found.to_parquet(asked.out / "kernels.parquet")
    told = {"machine": card | {"ceilings": ceilings, "ceilings_note": why}}
    (asked.out / "kernels.json").write_text(json.dumps(told, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
