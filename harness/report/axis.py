"""One direction of a chart, put onto an axis of Matplotlib: its scale, limits, ticks and name.

Matplotlib finds limits and ticks that nobody sets; a logarithmic axis has round numbers of its unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .html import printable


@dataclass
class Axis:
    """Linear, or with ticks at powers of `log` (2, 10) and steps between them."""

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

    def scale(self, axes: Axes, which: str) -> None:
        """Before anything is drawn. `which`: "x" or "y"."""
        if self.log:
            getattr(axes, f"set_{which}scale")("log", base=self.log)

    def finish(self, axes: Axes, which: str) -> None:
        """Once everything is drawn: limits, ticks, labels and the name."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        limits = getattr(axes, f"get_{which}lim")
        if self.low is not None or self.high is not None:
            getattr(axes, f"set_{which}lim")(self.low, self.high)
        ticks = self.ticks
        if self.log and ticks is None:
            ticks = round_numbers(*limits(), self.log)
        if ticks is not None:
            low, high = sorted(limits())
            kept = [n for n, at in enumerate(ticks) if low <= at <= high]
            axis.set_ticks(
                [ticks[n] for n in kept], labels=self.labels and [printable(self.labels[n]) for n in kept]
            )
            axis.set_minor_locator(NullLocator())
        if self.format and not self.labels:
            axis.set_major_formatter(FuncFormatter(lambda value, _: self.format(value)))
        turned = {"labelrotation": self.degrees} if self.degrees else {}
        axes.tick_params(which, labelsize=self.label_size, **turned)
        if self.name:
            axis.set_label_text(printable(self.name), fontsize=self.name_size)


def round_numbers(low: float, high: float, base: int) -> list[float]:
    """Ticks inside [low, high]: powers where there are enough, else finer steps between them."""
    powers = [
        float(base) ** n for n in range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    ]
    steps = (
        [(1.0,), (1.0, 1.5)] if base == 2 else [(1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)]
    )
    for factors in steps:
        found = [power * factor for power in powers for factor in factors if low <= power * factor <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 7)]
    return [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high and tick > 0]
