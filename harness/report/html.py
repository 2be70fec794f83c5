"""Tables and small pieces of HTML; everything that came from a file is escaped here.

A `Table` is data: columns and rows of `Entry`. The terminal reads the same entries' `plain` text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from ..metrics import NOTHING

#: Texts with more characters than this keep some width on a narrow screen.
LONG = 24

#: Characters that reorder what stands beside them, control a terminal, or are none: shown as what they are.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Text in which nothing hides: "\\u202e" instead of the character that turns a line around."""
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escaped(text: str) -> str:
    """Text for an element or a quoted attribute."""
    return escape(printable(text))


@dataclass(frozen=True)
class Entry:
    """One field of a table: the number, a remark in small print, and whether it is the best."""

    text: str
    note: str = ""
    best: bool = False
    failed: bool = False

    @property
    def plain(self) -> str:
        """For a terminal: the number and its remark in brackets."""
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row."""

    columns: list[str]
    rows: list[list[Entry]]
    caption: str = ""
    notes: list[str] = field(default_factory=list)


def table_of(columns: Iterable[str], rows: Iterable[Iterable[str | Entry]], caption: str = "") -> Table:
    """A Table from plain strings."""
    fields = [[f if isinstance(f, Entry) else Entry(f) for f in row] for row in rows]
    return Table(list(columns), fields, caption)


def table_html(table: Table) -> str:
    """The table in a container of its own that scrolls sideways where the screen is narrow."""
    numeric = [all(_is_numeric(row[index].text) for row in table.rows) for index in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{_class(["num"] if number else [])}>{_lines(column)}</th>'
        for column, number in zip(table.columns, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{_row(row, numeric)}</tr>" for row in table.rows)
    caption = f"<caption>{escaped(table.caption)}</caption>" if table.caption else ""
    notes = "".join(f'<p class="note">{escaped(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{notes}"
    )


def paragraph(text: str, kind: str = "") -> str:
    """Escaped text as a paragraph of a class."""
    return f"<p{_class([kind] if kind else [])}>{escaped(text)}</p>"


def details(summary: str, body: str, is_open: bool = False) -> str:
    """A fold."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(summary)}</summary>\n{body}\n</details>"


def _row(row: list[Entry], numeric: list[bool]) -> str:
    cells = []
    for index, (entry, number) in enumerate(zip(row, numeric, strict=True)):
        kinds = [
            name
            for name, on in (
                ("num", number),
                ("best", entry.best),
                ("failed", entry.failed),
                ("long", not number and len(entry.text) > LONG),
            )
            if on and index
        ]
        tag = 'th scope="row"' if index == 0 else "td"
        text = escaped(entry.text)
        if index == 0 and len(entry.text) > LONG:
            text = text.replace(",", ",<wbr>")  # a long spec breaks between its options
        text = f"<b>{text}</b>" if entry.best else text
        note = "".join(f"<small>{escaped(line)}</small>" for line in entry.note.split(" · ") if line)
        cells.append(f"<{tag}{_class(kinds)}>{text}{note}</{tag.split()[0]}>")
    return "".join(cells)


def _lines(text: str) -> str:
    """A header; the lines after its first are small print."""
    first, *rest = text.split("\n")
    return escaped(first) + "".join(f"<small>{escaped(line)}</small>" for line in rest)


def _class(names: list[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""


def _is_numeric(text: str) -> bool:
    return (
        text == NOTHING
        or text[:1].isdigit()
        or text[:1] in "+-−±×"
        or text in ("oom", "timeout", "crash", "not finite")
    )
