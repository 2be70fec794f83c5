"""Measures one machine's ceilings: `python -m harness.ceilings_worker '{"device": "cpu", …}'`.

    in     JSON: device, dtype, threads, parent_pid, sides, working_sets, seconds
    out    the ceilings (see that module) as one line of JSON, the last of stdout
    exit   0; 12 this environment has no such device, said in one sentence on stderr

    sample    as many calls in a row as fill WINDOW_S, so that the clock's own cost is lost in it
    round     every size in turn, for each the median of its samples after one that counts for nothing
    number    work of a call / best median of all rounds: a neighbour who is busy for a while does not count

A product is `models.layers.linear`, the one that all models here make, and, where that takes a detour (oneDNN
for fp32), torch's own as well: a ceiling that the other library beats would be none. Its operands are random,
as a GPU's clock depends on the bits that flip. A read sums fp32 whatever the run's dtype is: bytes are bytes,
and adding bf16 on a CPU without such instructions would measure the conversion.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from models import layers

from . import clock
from .loading import NoDevice, check_device, torch_dtype
from .machine_limits import available_memory_bytes, die_with_parent
from .worker import EXIT_ENVIRONMENT

WINDOW_S = 0.005
ROUNDS = 3
LEAST_SAMPLES = 2
#: A product that is expected to take longer than this is not tried: bf16 on a CPU that has no such product.
LONGEST_PRODUCT_S = 0.1
#: Of the memory that is free, the most that a working set takes.
SHARE_OF_MEMORY = 0.25
#: From this share of the machine's core-seconds on, work of others is told with the ceilings.
BUSY_SHARE = 0.1

Work = Callable[[], Any]
Key = tuple[int, str]  # size, how


def measure(
    device: str,
    dtype: str,
    threads: int,
    sides: Sequence[int],
    working_sets: Sequence[int],
    seconds: float,
) -> dict[str, Any]:
    """The ceilings of `device`, with `seconds` for each size. Raises NoDevice; see `ceilings.ceilings_of`."""
    check_device(device)
    torch.set_num_threads(threads)
    timer = _Timer(device, threads)
    ticks, cpu_s = clock.cpu_ticks(), time.process_time()
    with torch.inference_mode():
        products = timer.best_median(_products(timer, device, torch_dtype(dtype), sides), seconds)
        reads = timer.best_median(_reads(device, working_sets), seconds)
    busy = clock.foreign_share(ticks, clock.cpu_ticks(), time.process_time() - cpu_s)
    speed, (side, way) = max((2 * key[0] ** 3 / taken_s, key) for key, taken_s in products.items())
    threads_told = f"{threads} thread{'s' * (threads > 1)}, " if device == "cpu" else ""
    return {
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "flops_per_s": speed,
        "read_bytes_per_s": {str(size): size / taken_s for (size, _), taken_s in reads.items()},
        "measured": f"{threads_told}best of {ROUNDS} medians of {timer.source}; "
        f"product {side} x {side} x {side} ({way}), sum over fp32",
        "note": None if busy is None or busy < BUSY_SHARE else _busy(busy),
    }


def _busy(share: float) -> str:
    return f"other programs used {share:.0%} of the machine meanwhile, so it may do more"


class _Timer:
    """Seconds of one call: CPU time of a single CPU thread, else device time."""

    def __init__(self, device: str, threads: int) -> None:
        self.by_cpu_time = device == "cpu" and threads == 1
        self.source = "CPU time" if self.by_cpu_time else "wall time" if device == "cpu" else "device time"
        self._watch = clock.Stopwatch(device)

    def window(self, work: Work, calls: int = 1) -> float:
        with self._watch.window() as window:
            for _ in range(calls):
                work()
        found = window.cpu_s if self.by_cpu_time else window.device_s
        return max(found or 0.0, 1e-9) / calls

    def best_median(self, works: dict[Key, Work], seconds: float) -> dict[Key, float]:
        """Seconds of one call of each, after `seconds` of calls: the best of all rounds."""
        calls = {key: max(1, round(WINDOW_S / self.window(work))) for key, work in works.items()}
        medians: dict[Key, list[float]] = {key: [] for key in works}
        for _ in range(ROUNDS):
            for key, work in works.items():
                self.window(work, calls[key])  # what ran before has filled the caches with its own
                left_s, samples = seconds / ROUNDS, []
                while left_s > 0 or len(samples) < LEAST_SAMPLES:
                    samples.append(self.window(work, calls[key]))
                    left_s -= samples[-1] * calls[key]
                medians[key].append(statistics.median(samples))
        return {key: min(found) for key, found in medians.items()}


def _products(timer: _Timer, device: str, dtype: torch.dtype, sides: Sequence[int]) -> dict[Key, Work]:
    """(side, how) -> a product; all but the first only where it is not hopelessly slow."""
    generator = torch.Generator().manual_seed(0)
    found: dict[Key, Work] = {}
    expected_s = 0.0
    for side in sorted(sides):
        if expected_s * side**3 > LONGEST_PRODUCT_S:
            break
        x, w = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
        product = found[side, "as models multiply"] = partial(layers.linear, x, w)
        if layers.mkl_is_slow_for(x):
            found[side, "torch's own"] = partial(F.linear, x, w)
        timer.window(product)  # the first call of a size sets things up
        expected_s = timer.window(product) / side**3
    return found


def _reads(device: str, working_sets: Sequence[int]) -> dict[Key, Work]:
    """(bytes, how) -> a sum over every set that the free memory holds easily; the smallest always."""
    if device == "cpu":
        free_bytes = available_memory_bytes()
    else:
        free_bytes = torch.cuda.mem_get_info(device)[0]
    most = 0 if free_bytes is None else SHARE_OF_MEMORY * free_bytes
    sizes = [size for size in sorted(working_sets) if size <= most] or [min(working_sets)]
    block = torch.randn(sizes[0] // 4, generator=torch.Generator().manual_seed(1)).to(device)
    whole = block.repeat(-(-sizes[-1] // sizes[0]))
    return {(size, "sum over fp32"): whole[: size // 4].sum for size in sizes}


def main(argument: str) -> int:
    asked = json.loads(argument)
    die_with_parent(asked.pop("parent_pid"))
    # Whatever a library prints must not get between: it goes to stderr.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = measure(**asked)
    except NoDevice as problem:
        print(problem, file=sys.stderr)
        return EXIT_ENVIRONMENT
    print(json.dumps(found), file=answer, flush=True)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    # Skip the interpreter's teardown: torch's takes a second.
    sys.stderr.flush()
    os._exit(code)
