"""`kvmark gate` and `kvmark calibrate`: two sides measured in turns on one machine, and judged.

    kvmark gate BASE HEAD            two finished runs
    kvmark gate --base main          this checkout against another revision of it: measures both
    kvmark calibrate                 this checkout against itself: what is noise here

Exit codes of gate are those of compare: 0 pass, 1 a regression, 2 wrong usage or input, 3 incomparable (or
this environment cannot measure), 4 something is invalid or insufficient, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .compare_commands import (
    Allow,
    Anyway,
    CalibrationFile,
    Json,
    Junit,
    Markdown,
    Only,
    Threshold,
    end,
    tell,
)
from .exits import EXIT_ENVIRONMENT, sentences, stop

if TYPE_CHECKING:
    from .comparison import Comparison, Rules
    from .sides import Side

#: What `kvmark gate` and `kvmark calibrate` measure where nothing else is asked for.
PLAN = "gate"
#: calibrate.
EXIT_NOTHING_LEARNT = 4

Arch = Annotated[
    list[str] | None, typer.Option("--arch", "-a", help="Architecture instead of the plan's; repeatable.")
]
Suite = Annotated[
    list[str] | None, typer.Option("--suite", "-s", help="Suite instead of the plan's; repeatable.")
]
Contexts = Annotated[str | None, typer.Option(help="Contexts of the decode suite, e.g. 128,256.")]
Batch = Annotated[str | None, typer.Option(help="Requests that run together, as for kvmark run.")]
Shape = Annotated[str | None, typer.Option(help="Random weights of this shape.")]
Model = Annotated[str | None, typer.Option(help="A checkpoint, as for kvmark run.")]
Text = Annotated[str | None, typer.Option(help="Text file or folder to read instead of the default.")]
Dtype = Annotated[str | None, typer.Option(help="fp32 or bf16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
Repeats = Annotated[int | None, typer.Option(help="Timed executions per process, after one warm-up.")]
Replicates = Annotated[
    int | None, typer.Option(min=1, max=100, help="Processes per side (default: the plan's, at least 8).")
]
Timeout = Annotated[float | None, typer.Option(help="Seconds that one execution of a cell may take.")]
Out = Annotated[Path | None, typer.Option(help="Folder of both run folders (default results/local/NAME).")]

#: Options above that are for measuring, and mean nothing for finished runs.
MEASURING = (
    *("plan", "arch", "suite", "contexts", "batch", "shape", "model", "text", "dtype", "device", "threads"),
    *("repeats", "replicates", "timeout_s", "out"),
)


def gate(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[BASE HEAD]", help="Folders of two finished runs.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Measure this checkout against that revision of it.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="What to measure: a named plan or a TOML file (default: gate).")
    ] = None,
    arch: Arch = None, suite: Suite = None, contexts: Contexts = None, batch: Batch = None,
    shape: Shape = None, model: Model = None, text: Text = None, dtype: Dtype = None, device: Device = None,
    threads: Threads = None, repeats: Repeats = None, replicates: Replicates = None,
    timeout_s: Timeout = None, out: Out = None, threshold: Threshold = 0.05,
    calibration: CalibrationFile = None, only: Only = None,
    allow_different: Allow = None, anyway: Anyway = False,
    json: Json = None, markdown: Markdown = None, junit: Junit = None,
) -> None:  # fmt: skip
    """Does head cost or lose more than base? Fails by one byte, and by a latency beyond doubt and noise."""
    given = locals()
    asked = {name: given[name] for name in MEASURING}
    with sentences():
        from .comparison import rules_of
        from .errors import UsageError

        if bool(runs) == bool(base) or (runs and len(runs) != 2):
            raise UsageError("Name two finished runs, BASE and HEAD, or a revision with --base REV.")
        rules = rules_of(
            calibration, threshold=threshold, only=tuple(only or ()),
            allow_different=tuple(allow_different or ()), anyway=anyway,
        )  # fmt: skip
        found = _measured(base, asked, rules) if base else _finished(runs or [], asked, rules)
        tell(found, json, markdown, junit)
    end(found)


def calibrate(
    plan: Annotated[
        str | None, typer.Argument(metavar="[PLAN]", help="A named plan or a TOML file (default: gate).")
    ] = None,
    arch: Arch = None, suite: Suite = None, contexts: Contexts = None, batch: Batch = None,
    shape: Shape = None, model: Model = None, text: Text = None, dtype: Dtype = None, device: Device = None,
    threads: Threads = None, repeats: Repeats = None, replicates: Replicates = None,
    timeout_s: Timeout = None, out: Out = None,
) -> None:  # fmt: skip
    """Measure this checkout against itself in turns: how far apart equal code lies on this machine."""
    given = locals()
    asked = {name: given[name] for name in MEASURING}
    with sentences():
        from .calibration import keep
        from .comparison import Rules
        from .environment import ROOT
        from .gate import first_set
        from .gate_show import noise_table

        rules = Rules(only=("latency",))
        with _opened(asked, ROOT, "this checkout", "calibrate", sets=1) as (sides, count, hear):
            same = first_set(*sides, count, rules, hear)
        found, path = keep(same, sides[0].folder)
        if found.entries:
            noise_table(found, rules.threshold)
            typer.echo(f"Noise of this machine: {path}")
    if not found.entries:
        reasons = dict.fromkeys(finding.message for finding in same.unjudged)
        stop(f"Nothing was learnt: {'; '.join(reasons) or 'no latency was measured'}.", EXIT_NOTHING_LEARNT)


def _finished(runs: list[Path], asked: dict[str, Any], rules: Rules) -> Comparison:
    from .errors import UsageError
    from .gate_rules import finished

    for name, value in asked.items():
        if value is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --base: finished runs are measured already.")
    return finished(*runs, rules)


def _measured(revision: str, asked: dict[str, Any], rules: Rules) -> Comparison:
    """Measure both checkouts in turns and compare them."""
    from .checkouts import checkout_of
    from .gate import LOOKS
    from .gate import gate as gated

    rules = dataclasses.replace(rules, looks=LOOKS)
    with checkout_of(revision) as checkout:
        name = f"{revision}, {checkout.commit[:10]}"
        with _opened(asked, checkout.root, name, "gate", sets=LOOKS) as (sides, count, hear):
            return gated(*sides, count, rules, hear)


Opened = tuple[tuple["Side", "Side"], int, Callable[..., None]]


@contextmanager
def _opened(asked: dict[str, Any], root: Path, name: str, kind: str, sets: int) -> Iterator[Opened]:
    """Both sides prepared, processes per side in each of the sets, and who hears what they do."""
    from .asked import plan_of
    from .gate import Incomparable, opened
    from .gate_rules import MIN_REPLICATES
    from .gate_show import Turns

    options = {key: value for key, value in asked.items() if key not in ("plan", "out")}
    # Architectures and suites alone make a plan of their own, as for `kvmark run`.
    alone = asked["arch"] and asked["suite"] and not asked["plan"]
    options["name"] = None if alone else asked["plan"] or PLAN
    count = asked["replicates"] or max(MIN_REPLICATES, plan_of(options).settings.replicates)
    options["replicates"] = sets * count
    try:
        with Turns() as turns, opened(options, root, name, asked["out"], kind) as sides:
            turns.expect(sides, count)
            yield sides, count, turns.hear
    except Incomparable as error:
        stop(str(error), EXIT_ENVIRONMENT)
