"""A comparison in the terminal: the table of what is not the same, then everything else in lines."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .comparison import Comparison
from .comparison.lines import COLUMNS, folded, headline, rows
from .metrics import NOTHING


def show(comparison: Comparison) -> None:
    """Print it. Names are text: nothing in them is markup."""
    console = Console(width=None if Console().is_terminal else 200, highlight=False, markup=False)
    console.print(f"base {comparison.base.label}\nhead {comparison.head.label}")
    for told in comparison.allowed:
        console.print(f"Allowed to differ: {told}.")
    table = rows(comparison)
    if table:
        used = [at for at in range(len(COLUMNS)) if any(row[at] not in ("", NOTHING) for row in table)]
        shown = Table(*(COLUMNS[at] for at in used))
        for row in table:
            shown.add_row(*(Text(row[at]) for at in used))
        console.print(shown)
    for line in (*folded(comparison), *comparison.notes, headline(comparison)):
        console.print(line)
