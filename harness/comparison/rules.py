"""What a comparison calls a difference: thresholds, floors, the noise of this machine.

A latency is SLOW only if all of it holds:

    p < alpha        exact permutation test over process medians, after Holm over the whole comparison
    effect > limit   the larger of `threshold` and the noise that `kvmark calibrate` found at this point
    seconds > floor  a step that takes 3 µs more is nobody's regression, whatever share that is

Quality has a threshold too: a new kernel moves every score in its last digits, all one way perhaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .calibration import Calibration

#: Latencies that are judged, and the seconds below which a difference is none.
FLOORS_S = {"prefill_s": 50e-6, "decode_step_s": 5e-6}
#: Judged to the byte: formulas and what lies in the cache, the same on every machine.
EXACT_BYTES = ("cache_bytes_live", "cache_bytes_predicted", "weights_bytes", "compressor_bytes")
#: Judged within `allocator_threshold`, on a CUDA device. A CPU's resident memory is too noisy for that.
ALLOCATOR_BYTES = tuple(
    f"peak_{phase}{reserved}_bytes"
    for phase in ("prefill", "decode", "continuation")
    for reserved in ("", "_reserved")
)


@dataclass(frozen=True)
class Rules:
    """How to judge. Shares, not per cent. Raises UsageError for what is no share or no kind.

    `looks` is how often the same data are tested: a gate that measures the undecided again looks twice, and
    each look then spends half of `alpha`. `only` leaves other kinds of finding out ("bytes", "quality", …).
    `allow_different` names parts of the fingerprint that may differ; `anyway` allows all.
    """

    alpha: float = 0.05
    looks: int = 1
    threshold: float = 0.05
    allocator_threshold: float = 0.01
    quality_threshold: float = 0.01  # shares: absolute; everything else: of base's value
    calibration: Calibration | None = None
    only: tuple[str, ...] = ()
    allow_different: tuple[str, ...] = ()
    anyway: bool = False
    floors_s: dict[str, float] = field(default_factory=lambda: dict(FLOORS_S))

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha must be between 0 and 1, not {self.alpha}.")
        if self.looks < 1:
            raise UsageError(f"looks must be at least 1, not {self.looks}.")
        for name in ("threshold", "allocator_threshold", "quality_threshold"):
            if not 0 <= getattr(self, name) < 10:
                raise UsageError(f"{name} is a share (0.05 is 5 %), not {getattr(self, name)}.")
        for kind in self.only:
            if kind not in (kinds := ("bytes", "allocator", "latency", "quality")):
                raise UsageError(f"Unknown kind '{kind}'; known: {', '.join(kinds)}.")

    @property
    def alpha_per_look(self) -> float:
        return self.alpha / self.looks

    def limit(self, point: tuple[str, str, str], metric: str) -> float:
        """What the relative effect on a latency has to exceed at this point."""
        noise = self.calibration.noise(point, metric) if self.calibration else 0.0
        return max(self.threshold, noise)

    def judges(self, kind: str) -> bool:
        return not self.only or kind in self.only


def rules_of(calibration: Path | None = None, **given: Any) -> Rules:
    """Rules with a calibration read from its file. Raises UsageError or StoreError."""
    return Rules(calibration=calibration and Calibration.read(calibration), **given)
