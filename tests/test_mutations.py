"""`mutations.toml` breaks the code of today: `make mutate` is too long to be run at every change."""

from __future__ import annotations

import tomllib

from harness.environment import ROOT

MUTATIONS = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))["mutation"]


def test_every_mutation_changes_a_line_that_is_there():
    gone = [m["law"] for m in MUTATIONS if m["old"] not in (ROOT / m["file"]).read_text(encoding="utf-8")]
    assert not gone
    assert all(m["old"] != m["new"] for m in MUTATIONS)


def test_every_mutation_names_tests_that_are_there():
    named = {part for m in MUTATIONS for part in m["tests"].split() if part.startswith("tests/")}
    assert not [name for name in named if not (ROOT / name.partition("::")[0]).exists()]
