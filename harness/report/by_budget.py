"""“Quality by budget”: every score of a run with many budgets, a chart per suite, length and kind of cell."""

from __future__ import annotations

from collections.abc import Iterable

from .budget_lines import over_budgets, over_bytes
from .budgets import budget_of, in_bytes, is_crowded
from .canvas import Chart
from .groups import Group, context_name
from .language import language, language_sources
from .measured import Measure
from .quality import bytes_per_request
from .remarks import beyond_name, weights_told
from .section import Section

LEAD = (
    "Each line is one policy at its budgets in tokens, each horizontal line an architecture that has none. "
    "Whiskers are 95 % intervals (points of one budget stand side by side); a hollow point is a budget that "
    "the policy never filled, so the score is that of the full cache. LoCoCo's budget is its memory: the "
    "block that it has not compressed yet comes on top, and so the same is drawn against bytes further below."
)
BYTES_LEAD = (
    "The same scores over what one request holds: to the left it holds less. A line joins the budgets of one "
    "policy, those stated in bytes among them; a hollow point is a budget that the policy never filled, so "
    "the score is that of the full cache. At the largest length of each suite."
)


def budget_section(group: Group, prefix: str, scores: list[Measure]) -> list[Section]:
    """One part, or nothing where no policy has several budgets."""
    if not is_crowded(group):
        return []
    found, notes = Section("Quality by budget", LEAD), []
    for number, measure in enumerate(scores):
        for place, (context, kind) in enumerate(measure.places):
            frame = measure.at(context, kind)
            slug, title = f"{prefix}-{number}-{place}", _title(group, measure, context, kind)
            if any(budget_of(group, s) is not None and in_bytes(s) is None for s in frame["architecture"]):
                found.charts.append(over_budgets(slug, title, measure.metric, frame, group))
            notes += _missing(group, frame["architecture"], title)
    found.notes = list(dict.fromkeys(notes + _not_finite(group))) + weights_told(group)
    return [found] if found.charts else []


def bytes_section(group: Group, prefix: str, scores: list[Measure]) -> Section:
    """Quality against cache bytes where policies have several budgets."""
    charts: list[Chart] = []
    notes: list[str] = []
    for number, measure in enumerate(scores):
        held = bytes_per_request(group, measure.suite)
        context = max(context for context, _ in measure.places)
        for place, kind in enumerate(kind for other, kind in measure.places if other == context):
            frame = measure.at(context, kind)
            known = {a: held[a, context] for a in frame["architecture"] if (a, context) in held}
            slug, title = f"{prefix}-{number}-{place}", _title(group, measure, context, kind)
            if known:
                charts.append(over_bytes(slug, title, measure.metric, frame, group, known))
                notes += _missing(group, known, title)
    lead = BYTES_LEAD if charts else "No quality score with known cache bytes in this run."
    return Section("Quality against cache bytes", lead, charts=charts, notes=notes + weights_told(group))


def _title(group: Group, measure: Measure, context: float, kind: str) -> str:
    parts = [measure.title, kind, context_name(context) + beyond_name(group, context)]
    return ", ".join(filter(None, parts)).replace(", accuracy", "")


def _missing(group: Group, there: Iterable[str], title: str) -> list[str]:
    """Architectures and budgets without a point, said."""
    lacking = [spec for spec in group.architectures if spec not in set(there)]
    why = "failed, not asked, not finite, or scored on fewer cases than others"
    return [f"No point in “{title}”: {', '.join(lacking)} ({why})."] * bool(lacking)


def _not_finite(group: Group) -> list[str]:
    found = []
    for source in language_sources(group):
        frame = language(group, source)
        found += [
            f"Not drawn on {source.name}: {line.architecture}, {line.spoilt}."
            for line in frame[frame["spoilt"] != ""].itertuples()
        ]
    return found
