"""Reading files that others made: sizes before contents, and one sentence for whatever is wrong.

Everything in a checkpoint's folder is treated as hostile: a file may be a pipe, huge, not JSON, nested a
million deep, or hold numbers that do not exist. All of that is a `PretrainedError`.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from ..spec import one_line

_REQUIRED = object()


class PretrainedError(ValueError):
    """A checkpoint that cannot be read, or that our decoder cannot compute; the message is one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def shown(value: Any, most: int = 60) -> str:
    """`value` as Python writes it, on one line and not longer than a sentence can bear."""
    if isinstance(value, int) and abs(value) >= 10**most:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def regular_size(path: Path) -> int:
    """Bytes of a regular file (symbolic links are followed: hub caches are made of them)."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise PretrainedError(f"{path} cannot be read.") from None
    if not stat.S_ISREG(status.st_mode):
        raise PretrainedError(f"{path} is not a regular file.")
    return status.st_size


def read_at(path: Path, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; the caller has compared both with the file's size."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read ({error.strerror}).") from None
    if len(data) != length:
        raise PretrainedError(f"{path} became shorter while it was read.")
    return data


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a small file."""
    size = regular_size(path)
    if size > limit:
        raise PretrainedError(f"{path} has {size} bytes; at most {limit} are read.")
    return parse_json(read_at(path, 0, size), str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object without NaN, Infinity or a key that is given twice."""

    def no_constant(name: str) -> NoReturn:
        raise PretrainedError(f"{where} holds {name}, which is no JSON number.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise PretrainedError(f"{where} gives a key twice in one object.")
        return values

    try:
        values = json.loads(data, parse_constant=no_constant, object_pairs_hook=once)
    except PretrainedError:
        raise
    except (ValueError, RecursionError):
        raise PretrainedError(f"{where} is not valid JSON.") from None
    if not isinstance(values, dict):
        raise PretrainedError(f"{where} must hold a JSON object, not {shown(values)}.")
    return values


class Fields:
    """Typed values of a JSON object; null counts as absent. Everything else than asked for is refused."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def refuse(self, key: str, wanted: str) -> NoReturn:
        raise PretrainedError(f"'{key}' in {self.where} must be {wanted}, not {shown(self.values.get(key))}.")

    def raw(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.values.get(key)
        if value is None and default is _REQUIRED:
            raise PretrainedError(f"'{key}' is missing in {self.where}.")
        return default if value is None else value

    def whole(self, key: str, most: int, default: Any = _REQUIRED, least: int = 1) -> Any:
        """An int between `least` and `most`, or the default."""
        value = self.raw(key, default)
        if value is not default and (type(value) is not int or not least <= value <= most):
            self.refuse(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED) -> Any:
        """A float between `low` and `high`, or the default."""
        value = self.raw(key, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not low <= value <= high:
            self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw(key, default)
        if type(value) is not bool:
            self.refuse(key, "true or false")
        return value
