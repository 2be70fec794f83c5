"""`kvmark frontier`: the largest context that fits, per architecture and batch, predicted and measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exits import EXIT_FAILED_CELL, sentences, stop

if TYPE_CHECKING:
    from .frontier_rows import Probe
    from .plan import Cell


def frontier(
    arch: Annotated[list[str], typer.Option("--arch", "-a", help="Architecture; repeatable.")],
    batch: Annotated[str, typer.Option(help="Requests that run together, e.g. 1,4.")] = "1",
    shape: Annotated[str | None, typer.Option(help="Random weights of this shape: tiny, 3b, ... .")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint; contexts end where its own does.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The checkpoint's tokenizer, if elsewhere.")] = None,
    allow_pickle: Annotated[bool | None, typer.Option(help="Read weights from pickles (*.bin).")] = None,
    weights: Annotated[str | None, typer.Option(help="Folder of our own networks' weights.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default 1).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of tokens and random weights.")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(help="Tokens per chunk of a prompt.")] = None,
    memory_limit_bytes: Annotated[
        int | None, typer.Option(help="What a worker may fill (CPU: half of what is available; GPU: all).")
    ] = None,
    max_context: Annotated[int, typer.Option(help="Longest context to try.")] = 2**20,
    timeout_s: Annotated[float | None, typer.Option(help="Seconds for one execution of a probe.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default results/local/NAME).")] = None,
    commit: Annotated[str | None, typer.Option(help="Commit to record where there is no .git.")] = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Try contexts that crashed or timed out once more.")
    ] = False,
    markdown: Annotated[bool, typer.Option(help="Print the table as Markdown, and nothing else.")] = False,
) -> None:
    """Bisect for the largest context that fits in memory; the same command resumes."""
    options = dict(locals())
    with sentences():
        from .frontier_asked import asked, forget_failed
        from .frontier_memory import memory_of
        from .frontier_search import Search
        from .frontier_show import markdown as markdown_of
        from .frontier_show import print_table
        from .store import read_table

        def say(line: str) -> None:
            if not markdown:
                typer.echo(line)

        def hear(cell: Cell, probe: Probe) -> None:
            context, batch = (f"{cell.axes[name]:,}" for name in ("context", "batch"))
            say(f"  {cell.architecture}, batch {batch}: {context} tokens: {probe.told()}")

        search = asked(options)
        for remark in search.remarks:
            say(remark)
        if retry_failed:
            forget_failed(search.folder)
        memory = cache(lambda: memory_of(search.prepared.settings))
        stopped = Search(search.prepared, search.folder, memory, search.ceiling, hear).run()
        rows = read_table(search.folder / "rows.parquet").to_pandas()
        if markdown:
            typer.echo(markdown_of(rows), nl=False)
        else:
            print_table(rows)
        say(f"Rows: {search.folder}")
    if stopped:
        stop(f"{'; '.join(stopped)}; what lies beyond is unknown.", EXIT_FAILED_CELL)
