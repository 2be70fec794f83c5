"""The parts of the page that belong to one run and one axis, in the page's order.

Each subject has a file of its own; answers come first, then costs. Needles, costs and quality against bytes
say in one line that they were not measured; parts of suites that were not asked for are left out.
"""

from __future__ import annotations

from .all_numbers import numbers_section
from .books import book_section
from .cost import cost_section
from .groups import Group, context_name
from .held import held_sections
from .lm_eval import lm_eval_sections
from .needles import needle_sections
from .quality import quality_section
from .remarks import alerts, weight_notes
from .scrolls import scrolls_sections
from .section import Section
from .tasks import task_sections
from .verdict import by_context, headline


def sections(group: Group, prefix: str) -> list[Section]:
    """Everything that the page shows of one group, in order; `prefix` keeps file names apart."""
    return [
        _verdict(group),
        *needle_sections(group, f"{prefix}needle"),
        *held_sections(group, f"{prefix}held"),
        *task_sections(group),
        *book_section(group, f"{prefix}books"),
        *scrolls_sections(group),
        *lm_eval_sections(group),
        cost_section(group, f"{prefix}cost"),
        quality_section(group, f"{prefix}quality"),
        numbers_section(group),
    ]


def _verdict(group: Group) -> Section:
    table = headline(group)
    others = by_context(group)
    folded = [(f"At {context_name(c)}", t) for c, t in others if t != table]
    return Section(
        "Verdict",
        "Small print compares with the transformer. Bold marks the best value and all that cannot be told "
        "from it; the reading guide says how.",
        alerts=alerts(group),
        tables=[table] if len(table.columns) > 2 else [],
        folded=folded,
        notes=weight_notes(group) or _random_note(group),
    )


def _random_note(group: Group) -> list[str]:
    return [] if group.axis == "quality" else ["Random weights: costs only, the answers mean nothing."]
