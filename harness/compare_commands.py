"""`kvmark compare`: two finished runs against each other.

Exit codes, of `compare` and of `gate`: 0 pass, 1 a regression, 2 wrong usage or input, 3 the runs cannot be
compared, 4 something was invalid or too little was measured to judge it. AMBIGUOUS passes, and is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exits import sentences, stop

if TYPE_CHECKING:
    from .comparison import Comparison

EPILOG = (
    "Exit codes: 0 pass, 1 a regression, 2 wrong usage or input, 3 incomparable, 4 invalid or insufficient."
)

Json = Annotated[Path | None, typer.Option("--json", help="Write every finding there as JSON.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write a pull request's comment there.")]
Junit = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML there.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="This machine's noise, written by kvmark calibrate.")
]
Threshold = Annotated[
    float, typer.Option(help="Share by which a latency must change to be called slower or faster.")
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow-different", help="Part of the fingerprint that may differ; repeatable."),
]
Anyway = Annotated[bool, typer.Option("--anyway", help="Compare whatever differs.")]
Only = Annotated[
    list[str] | None,
    typer.Option(help="Judge this kind alone: bytes, allocator, latency, quality; repeatable."),
]


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Run folder to compare with.")],
    head: Annotated[Path, typer.Argument(metavar="HEAD", help="Run folder that is judged.")],
    json: Json = None,
    markdown: Markdown = None,
    junit: Junit = None,
    calibration: CalibrationFile = None,
    threshold: Threshold = 0.05,
    allow_different: Allow = None,
    anyway: Anyway = False,
    only: Only = None,
) -> None:
    """Compare two finished runs: bytes exactly, latency by processes, quality case by case."""
    with sentences():
        from .comparison import compare as compared
        from .comparison import rules_of

        rules = rules_of(
            calibration,
            threshold=threshold,
            only=tuple(only or ()),
            allow_different=tuple(allow_different or ()),
            anyway=anyway,
        )
        found = compared(base, head, rules)
        tell(found, json, markdown, junit)
    end(found)


def tell(found: Comparison, json: Path | None, markdown: Path | None, junit: Path | None) -> None:
    """Write the files that were asked for, then show it. Raises OSError."""
    from .comparison.write import as_json, as_junit, as_markdown
    from .show_comparison import show
    from .store import write_atomic

    for path, text in ((json, as_json), (markdown, as_markdown), (junit, as_junit)):
        if path is not None:
            write_atomic(path, text(found).encode("utf-8", "replace"))
    if not found.refusals:
        show(found)


def end(found: Comparison) -> None:
    """Leave with the comparison's exit code; what was refused is a sentence on stderr."""
    from .comparison.findings import EXIT_INCOMPARABLE

    if found.refusals:
        differ = "; ".join(found.refusals)
        stop(
            f"base and head cannot be compared, they differ in {differ}. "
            "--allow-different NAME (the first word of each) or --anyway compares them.",
            EXIT_INCOMPARABLE,
        )
    if found.exit_code:
        raise typer.Exit(found.exit_code)
