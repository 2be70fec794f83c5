"""Spec strings: `name:key=value,key=value` -> typed options; the folder is the registry.

`tova:budget=256,prompt=bulk` names the file `tova.py` and fills that file's frozen `Options`
dataclass. A comma separates options, `+` separates the items of a list (`lengths=512+1024`).
Everything wrong is a `SpecError` whose one sentence names what would have been right.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

#: Numbers in specs are below this: no size that a machine has, and no product of sizes that overflows.
MOST = 10**12


class SpecError(ValueError):
    """A spec string that names nothing we have; the message is one sentence for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, most: int = 800) -> str:
    """Messages quote input, which may hold anything: what cannot be printed is escaped, length is bounded."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def split_spec(spec: str) -> tuple[str, str]:
    """`"tova:budget=64"` -> `("tova", "budget=64")`."""
    name, _, text = spec.strip().partition(":")
    return name.strip(), text.strip()


def registry(folder: Path) -> list[str]:
    """Names of the Python files in a folder: those are the entries, nothing has to be registered."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def known(name: str, folder: Path, what: str) -> str:
    """Return `name` if the folder has it, else raise SpecError naming those that it has."""
    names = registry(folder)
    if name not in names:
        raise SpecError(f"Unknown {what} '{name}'; known: {', '.join(names)}.")
    return name


def parse_options(options_class: type, text: str, what: str) -> Any:
    """Fill a frozen dataclass from `key=value,key=value`. Raises SpecError.

    Field types: int, float, str, bool, `tuple[int, ...]`-like, `Literal[...]`, and `X | None`.
    The dataclass may refuse values in `__post_init__` with a ValueError of one sentence.
    """
    hints = typing.get_type_hints(options_class)
    names = [field.name for field in dataclasses.fields(options_class)]
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        valid = ", ".join(names) or "none"
        if not equals:
            raise SpecError(f"Option '{item}' of {what} has no value; write key=value (keys: {valid}).")
        if key not in names:
            raise SpecError(f"Unknown option '{key}' of {what}; valid options: {valid}.")
        if key in values:
            raise SpecError(f"Option '{key}' of {what} is given twice.")
        values[key] = _convert(value, hints[key], f"option '{key}' of {what}")
    if {"budget", "budget_bytes"} <= values.keys():
        raise SpecError(f"Give budget or budget_bytes of {what}, not both.")
    if (limit := values.get("budget_bytes")) is not None and limit < 1:
        raise SpecError(f"Option 'budget_bytes' of {what} must be at least 1, not {limit}.")
    try:
        return options_class(**values)
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"{what}: {error}") from None


def _convert(text: str, kind: Any, what: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _convert(text, next(a for a in arguments if a is not type(None)), what)
    if origin is tuple:
        return tuple(_convert(item, arguments[0], what) for item in text.split("+"))
    if origin is typing.Literal:
        if text not in arguments:
            valid = ", ".join(map(str, arguments))
            raise SpecError(f"{what.capitalize()} must be one of {valid}, not '{text}'.")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise SpecError(f"{what.capitalize()} must be true or false, not '{text}'.")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise SpecError(f"{what.capitalize()} must be of type {kind.__name__}, not '{text}'.") from None
    if kind is int and abs(value) >= MOST:
        raise SpecError(f"{what.capitalize()} must be below {MOST:.0e}, not '{text}'.")
    return value


def canonical(name: str, options: Any) -> str:
    """The shortest spec string that gives these options: what differs from the defaults, and the budget.

    A budget is stated even where it is the default, since no number of a policy means anything without it;
    a budget in bytes takes its place.
    """
    parts = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        stated = field.name == "budget" and getattr(options, "budget_bytes", None) is None
        if value != field.default or stated:
            text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{field.name}={text.lower() if isinstance(value, bool) else text}")
    return f"{name}:{','.join(parts)}" if parts else name
