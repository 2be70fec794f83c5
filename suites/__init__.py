"""Suites: the folder `workloads/` is the registry, one file each, nothing to register.

    names()                               ["decode", "needle", "pg19", ...]
    load("needle:lengths=512+1024", context)   -> the Suite, its options typed and checked
    docline("needle")                     the first line of the file's docstring, for `kvmark list`

A file defines `Workload(Suite)` and, if it has options, a frozen dataclass `Options`. The contract
is in `suite.py`, where text comes from in `text.py`.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from models.spec import canonical, known, parse_options, registry, split_spec

from .suite import Answer, Case, Context, Suite

FOLDER = Path(__file__).parent / "workloads"

__all__ = [
    "Answer",
    "Case",
    "Context",
    "Suite",
    "canonical_spec",
    "docline",
    "load",
    "names",
    "options",
    "suite_class",
]


def names() -> list[str]:
    """Every suite in the folder, sorted."""
    return registry(FOLDER)


def load(spec: str, context: Context) -> Suite:
    """Build the suite that a spec string such as "needle:lengths=512+1024,trials=10" names.

    Raises SpecError for an unknown suite, option or value; the message names the valid ones.
    """
    return suite_class(spec)(options(spec), context)


def options(spec: str) -> Any:
    """The typed options of a spec, without building the suite. Raises SpecError."""
    name, text = split_spec(spec)
    return parse_options(getattr(_module(name), "Options", Suite.Options), text, f"suite {name}")


def canonical_spec(spec: str) -> str:
    """The shortest spec that means the same; equal suites have equal canonical specs."""
    return canonical(split_spec(spec)[0], options(spec))


def suite_class(spec: str) -> type[Suite]:
    """The class behind a spec: its axis, `interleaved` and `needs_text` are known without a text."""
    return _module(split_spec(spec)[0]).Workload


def docline(name: str) -> str:
    """First line of the suite's docstring; read, not imported, so that listing stays cheap."""
    file = FOLDER / f"{known(name, FOLDER, 'suite')}.py"
    document = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return (document or "").partition("\n")[0]


def _module(name: str) -> ModuleType:
    known(name, FOLDER, "suite")
    # A file that was dropped in after Python had listed the folder is not seen without this.
    importlib.invalidate_caches()
    return importlib.import_module(f"{__name__}.workloads.{name}")
