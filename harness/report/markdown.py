"""The verdict as a Markdown table: for a README, a pull request, a notebook."""

from __future__ import annotations

from .load import Run
from .verdict import summary


def markdown(run: Run) -> str:
    """One table per axis, the same strings as on the page; ends with a newline."""
    parts = []
    for section in summary(run):
        rows = [section.columns, ["---"] + ["---:"] * (len(section.columns) - 1), *section.rows]
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        parts.append("\n".join([f"*{_cell(section.title)}*", "", *lines]) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
