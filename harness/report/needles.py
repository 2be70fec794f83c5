"""Hidden things that were asked for: maps by length and depth."""

from __future__ import annotations

from .groups import Group, needle_judge, needle_suites
from .heatmap import suite_heatmaps
from .remarks import weights_told
from .scored import SEVERAL, suites_with
from .section import Section


def needle_sections(group: Group, prefix: str) -> list[Section]:
    """One part per needle suite, or one line that there was none."""
    suites = needle_suites(group)
    if not suites and suites_with(group.ok, SEVERAL):
        return []  # several needles at once have a part of their own
    if not suites:
        return [Section("Needles by length and depth", "No needle suite was scored in this run.")]
    found = []
    for number, suite in enumerate(suites):
        title = "Needles by length and depth" + (f": {suite}" if len(suites) > 1 else "")
        lead = (
            f"Accuracy, {needle_judge(suite)[1]}, in per cent; depth 0 % is the beginning of the text. A "
            "length in brackets was not exercised: nothing had to be evicted."
        )
        charts = suite_heatmaps(f"{prefix}-{number}", group, suite)
        found.append(Section(title, lead, charts=charts, notes=weights_told(group), maps=True))
    return found
