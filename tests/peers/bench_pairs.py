"""How two implementations are compared on a machine that others use, too.

Interleaved in one process (A, B, A, B, …), one thread, process CPU time, which does not count while we are
off the processor; a row is the ratio of medians. Neighbours still cost cache and memory bandwidth: the
quartiles of a row and the share of the machine that others took tell how much.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.environment import machine_card, package_version

Side = Callable[[], object]


@dataclass
class Row:
    """One comparison. `ratio` is what the target speaks of; times are medians in ms of CPU time."""

    section: str
    what: str
    tokens: int | None
    pairs: int
    ours_ms: float
    other_ms: float | None
    ratio: float | None
    target: str  # ">= 1.25", "<= 0.9 ms", or "" where nothing is demanded
    note: str = ""
    samples_ms: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        if not self.target:
            return None
        sign, bound, *unit = self.target.split()
        value = self.ours_ms if unit else self.ratio
        return value >= float(bound) if sign == ">=" else value <= float(bound)


def cpu_ms(side: Side, repeats: int = 1) -> float:
    """CPU milliseconds of one call, mean over `repeats` calls."""
    start = time.process_time_ns()
    for _ in range(repeats):
        side()
    return (time.process_time_ns() - start) / 1e6 / repeats


def interleaved(
    sides: dict[str, Side], pairs: int, warmups: int = 2, repeats: int = 1
) -> dict[str, list[float]]:
    """`pairs` samples of every side in turn, in CPU ms."""
    for _ in range(warmups):
        for side in sides.values():
            side()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        for _ in range(pairs):
            for name, side in sides.items():
                samples[name].append(cpu_ms(side, repeats))
    finally:
        gc.enable()
    return samples


def compare(
    section: str, what: str, tokens: int, samples: dict[str, list[float]], ours: str, other: str,
    target: str = "", note: str = "", over_ours: bool = True,
) -> Row:  # fmt: skip
    """A row of two sides: other / ours where faster is more, else (`over_ours=False`) ours / other."""
    a, b = statistics.median(samples[ours]), statistics.median(samples[other])
    pair = {"ours": samples[ours], "other": samples[other]}
    ratio = b / a if over_ours else a / b
    return Row(section, what, tokens, len(samples[ours]), a, b, ratio, target, note, pair)


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = ["| what | tokens | ours, ms | other, ms | ratio | target | met | note |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    for row in rows:
        cells = [
            row.what,
            "" if row.tokens is None else f"{row.tokens:,}",
            _spread(row.samples_ms.get("ours"), row.ours_ms),
            "" if row.other_ms is None else _spread(row.samples_ms.get("other"), row.other_ms),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.target.replace(">=", "≥").replace("<=", "≤"),
            {True: "yes", False: "NO", None: ""}[row.met],
            row.note,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(samples: list[float] | None, median: float) -> str:
    if not samples or len(samples) < 4:
        return f"{median:.4g}"
    low, _, high = statistics.quantiles(samples, n=4)
    return f"{median:.4g} ({low:.4g}–{high:.4g})"


class Foreign:
    """CPU time that others took on this machine since the start, as a share of all core-seconds."""

    def __init__(self) -> None:
        self.start = self._read()

    def share(self) -> float:
        busy, total, own = (now - then for now, then in zip(self._read(), self.start, strict=True))
        return max(busy - own, 0.0) / total

    @staticmethod
    def _read() -> tuple[float, float, float]:
        ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / 100, sum(ticks) / 100, time.process_time()


def document(rows: list[Row], foreign: Foreign, **facts: object) -> dict:
    """Everything as JSON-able data: rows with all samples, and where they were measured."""
    card = machine_card(threads=1)
    card["packages"]["transformers"] = package_version("transformers")
    listed = [asdict(row) | {"met": row.met} for row in rows]
    return {"machine": card, "foreign_cpu_share": foreign.share(), **facts, "rows": listed}
