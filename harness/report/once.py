"""What is found out about a group is kept with it, as its `ok` is: a page asks many times."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


def once(find: Callable[..., T]) -> Callable[..., T]:
    """Asked again about the same group (and the same further arguments, hashable), the same answer.

    Nobody may change what is returned.
    """
    name = f"{find.__module__}.{find.__qualname__}"

    @wraps(find)
    def found(group: Any, *more: Any) -> T:
        kept = vars(group)  # as functools.cached_property does: the dataclass is frozen, its dict is not
        if (name, more) not in kept:
            kept[name, more] = find(group, *more)
        return kept[name, more]

    return found
