"""Which option sets of an architecture are examined: budgets that fit the tests, and every choice.

The tests are short, so a budget of 256 would never be exceeded: "ample" is exactly as long as the tests,
"tight" far below. Options that a tight budget refuses because they are as large as it (a protected
window, say) shrink with it.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import models

from ..spec import SpecError, canonical, split_spec
from .subject import LENGTH

#: The tight budget: every policy evicts within the tests (LoCoCo folds from TIGHT + 17 slots on).
TIGHT = 6
#: What is tried where a policy refuses it.
_LESS_TIGHT = (8, 12, 16, 24, 32)


def specs_for(spec: str) -> list[str]:
    """The spec itself and, if it has a budget, the same with an ample and a tight one; no two alike.

    Raises SpecError, also for a policy that refuses every budget below the tests' length.
    """
    name, _ = split_spec(spec)
    _, options = models.parse(spec)
    found = [canonical(name, options)]
    if _has_budget(options):
        found += [
            canonical(name, with_budget(options, *sizes)) for sizes in ((LENGTH,), (TIGHT, *_LESS_TIGHT))
        ]
    return list(dict.fromkeys(found))


def variants(spec: str) -> list[str]:
    """The spec with each choice (a Literal or a switch) set to each other value, one at a time.

    Sets that `Options` refuses are left out: such a value needs another option beside it.
    """
    name, _ = split_spec(spec)
    _, options = models.parse(spec)
    hints = typing.get_type_hints(type(options))
    found = []
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        values = (True, False) if kind is bool else typing.get_args(kind) if _is_literal(kind) else ()
        for value in values:
            if value != getattr(options, field.name):
                try:
                    found.append(canonical(name, dataclasses.replace(options, **{field.name: value})))
                except ValueError:
                    continue
    return found


def with_budget(options: Any, *budgets: int) -> Any:
    """The same options with the first budget that they accept. Raises SpecError where they accept none."""
    changes: dict[str, Any] = {"budget_bytes": None} if hasattr(options, "budget_bytes") else {}
    for budget in budgets:
        small = {
            field.name: budget // 2
            for field in dataclasses.fields(options)
            if type(value := getattr(options, field.name)) is int and value >= budget
        }
        for further in ({}, small):
            try:
                return dataclasses.replace(options, **{**further, **changes, "budget": budget})
            except ValueError as error:
                refusal = str(error)
    raise SpecError(f"The tests need a budget of {' or '.join(map(str, budgets))}, refused: {refusal}")


def _has_budget(options: Any) -> bool:
    return any(field.name == "budget" for field in dataclasses.fields(options))


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal
