"""A figure: panels above each other over one x axis, what their lines are called, and small print."""

from __future__ import annotations

from dataclasses import dataclass, field

from .plot import Panel, Pen

#: Points of a legend's handles.
HANDLE = 21.0


@dataclass(frozen=True)
class Entry:
    """A line of a legend: a pen, or a filled box of a colour."""

    name: str
    pen: Pen | None = None
    color: str = ""


@dataclass
class Figure:
    """`shares` are the heights of the panels as parts; sizes in inches; at most so many `columns`."""

    width_in: float
    height_in: float
    panels: list[Panel] = field(default_factory=lambda: [Panel()])
    shares: list[float] = field(default_factory=lambda: [1.0])
    entries: list[Entry] = field(default_factory=list)
    columns: int = 3
    handle: float = HANDLE
    remark: str = ""
    footnote: str = ""
