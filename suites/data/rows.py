"""Rows of others, looked at line by line: JSON as its standard has it, one object in each line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from .faults import DataError

LONGEST_LINE = 256 << 20


def lines(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Lines without their ends; a last line without an end counts. Raises DataError for an endless one."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LONGEST_LINE:
            raise DataError(f"{name} has a line of more than {LONGEST_LINE >> 20} MiB.")
    if rest:
        yield rest


def objects(pieces: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("line N of NAME", row) of JSON lines, strictly: UTF-8, no empty line, an object in each."""
    where = None
    for number, line in enumerate(lines(pieces, name), 1):
        where = f"line {number} of {name}"
        if not line.strip():
            raise DataError(f"{where} is empty; a row belongs there.")
        row = parsed(line, where)
        if not isinstance(row, dict):
            raise DataError(f"{where} is not an object.")
        yield where, row
    if where is None:
        raise DataError(f"{name} has no rows.")


def parsed(line: bytes, where: str) -> Any:
    """What a line of JSON says. Raises DataError; NaN and Infinity, which Python reads, are not JSON."""
    try:
        text = line.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8.") from None
    except UnicodeEncodeError:
        raise DataError(f"{where} holds half a surrogate pair, which is no text.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON.") from None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)
