"""The parts of the page that belong to one run and one axis, in the page's order.

Each subject has a file of its own; answers come first, then costs. Needles, costs and quality against bytes
say in one line that they were not measured; parts of suites that were not asked for are left out. Of a run
with many budgets (`budgets.py`) each part shows one budget of each policy and folds tables of the others.
"""

from __future__ import annotations

from collections.abc import Callable

from .all_numbers import numbers_section
from .books import book_section, book_tables
from .budgets import absent_alerts, is_crowded, near, rest, said, slices
from .by_budget import budget_section, bytes_section
from .cost import cost_section
from .groups import Group, context_name
from .held import held_folded, held_sections
from .html import Table
from .kept import equal_bytes_section, kept_section
from .ledger import ledger_section
from .lm_eval import lm_eval_sections
from .measured import measures
from .needles import needle_sections
from .papers import paper_section
from .quality import quality_section
from .remarks import alerts, weight_notes
from .roofline import roofline_section
from .scrolls import scrolls_sections
from .section import Section
from .tasks import task_sections
from .verdict import by_context, headline


def sections(group: Group, prefix: str) -> list[Section]:
    """Everything that the page shows of one group, in order; `prefix` keeps file names apart."""
    shown, others = near(group), rest(group)
    crowded = is_crowded(group)
    scores = measures(group) if crowded else []
    return [
        _verdict(group, shown),
        *paper_section(group),
        *needle_sections(shown, f"{prefix}needle", others),
        *budget_section(group, f"{prefix}budget", scores),
        *kept_section(group),
        *equal_bytes_section(group),
        *_with(held_sections(shown, f"{prefix}held", crowded), others, held_folded),
        *_with(task_sections(shown), others, lambda part: _tables(task_sections(part))),
        *_with(book_section(shown, f"{prefix}books"), others, book_tables),
        *_with(scrolls_sections(shown), others, lambda part: _tables(scrolls_sections(part))),
        *_with(lm_eval_sections(shown), others, lambda part: _tables(lm_eval_sections(part))),
        cost_section(shown, f"{prefix}cost"),
        *roofline_section(shown, f"{prefix}roofline"),
        *ledger_section(shown, f"{prefix}ledger"),
        bytes_section(group, f"{prefix}quality", scores)
        if crowded
        else quality_section(group, f"{prefix}quality"),
        numbers_section(shown, others),
    ]


def _verdict(group: Group, shown: Group) -> Section:
    table = headline(shown)
    folded = [(f"At {context_name(c)}", t) for c, t in by_context(shown) if t != table]
    folded += [(name, headline(part)) for name, part in slices(group)]
    lead = (
        "Small print compares with the transformer. Bold marks the best value and all that cannot be told "
        "from it; the reading guide says how."
    )
    return Section(
        "Verdict",
        " ".join(filter(None, [lead, said(group)])),
        alerts=alerts(group) + absent_alerts(group),
        tables=[table] if len(table.columns) > 2 else [],
        folded=folded,
        notes=weight_notes(group) or _random_note(group),
    )


def _tables(found: list[Section]) -> dict[str, list[tuple[str, Table]]]:
    """Title -> every table of that part, named."""
    return {part.title: [*((table.caption, table) for table in part.tables), *part.folded] for part in found}


def _with(
    found: list[Section],
    others: Group | None,
    tables: Callable[[Group], dict[str, list[tuple[str, Table]]]],
) -> list[Section]:
    """The parts with folded tables of the budgets that they do not show."""
    if others is not None:
        folded = tables(others)
        for part in found:
            part.folded += [(f"Other budgets: {name}", table) for name, table in folded.get(part.title, [])]
    return found


def _random_note(group: Group) -> list[str]:
    return [] if group.axis == "quality" else ["Random weights: costs only, the answers mean nothing."]
