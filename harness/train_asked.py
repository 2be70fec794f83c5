"""What `kvmark train` was asked for, as options of the command line: one training, or a family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from models.spec import SpecError

#: Options of one network, which a family takes from its recipe; and those of a family.
OF_ONE = ("model", "tokenizer", "allow_pickle", "period", "sequences", "tokens", "seed", "induction_heads")
OF_FAMILY = ("only", "workers")


def train_asked(options: Mapping[str, Any], say: Callable[[str], None]) -> int:
    """Carry it out; returns how many trainings of a family failed. Raises as those do."""
    family = options["spec"].strip() == "family"
    for name in OF_ONE if family else OF_FAMILY:
        if options[name] not in (None, []):
            flag = f"--{name.replace('_', '-')}"
            raise SpecError(
                f"{flag} is for training one network; 'kvmark train family' takes it from its recipe."
                if family
                else f"{flag} is for 'kvmark train family'."
            )
    return _family(options, say) if family else _one(options, say)


def _one(options: Mapping[str, Any], say: Callable[[str], None]) -> int:
    from .train import Order, train

    given = {field.name: options[field.name] for field in dataclasses.fields(Order)}
    order = Order(**{name: value for name, value in given.items() if value is not None})
    card = train(
        options["spec"], options["data"], options["out"], order, threads=options["threads"] or 1,
        commit=options["commit"], say=say, checkpoint_every_s=options["checkpoint_s"],
    )  # fmt: skip
    say(f"Card: {card}")
    return 0


def _family(options: Mapping[str, Any], say: Callable[[str], None]) -> int:
    from .train_family import FINISHED, table, train_family

    out: Path = options["out"]
    outcomes = train_family(
        options["data"], out, options["recipe"] or "cpu", options["only"], workers=options["workers"],
        device=options["device"], threads=options["threads"], checkpoint_every_s=options["checkpoint_s"],
        commit=options["commit"], say=say,
    )  # fmt: skip
    for line in table(outcomes, out):
        say(line)
    return sum(outcome.status not in FINISHED for outcome in outcomes)
