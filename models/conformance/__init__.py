"""The conformance kit: laws that every architecture obeys, as data and functions.

    LAWS                                 name -> Law (sentence, invariants covered, when it applies)
    specs_for("tova:budget=64")          the spec, and its budget shrunk to the tests: ample, tight
    check("tova:budget=64")              Outcomes: kept, broken (with a counter-example), not applicable

    networks.py    small shapes, weights that matter        exactness.py   rows.py   held.py
    subject.py     one spec on one shape, and its feeding   cost.py   precision.py   prompts.py
    law.py         what a law and a counter-example are               the laws

`kvmark check ARCH` prints it; `tests/test_laws.py` runs it over every file of the folder. What a law
cannot ask of a policy follows from its `prompt_mode`:

    parallel    nothing is dropped                  bulk, blockwise    the calls decide what goes
    stepwise    token by token, budget filled       once               only the prompt is compressed
    split       the context starts anew             truncate           a long prompt loses its head
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..spec import SpecError
from . import cost, exactness, held, precision, prompts, rows
from .law import Broken, Law, Outcome
from .networks import SHAPES
from .options import TIGHT, specs_for, variants
from .subject import CUTS, LENGTH, Subject

__all__ = [
    "CUTS",
    "LAWS",
    "LENGTH",
    "SHAPES",
    "TIGHT",
    "Broken",
    "Law",
    "Outcome",
    "Subject",
    "check",
    "specs_for",
    "variants",
]

LAWS: dict[str, Law] = {
    law.name: law
    for module in (exactness, rows, held, prompts, cost, precision)
    for law in vars(module).values()
    if isinstance(law, Law)
}


def check(spec: str, laws: Iterable[str] | None = None) -> Iterator[Outcome]:
    """Hold `specs_for(spec)` to the laws of these names (default: all), shape by shape.

    Raises SpecError for a spec that names nothing, or that no shape suits.
    """
    chosen = [LAWS[name] for name in (LAWS if laws is None else laws)]
    refusals = [Subject(spec, shape).refusal() for shape in SHAPES]
    if all(refusals):
        raise SpecError(refusals[0])
    for each in specs_for(spec):
        for shape in SHAPES:
            subject = Subject(each, shape)
            for law in chosen:
                if shape in law.shapes:
                    yield law.hold(subject)
