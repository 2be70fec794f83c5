"""The plan that a command line asks for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from models.spec import SpecError

from .plan import PLANS, Plan, Settings, plan_from_toml
from .sweep import SWEEP


def plan_of(options: dict[str, Any]) -> Plan:
    """Named plan or TOML file, then flags on top; flags alone make a plan called "run". Raises SpecError."""
    name = options["name"]
    if name is None:
        if not options["arch"] or not options["suite"]:
            raise SpecError(f"Name a plan ({', '.join(PLANS)} or a TOML file), or give --arch and --suite.")
        base = Plan("run", tuple(options["arch"]), tuple(options["suite"]))
    elif name in PLANS:
        base = PLANS[name]
    elif name.endswith(".toml"):
        base = plan_from_toml(Path(name))
    else:
        raise SpecError(f"Unknown plan '{name}'; known: {', '.join(PLANS)}, or a TOML file.")
    fields = {f.name for f in dataclasses.fields(Settings)} - {"batch"}
    given = {k: v for k, v in options.items() if k in fields and v is not None}
    chosen = tuple(options["suite"] or base.suites)
    timed = [suite for suite in chosen if suite.partition(":")[0].strip() == "decode"]
    if options["contexts"] and not timed:
        raise SpecError("--contexts is for the decode suite, which is not in this plan.")
    if (batch := options["batch"]) and len(timed) < len(chosen):
        given["batch"] = _one_number(batch)
    return dataclasses.replace(
        base,
        architectures=tuple(options["arch"] or base.architectures),
        suites=tuple(_with_grid(s, options["contexts"], options["batch"]) for s in chosen),
        text=options["text"] or base.text,
        settings=dataclasses.replace(base.settings, **given),
    )


def _one_number(batch: str) -> int:
    try:
        return int(batch)
    except ValueError:
        raise SpecError(
            f"--batch is one whole number where a suite other than decode is in the plan, not '{batch}'."
        ) from None


def _with_grid(suite: str, contexts: str | None, batch: str | None) -> str:
    """--contexts and --batch are shorthands for options of the decode suite."""
    name, _, text = suite.partition(":")
    if name.strip() != "decode":
        return suite
    parts = [p for p in text.split(",") if p]
    for key, value in (("contexts", contexts), ("batches", batch)):
        if value is not None:
            if (key, value.strip()) == ("batches", "sweep"):
                value = ",".join(map(str, SWEEP))
            parts = [p for p in parts if not p.startswith(f"{key}=")] + [f"{key}={value.replace(',', '+')}"]
    return f"{name}:{','.join(parts)}" if parts else name
