"""`kvmark data list|fetch|import|verify`: data of others, in one cache folder.

    kvmark data list                           what there is, what it is under, whether it is here
    kvmark data fetch scrolls/qmsum pg19/test  get it; licence and size are shown before
    kvmark data import qmsum.zip FOLDER        take what you have, once it is checked
    kvmark data verify                         is it still what it was?

Exit codes: 0 done, 1 something differs (verify) or was declined (fetch), 2 wrong usage or bad data, 3 the
network, a server or the disk refuses, 130 interrupted. No other command looks for a network to get data, but
`kvmark run --offer-text` where no text is at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from suites.data.catalogue import Dataset

app = typer.Typer(
    help="Data of others: what there is, fetch it, import it, verify it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
WIDTH = 180  # where output goes to a file


@app.command("list")
def list_() -> None:
    """Show every set: size, licence, where it is published, where it lies, its label or hash."""
    with _sentences():
        from rich.table import Table

        from suites.data import cache_folder, folders
        from suites.data.catalogue import CATALOGUE
        from suites.data.verify import here, label_in, names_in, place_name

        table = Table("set", "size", "licence", "published at", "here", "label or hash")
        for column in table.columns:
            column.overflow, column.no_wrap = "fold", column.header in ("set", "label or hash")
        others = [name for root in folders() for name in names_in(root) if name not in CATALOGUE]
        for name in (*CATALOGUE, *dict.fromkeys(others)):
            known, root = CATALOGUE.get(name), here(name)
            found = (place_name(root), label_in(root, name)) if root else ("-", "-")
            facts = (_size(known), known.licence, known.home) if known else ("", "", "your own")
            table.add_row(name, *facts, *found)
        _console().print(table)
        typer.echo(f"Cache folder: {cache_folder()}")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Sets, or pg19, scrolls, lm_eval.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    books: Annotated[
        int | None, typer.Option(min=1, help="Of PG-19 only the first so many books, by number.")
    ] = None,
    again: Annotated[bool, typer.Option(help="Also what is in the cache folder already.")] = False,
) -> None:
    """Get sets where they are published; goes on where an earlier try was interrupted."""
    with _sentences():
        from suites.data import DataError, cache_folder
        from suites.data import fetch as fetching
        from suites.data.catalogue import select
        from suites.data.verify import label_in

        root = cache_folder()
        chosen = select(names)
        wanted = [dataset for dataset in chosen if again or not _complete(root, dataset, books)]
        for dataset in chosen:
            if dataset not in wanted:
                typer.echo(f"{dataset.name} is here already ({label_in(root, dataset.name)}).")
        if not wanted:
            return
        fetching.refuse_offline()
        wanted = [fetching.sized(dataset) for dataset in wanted]
        _show(wanted, root, books)
        if books is None:
            fetching.refuse_without_room(root, wanted)
        if not yes and not sys.stdin.isatty():
            raise DataError("Nothing was fetched: say --yes where nobody can be asked.")
        if not yes and not typer.confirm("Fetch?"):
            typer.echo("Nothing was fetched.")
            raise typer.Exit(1)
        for dataset in wanted:
            with _progress(dataset) as hear:
                record = fetching.fetch(root, dataset, hear, books)
            checked = "published checksum" if record.pinned else "no checksum is published"
            typer.echo(f"{dataset.name}: {label_in(root, dataset.name)} ({checked})")
            _say_if_hidden(root, dataset.name)


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    named: Annotated[
        str | None, typer.Option("--as", help="The set, e.g. scrolls/qmsum, where no name tells it.")
    ] = None,
) -> None:
    """Take SCROLLS zips, JSON lines, folders of PG-19, texts: all of what is named, or nothing."""
    with _sentences():
        from suites.data import cache_folder
        from suites.data.imports import import_all
        from suites.data.verify import label_in

        root = cache_folder()
        for record, count in import_all(root, paths, named):
            unit = "rows" if record.name.startswith(("scrolls/", "lm_eval/")) else "texts"
            checked = "published checksum" if record.pinned else "no published checksum"
            typer.echo(f"{record.name}: {count} {unit}, {label_in(root, record.name)} ({checked})")
            _say_if_hidden(root, record.name)


@app.command()
def verify() -> None:
    """Check every set in the cache folder and in KVMARK_DATA; exit code 1 if one differs."""
    with _sentences():
        from suites.data.verify import verify as verdicts

        worst, nothing = "ok", True
        for verdict in verdicts():
            typer.echo(f"{verdict.status:<8} {verdict.name:<22} {verdict.where:<12} {verdict.detail}")
            worst, nothing = "differs" if "differs" in (worst, verdict.status) else "ok", False
        if nothing:
            typer.echo("No set is here; `kvmark data list` shows what can be fetched.")
    if worst == "differs":
        raise typer.Exit(1)


@contextmanager
def _sentences() -> Iterator[None]:
    """What the network or the disk refuses is a matter of the environment."""
    from suites.data.faults import Unavailable

    from .exits import sentences
    from .supervise import EnvironmentRefuses

    with sentences():
        try:
            yield
        except Unavailable as error:
            raise EnvironmentRefuses(str(error)) from None


def _say_if_hidden(root: Path, name: str) -> None:
    from suites.data.verify import here

    if here(name) != root:
        typer.echo(f"  KVMARK_DATA has {name} too, and is read first.")


def _complete(root: Path, dataset: Dataset, books: int | None) -> bool:
    """Whether the cache folder has all that a fetch would bring."""
    from suites.data.pg19_books import BOOKS
    from suites.data.store import record_of
    from suites.data.verify import names_in

    record = record_of(root, dataset.name) if dataset.name in names_in(root) else None
    if record is None:
        return False
    split = dataset.name.removeprefix("pg19/")
    return split not in BOOKS or len(record.files) >= min(BOOKS[split], books or BOOKS[split])


def _show(wanted: list[Dataset], root: Path, books: int | None) -> None:
    """What would be fetched, on what terms, and where to."""
    from rich.table import Table

    table = Table("set", "size", "licence", "checksum", "from")
    for dataset in wanted:
        size = f"{books} books" if books and dataset.name.startswith("pg19/") else _size(dataset)
        pinned = "published" if dataset.pinned else "none published"
        table.add_row(dataset.name, size, dataset.licence, pinned, dataset.files[0].url.split("/")[2])
    _console().print(table)
    typer.echo(f"Into: {root}")


def _size(dataset: Dataset) -> str:
    from suites.data.faults import amount

    if dataset.bytes is None:
        return dataset.remark or "not stated"
    return amount(dataset.bytes)


@contextmanager
def _progress(dataset: Dataset) -> Iterator:
    """A bar in a terminal, nothing elsewhere."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
    )  # fmt: skip
    console = _console()
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(dataset.name, total=dataset.bytes)
        yield lambda name, done, total: bar.update(task, completed=done, total=total)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if Console().is_terminal else WIDTH)
