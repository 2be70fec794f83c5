"""One direction of a chart: its scale, limits, ticks and name.

What draws it (axes.py) finds limits and ticks that nobody sets; a logarithmic axis has round numbers of its
unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def tick(text: str) -> str:
    """A tick's label without the zeros of three significant digits: "2.00 ms" -> "2 ms"."""
    number, _, unit = text.partition(" ")
    number = number.rstrip("0").rstrip(".") if "." in number and unit else number
    return f"{number} {unit}".strip()


def millions(value: float) -> str:
    """Tokens of a training on an axis: 2.5e6 -> "2.5 M"."""
    return f"{value / 1e6:g} M"


def percent(value: float) -> str:
    """A share on an axis: 0.25 -> "25 %"."""
    return f"{100 * value:.0f} %"


@dataclass(frozen=True)
class Ticks:
    """A metric's own format, as ticks have it."""

    format: Callable[[float], str]

    def __call__(self, value: float) -> str:
        return tick(self.format(value))


@dataclass
class Axis:
    """Linear, or with ticks at powers of `log` (2, 10) and steps between them.

    `format` is a function of a module, or a `Ticks` of one: another process is told of it by name.
    """

    name: str = ""
    log: int = 0
    low: float | None = None
    high: float | None = None
    ticks: list[float] | None = None
    labels: list[str] | None = None
    format: Callable[[float], str] | None = None
    name_size: float = 10.0
    label_size: float = 10.0
    degrees: float = 0.0

    def set(self, low: float | None = None, high: float | None = None) -> None:
        """Fix one end or both."""
        self.low, self.high = (self.low if low is None else low), (self.high if high is None else high)
