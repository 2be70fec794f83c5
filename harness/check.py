"""`kvmark check`: which laws an architecture keeps, and how to see that it breaks one.

    law                            verdict          cases  why not
    any_segmentation_is_forward    kept             12
    budget_is_filled_and_kept      not applicable          it has no option 'budget'
    kept_sets_are_nested           broken           2 of 6

Below the table stand the counter-examples, the first of each broken law; an exception that breaks several
laws stands there once. The laws are in `models/conformance/`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models import conformance
from models.conformance import LAWS, Outcome
from models.spec import SpecError

#: Wide enough for a counter-example where output goes to a file.
console = Console(width=None if Console().is_terminal else 160, highlight=False)

_STYLES = {"kept": "green", "broken": "bold red", "not applicable": "dim"}


def list_laws() -> None:
    """Every law: its name, the numbered invariants it covers, its sentence."""
    table = Table("law", "covers", "what it says")
    for law in LAWS.values():
        table.add_row(law.name, law.covers, escape(law.sentence))
    console.print(table)


def check(spec: str, only: Iterable[str] | None = None) -> tuple[int, int]:
    """Check, print, and return how many laws are broken, of how many. Raises SpecError."""
    import torch

    for name in only or ():
        if name not in LAWS:
            raise SpecError(f"Unknown law '{name}'; known: {', '.join(LAWS)}.")
    torch.set_num_threads(1)
    start, found = time.monotonic(), defaultdict(list)
    with console.status(f"checking {escape(spec)}") as status:
        for outcome in conformance.check(spec, list(only) if only else None):
            found[outcome.law.name].append(outcome)
            status.update(escape(f"{outcome.spec} · {outcome.shape} · {outcome.law.name}"))
    chosen = [found[name] for name in LAWS if name in found]
    _print_verdicts(chosen)
    broken = [[o for o in outcomes if o.verdict == "broken"] for outcomes in chosen]
    broken = [outcomes for outcomes in broken if outcomes]
    for laws in _by_cause(broken):
        _print_counter_example(laws)
    specs = dict.fromkeys(o.spec for outcomes in chosen for o in outcomes)
    console.print(f"Checked {', '.join(specs)} in {time.monotonic() - start:.1f} s.", markup=False)
    return len(broken), len(chosen)


def _print_verdicts(chosen: list[list[Outcome]]) -> None:
    table = Table("law", "verdict", "cases", "why not")
    for outcomes in chosen:
        counts = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in _STYLES}
        verdict = next(v for v in ("broken", "kept", "not applicable") if counts[v])
        asked = counts["kept"] + counts["broken"]
        cases = {"kept": f"{asked}", "broken": f"{counts['broken']} of {asked}", "not applicable": ""}
        why = outcomes[0].detail if verdict == "not applicable" else ""
        style = _STYLES[verdict]
        table.add_row(outcomes[0].law.name, f"[{style}]{verdict}[/]", cases[verdict], escape(why))
    console.print(table)


def _by_cause(broken: list[list[Outcome]]) -> list[list[list[Outcome]]]:
    """Broken laws, those together that only one and the same exception breaks; comparisons come first."""
    found: dict[str, list[list[Outcome]]] = {}
    for outcomes in broken:
        outcomes = sorted(outcomes, key=lambda o: o.raised)
        first = outcomes[0]
        found.setdefault(first.detail if first.raised else first.law.name, []).append(outcomes)
    return list(found.values())


def _print_counter_example(laws: list[list[Outcome]]) -> None:
    outcomes = laws[0]
    first = outcomes[0]
    covers = f" ({first.law.covers})" if first.law.covers else ""
    if len(laws) == 1:
        console.print(f"\n[bold]{first.law.name}[/] is broken{covers}: {escape(first.law.sentence)}")
    else:
        names = ", ".join(each[0].law.name for each in laws)
        console.print(f"\n[bold]{len(laws)} laws[/] are broken by one exception: {names}", soft_wrap=True)
    lines = [f"{first.spec} on shape '{first.shape}': {first.detail}"]
    if first.setting:
        lines.append(", ".join(f"{key} {_said(value)}" for key, value in first.setting.items()))
    if len(outcomes) > 1:
        others = [f"{o.spec} ({o.shape})" for o in outcomes[1:]]
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        lines.append(f"also broken: {', '.join(others[:4])}{more}")
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _said(value: Any) -> str:
    """1+7+2 for a list of calls, as specs write lists; everything else as Python says it."""
    if isinstance(value, list | tuple) and all(isinstance(item, int) for item in value):
        return "+".join(map(str, value))
    return str(value).removeprefix("torch.")
