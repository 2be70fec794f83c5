"""Laws that every architecture obeys; a file dropped into `models/architectures/` is held to them at once.

The laws are the conformance kit's (`models/conformance/`; `kvmark check` prints them). Each architecture
runs with its default options, every other value of its choices, and the option sets of FURTHER, all with a
`budget` (if it has one) as long as the tests ("ample": nothing may be lost) and far below ("tight").
One law on one architecture and shape is one test: `-k 'padding and tova'`. In the fast tier option sets
other than the defaults run tight, on the shape that has most switched on; in the slow tier with every budget
and on the other shapes.
"""

from __future__ import annotations

import functools
import itertools

import pytest

import models
from models.conformance import LAWS, SHAPES, Subject, specs_for, variants

#: Numbers that the defaults do not reach, beyond budgets; the kit finds choices by itself.
FURTHER = {
    "lococo": ["heavy=0.25,kernel=3,block=5", "heavy=0,block=3"],
    "window": ["sinks=0"],
    "yoco": ["window=50"],
}


def cases():
    """(law, spec, shape), all of one subject in a row: they share what it has computed."""
    for name in models.names():
        further = [f"{name}:{text}" for text in FURTHER.get(name, [])]
        for base in (name, *further, *variants(name)):
            # The defaults' own budgets (256) are no more than an ample one.
            sized = specs_for(base)[1:] or [base]
            for spec, shape in itertools.product(sized, SHAPES):
                fast = base == name or (spec == sized[-1] and shape == "conv")
                tier = () if fast else pytest.mark.slow
                for law in LAWS.values():
                    if shape in law.shapes and _asked(law, spec, sized):
                        id = f"{law.name}-{spec}-{shape}"
                        yield pytest.param(law.name, spec, shape, id=id, marks=tier)


def _asked(law, spec: str, sized: list[str]) -> bool:
    """Budgets that the law is about; the subject itself says no to the others, too."""
    return len(sized) == 1 or law.budget in ("any", ("ample", "tight")[sized.index(spec)])


@functools.lru_cache(maxsize=8)
def subject(spec: str, shape: str) -> Subject:
    return Subject(spec, shape)


@pytest.mark.parametrize(("law", "spec", "shape"), list(cases()))
def test_law(law, spec, shape):
    outcome = LAWS[law].hold(subject(spec, shape))
    if outcome.verdict == "not applicable":
        pytest.skip(outcome.detail)
    assert outcome.verdict == "kept", f"{outcome.detail} {outcome.setting}"
