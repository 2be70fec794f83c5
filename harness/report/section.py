"""A part of the page: a heading with what stands below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .html import Table

if TYPE_CHECKING:  # tables alone are shown without what draws
    from .canvas import Chart


@dataclass
class Section:
    """A heading with what stands below it; `folded` tables and charts are closed until asked for."""

    title: str
    lead: str = ""
    alerts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[tuple[str, Table]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    maps: bool = False
    folded_charts: list[tuple[str, list[Chart]]] = field(default_factory=list)

    @property
    def all_charts(self) -> list[Chart]:
        """Those that are seen at once, then the folded ones."""
        return self.charts + [chart for _, charts in self.folded_charts for chart in charts]
