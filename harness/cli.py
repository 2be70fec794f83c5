"""kvmark: what does a KV-cache architecture cost, and what does it lose?

Parsing and printing only; heavy imports happen inside the commands, so that --help is instant.

Exit codes: 0 every cell measured (out of memory is a measured outcome); 1 some cell crashed or timed out,
a law is broken or data differs; 2 wrong usage or bad input; 3 the environment; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import compare_commands, data_commands, frontier_commands, gate_commands
from .exits import EXIT_ENVIRONMENT, EXIT_FAILED_CELL, sentences, stop

if TYPE_CHECKING:
    from .plan import Plan

app = typer.Typer(
    name="kvmark",
    help="What does a KV-cache architecture cost, and what does it lose?",
    epilog="Exit codes: 0 measured, 1 a cell crashed or timed out, a law is broken or data differs, "
    "2 wrong usage or input, 3 environment, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_commands.app, name="data")

Architectures = Annotated[
    list[str] | None, typer.Option("--arch", "-a", help="Architecture, e.g. tova:budget=256; repeatable.")
]
Suites = Annotated[
    list[str] | None, typer.Option("--suite", "-s", help="Suite, e.g. needle:lengths=512+1024; repeatable.")
]
PlanName = Annotated[
    str | None, typer.Argument(metavar="[PLAN]", help="A named plan (see kvmark list) or a TOML file.")
]
Text = Annotated[
    str | None,
    typer.Option("--text", "--haystack", help="Text file or folder to read instead of the default."),
]
Shape = Annotated[
    str | None, typer.Option(help="Random weights of this shape: tiny, 160m ... 13b, 3b, 7b, or a TOML file.")
]
Model = Annotated[
    str | None, typer.Option(help="A checkpoint: folder, llama2.c .bin, or ORG/NAME[@REVISION] of the hub.")
]
TokenizerFile = Annotated[
    str | None, typer.Option(help="The checkpoint's tokenizer (tokenizer.json or tok*.bin), if elsewhere.")
]
Pickle = Annotated[
    bool | None, typer.Option("--allow-pickle", help="Read weights from pickles (*.bin), which can run code.")
]
WeightsFolder = Annotated[
    str | None, typer.Option(help="Folder of our own networks' weights to use instead of those found.")
]
Contexts = Annotated[str | None, typer.Option(help="Contexts of the decode suite, e.g. 1024,4096.")]
Batch = Annotated[
    str | None,
    typer.Option(
        help="Requests that run together; for decode also 1,4, or sweep: 1,2,4 ... until memory runs out."
    ),
]
Repeats = Annotated[int | None, typer.Option(help="Timed executions per process, after one warm-up.")]
Replicates = Annotated[int | None, typer.Option(help="Processes per latency job.")]
Dtype = Annotated[str | None, typer.Option(help="fp32 or bf16.")]
Implementation = Annotated[
    str | None, typer.Option(help="torch, or fused: our Triton kernels where there are some (CUDA).")
]
Graphs = Annotated[
    bool | None, typer.Option(help="Replay decode steps as CUDA graphs (with --implementation fused).")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default 1).")]
Seed = Annotated[int | None, typer.Option(help="Seed of cases and random weights.")]
Chunk = Annotated[int | None, typer.Option(help="Feed prompts in chunks of this many tokens.")]
Interleave = Annotated[
    bool | None, typer.Option(help="Latency: architectures in one process, repeats interleaved (default).")
]
Timeout = Annotated[float | None, typer.Option(help="Seconds that one execution of a cell may take.")]
MemoryLimit = Annotated[int | None, typer.Option(help="Bytes of memory a worker may allocate.")]
Out = Annotated[Path | None, typer.Option(help="Run folder (default results/local/NAME).")]
Commit = Annotated[str | None, typer.Option(help="Commit to record where there is no .git.")]


@app.command("list")
def list_() -> None:
    """Show architectures, suites and plans."""
    import models
    import suites

    from .plan import PLANS

    with sentences():
        for title, names, line in (
            ("Architectures (--arch NAME:key=value,...)", models.names(), models.docline),
            ("Suites (--suite NAME:key=value,...)", suites.names(), suites.docline),
        ):
            typer.echo(title)
            for name in names:
                typer.echo(f"  {name:<12} {line(name)}")
        typer.echo(f"Plans: {', '.join(PLANS)}")


@app.command()
def plan(
    name: PlanName = None, arch: Architectures = None, suite: Suites = None, text: Text = None,
    shape: Shape = None, contexts: Contexts = None, batch: Batch = None, repeats: Repeats = None,
    replicates: Replicates = None, dtype: Dtype = None, implementation: Implementation = None,
    graphs: Graphs = None,
    device: Device = None, threads: Threads = None, seed: Seed = None,
    prefill_chunk: Chunk = None, interleave: Interleave = None, timeout_s: Timeout = None,
    memory_limit_bytes: MemoryLimit = None, model: Model = None, tokenizer: TokenizerFile = None,
    allow_pickle: Pickle = None, weights: WeightsFolder = None,
) -> None:  # fmt: skip
    """Print the jobs of a plan with their predicted memory; nothing is run."""
    options = dict(locals())
    with sentences():
        from .asked import plan_of
        from .runner import predicted_bytes, prepare
        from .show import plan_table

        prepared = prepare(plan_of(options))
        plan_table(prepared, lambda job: predicted_bytes(prepared, job))
        for remark in prepared.remarks:
            typer.echo(remark)


@app.command()
def run(
    name: PlanName = None, arch: Architectures = None, suite: Suites = None, text: Text = None,
    shape: Shape = None, contexts: Contexts = None, batch: Batch = None, repeats: Repeats = None,
    replicates: Replicates = None, dtype: Dtype = None, implementation: Implementation = None,
    graphs: Graphs = None,
    device: Device = None, threads: Threads = None, seed: Seed = None,
    prefill_chunk: Chunk = None, interleave: Interleave = None, timeout_s: Timeout = None,
    memory_limit_bytes: MemoryLimit = None, model: Model = None, tokenizer: TokenizerFile = None,
    allow_pickle: Pickle = None, weights: WeightsFolder = None, out: Out = None, commit: Commit = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Measure cells that crashed or timed out once more.")
    ] = False,
    offer_text: Annotated[
        bool, typer.Option(help="Offer to fetch three PG-19 books where no text is at hand.")
    ] = False,
    executor: Annotated[
        str,
        typer.Option(
            help="local, or ray: jobs spread over GPUs and nodes, one GPU per job (extra 'ray'; RAY_ADDRESS "
            "names a cluster). Jobs on one node's CPU disturb each other: see foreign_cpu_share in the rows."
        ),
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="ray: jobs at a time (default: all that GPUs and cores allow).")
    ] = None,
    no_ceilings: Annotated[
        bool, typer.Option("--no-ceilings", help="Do not measure what this machine can do: no MFU, no MBU.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Do not draw the page; kvmark report does it at any time.")
    ] = False,
) -> None:  # fmt: skip
    """Measure a plan; the same command resumes. Ends with a summary and the report's path."""
    options = dict(locals())
    with sentences():
        from .asked import plan_of
        from .executors import executor as executor_of
        from .report import build
        from .runner import prepare
        from .runner import run as run_plan
        from .show import Progress, summary_table

        chosen = plan_of(options)
        execute = executor_of(executor, workers, chosen.settings.device, not no_ceilings)
        if offer_text:
            _offer(chosen)
        prepared = prepare(chosen, commit)
        for remark in prepared.remarks:
            typer.echo(remark)
        folder = out or Path("results") / "local" / prepared.name
        with Progress(prepared) as progress:
            statuses = run_plan(prepared, folder, progress.hear, retry_failed, execute, not no_ceilings)
        page = None if no_report else build([folder], Path("reports") / "local" / folder.name)
        summary_table(folder)
        typer.echo(f"Rows: {folder}" + (f"\nReport: {page}" if page else ""))
        bad = [s for s in statuses.values() if s in ("crash", "timeout")]
    if bad:
        seen = "the report" if page else f"kvmark report {folder}"
        stop(f"{len(bad)} of {len(statuses)} cells crashed or timed out; see {seen}.", EXIT_FAILED_CELL)


@app.command()
def check(
    arch: Annotated[
        str | None, typer.Argument(metavar="[ARCH]", help="Architecture, e.g. tova:budget=64.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="A file of yours that defines it: my_arch.py.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Check this law alone; repeatable.")] = None,
    list_laws: Annotated[bool, typer.Option("--list", help="Show every law; check nothing.")] = False,
) -> None:
    """Hold an architecture to every law; broken ones come with a counter-example and exit code 1."""
    with sentences():
        from contextlib import nullcontext

        from models.lookup import known_file
        from models.spec import SpecError, split_spec

        from . import check as laws

        if list_laws:
            laws.list_laws()
            return
        with known_file(path) if path else nullcontext(None) as name:
            if not (arch or name):
                raise SpecError("Name an architecture (see kvmark list), or give a file with --path.")
            if arch and name and split_spec(arch)[0] != name:
                raise SpecError(f"'{arch}' does not name the file of --path, which defines '{name}'.")
            broken, checked = laws.check(arch or name, only)
    if broken:
        stop(f"{broken} of {checked} laws are broken.", EXIT_FAILED_CELL)


@app.command()
def train(
    spec: Annotated[
        str,
        typer.Argument(help="family, transformer, yoco:mixer=swa|retention or lococo:budget=M."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of training texts (*.txt, *.txt.gz).")],
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("results/weights"),
    recipe: Annotated[
        str | None,
        typer.Option(help="family: cpu (default), gpu or a TOML file. lococo: official or family."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="family: a training or group of the recipe; repeatable.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="family: trainings at a time (default: one per core, or GPU).")
    ] = None,
    model: Model = None, tokenizer: TokenizerFile = None, allow_pickle: Pickle = None,
    period: Annotated[
        int | None, typer.Option(min=1, help="lococo on plain text: blocks per sequence (default 8).")
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="lococo on plain text: sequences per step (official: 128).")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Token budget (default: the recipe's).")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32, help="Seed of initial values and batches (default 0).")
    ] = None,
    induction_heads: Annotated[
        int | None, typer.Option(help="Hand-set heads per global layer, 0 for none (default 2).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N (default: the recipe's).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads of a training.")] = None,
    checkpoint_s: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints.")] = 60.0,
    commit: Commit = None,
) -> None:  # fmt: skip
    """Train our byte-level networks, or compressors on a checkpoint; resumes when interrupted."""
    options = dict(locals())
    with sentences(ValueError, FloatingPointError):
        from .train_asked import train_asked

        failed = train_asked(options, typer.echo)
    if failed:
        many = "trainings" if failed > 1 else "training"
        stop(f"{failed} {many} did not finish; the same command goes on there.", EXIT_FAILED_CELL)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page (default reports/local/NAME).")] = None,
    markdown: Annotated[bool, typer.Option(help="Print the verdict as Markdown, draw nothing.")] = False,
    curves: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of weights: draw how they were trained, instead of a run; repeatable."),
    ] = None,
) -> None:
    """Draw one self-contained HTML page (and PNGs) from finished runs."""
    with sentences():
        from models.spec import SpecError

        from .report import build, build_curves, load_run
        from .report.markdown import markdown as markdown_of

        if bool(runs) == bool(curves) or (curves and markdown):
            raise SpecError("Name run folders, or folders of weights with --curves, and not both.")
        local = Path("reports") / "local"
        if curves:
            typer.echo(f"Report: {build_curves(curves, out or local / curves[0].resolve().name)}")
            return
        if markdown:
            typer.echo("\n".join(markdown_of(load_run(run)) for run in runs), nl=False)
            return
        typer.echo(f"Report: {build(runs, out or local / runs[0].resolve().name)}")


app.command(epilog=compare_commands.EPILOG)(compare_commands.compare)
app.command(epilog=compare_commands.EPILOG)(gate_commands.gate)
app.command()(gate_commands.calibrate)
app.command()(frontier_commands.frontier)


@app.command()
def doctor(
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the run.")] = 1,
    out: Annotated[Path, typer.Option(help="Where its results would go.")] = Path("results"),
) -> None:
    """Can this machine run kvmark, and can its numbers be trusted? Changes nothing; 3: it cannot."""
    with sentences():
        from .doctor import checks
        from .plan import Settings

        Settings(device=device)  # refuses what is no device
        worst = 0
        for check in checks(threads, out, device):
            typer.echo(f"{check.status:<5} {check.name}: {check.detail}")
            worst = max(worst, ("ok", "warn", "fail").index(check.status))
    if worst == 2:
        raise typer.Exit(EXIT_ENVIRONMENT)


def _offer(plan: Plan) -> None:
    """Fetch three PG-19 books if the plan would otherwise read the bundled prose."""
    from suites.data import cache_folder
    from suites.text import offer_books, resolve

    if plan.text is None and resolve(None, data_dir=cache_folder()).kind == "bundled":
        offer_books(cache_folder(), announce=typer.echo)


if __name__ == "__main__":
    app()
