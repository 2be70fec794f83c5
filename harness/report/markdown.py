"""The verdict as a Markdown table: for a README, a pull request, a notebook."""

from __future__ import annotations

import re

from .load import Run
from .summaries import summary


def markdown(run: Run) -> str:
    """One table per axis, the same strings and remarks as on the page; ends with a newline."""
    parts = []
    for section in summary(run):
        rows = [section.columns, ["---"] + ["---:"] * (len(section.columns) - 1), *section.rows]
        lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
        notes = [line for note in section.notes for line in ("", _plain(note))]
        parts.append("\n".join([f"*{_cell(section.title)}*", "", *lines, *notes]) + "\n")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """A remark as a line of its own, whatever its characters would mean to Markdown."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
