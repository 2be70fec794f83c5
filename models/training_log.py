"""What a training run says about itself: running means, log entries, and a summary for the card.

A step leaves its sums on the device, where they wait until an entry is due: a transfer per step
would make the accelerator wait for the host. Means are ratios of decayed sums, so a step with many
answers weighs more than one with few, and the first entries are not pulled towards zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogEntry:
    """Training so far. Losses are running means over about 50 steps; None where nothing was counted.

    `bits_per_byte` counts every weighted byte that is no answer, so the fixed words around needles
    too: it is no held-out figure of prose. `digit_accuracy` is of needle answers, `dense_accuracy` of
    dense recall. Since the previous entry: `tokens_per_cpu_s` counts CPU seconds of all threads,
    `tokens_per_s` and `mfu` (`training_speed.py`) seconds of wall time, of which `eta_s` are left at that
    speed. `cpu_s` and `wall_s` add up over resumed runs. `more` is what else the training observes.
    """

    step: int
    tokens: int
    loss: float
    bits_per_byte: float | None
    digit_accuracy: float | None
    digit_accuracy_by_length: dict[int, float]
    dense_accuracy: float | None
    lr_share: float
    tokens_per_cpu_s: float | None
    cpu_s: float
    wall_s: float
    # Entries of older checkpoints lack these.
    tokens_per_s: float | None = None
    eta_s: float | None = None
    mfu: float | None = None
    more: dict[str, float] = field(default_factory=dict)


@dataclass
class Meters:
    """Running means as ratios of decayed sums; steps wait on the device until somebody looks."""

    #: name -> [decayed numerator, decayed count]
    sums: dict[str, list[float]] = field(default_factory=dict)
    pending: list[tuple[int, Tensor]] = field(default_factory=list)

    DECAY = 0.98

    def drain(self) -> None:
        """Fetch the waiting steps: one transfer for all of them. Raises FloatingPointError on NaN or inf."""
        if not self.pending:
            return
        rows = torch.stack([row for _, row in self.pending]).tolist()
        for (length, _), row in zip(self.pending, rows, strict=True):
            loss, nats, num_bytes, hits, answers, dense_hits, dense_answers = row
            if not math.isfinite(loss):
                raise FloatingPointError(f"the training loss became {loss}; a lower learning rate may help.")
            self._add("loss", loss, 1)
            self._add("nats", nats, num_bytes)
            self._add("digits", hits, answers)
            self._add(f"digits@{length}", hits, answers)
            self._add("dense", dense_hits, dense_answers)
        self.pending.clear()

    def mean(self, name: str) -> float | None:
        """Decayed mean, None before the first count."""
        total, count = self.sums.get(name, (0.0, 0.0))
        return total / count if count else None

    def _add(self, name: str, value: float, count: float) -> None:
        if count:
            total, counted = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = [self.DECAY * total + value, self.DECAY * counted + count]


def curve(log: list[LogEntry]) -> dict[str, list[Any]]:
    """A log as columns; digit accuracy by length becomes `digits_256`, `digits_512`, ...; then `more`."""
    by_length = "digit_accuracy_by_length"
    lengths = sorted({length for entry in log for length in entry.digit_accuracy_by_length})
    names = [field.name for field in fields(LogEntry) if field.name not in (by_length, "more")]
    columns = {name: [getattr(entry, name) for entry in log] for name in names}
    digits = {f"digits_{n}": [entry.digit_accuracy_by_length.get(n) for entry in log] for n in lengths}
    observed = dict.fromkeys(name for entry in log for name in entry.more)
    more = {name: [entry.more.get(name) for entry in log] for name in observed}
    return columns | digits | more


def summarise(log: list[LogEntry], points: int = 20) -> dict[str, Any]:
    """The `losses` of a card: the last entry's figures and a curve of at most `points` entries.

    Raises ValueError for an empty log.
    """
    if not log:
        raise ValueError("an empty training log has no summary.")
    names = ("step", "tokens", "loss", "bits_per_byte", "digit_accuracy", "dense_accuracy")
    stride = max(1, math.ceil(len(log) / points))
    # Counted from the end, so that the last entry is always in.
    picked = log[::-1][::stride][::-1]
    return {
        "final": {name: value for name, value in asdict(log[-1]).items() if name in names},
        "curve": [{name: getattr(entry, name) for name in names} | entry.more for entry in picked],
    }
