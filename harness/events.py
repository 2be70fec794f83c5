"""What a worker says: one JSON object per line of its stdout, and what becomes of a line that is none.

    {"event": "start",  "t_s", "cell", ...}                            a cell (or its next repeat) begins
    {"event": "phase",  "t_s", "cell", "architecture", "phase"}
    {"event": "wait",   "t_s", "cell"}                                 for its turn (`harness.rounds`)
    {"event": "done",   "t_s", "cell"}                                 its file is written
    {"event": "failed", "t_s", "cell", "status", "phase", "message"}   so is that of a failure

Before the first event such a line is skipped: what a sitecustomize or a library says when it is imported
comes before the worker can turn it away. From then on only the worker holds the pipe, and what is no event
is a fault: an event may be lost with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from .store import STATUSES

Event = dict[str, Any]

#: Event -> its fields that the parent relies on.
_FIELDS = {
    "start": {"cell": str, "t_s": int | float},
    "phase": {"cell": str, "t_s": int | float, "architecture": str, "phase": str},
    "wait": {"cell": str},
    "done": {"cell": str},
    "failed": {"cell": str, "status": str, "message": str},
}
#: Bytes of one event: messages are cut long before.
_LONGEST = 1 << 20


class NoEvent(Exception):
    """The worker wrote something that is no event; the message says what."""


class Reader:
    """Events from the bytes of a pipe, of a worker that measures these cells."""

    def __init__(self, cells: Collection[str]) -> None:
        self._cells, self._rest, self._begun = cells, b"", False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete. Raises NoEvent."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if (event := self._event(line)) is not None:
                self._begun = True
                yield event
            elif self._begun:
                raise NoEvent(f"the worker wrote what is no event: {_shown(line)}")
        if len(self._rest) > _LONGEST:
            if self._begun:
                raise NoEvent(f"the worker wrote a line without end: {_shown(self._rest)}")
            self._rest = b"?"  # still of that line

    def _event(self, line: bytes) -> Event | None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested beyond measure
            return None
        fields = _FIELDS.get(str(event.get("event"))) if isinstance(event, dict) else None
        if fields is None or not all(isinstance(event.get(name), kind) for name, kind in fields.items()):
            return None
        if event["cell"] not in self._cells or event.get("status", "crash") not in STATUSES[1:]:
            return None
        return event


def _shown(line: bytes) -> str:
    """The beginning of a line, in characters that a terminal and a page can show."""
    return ascii(line[:80].decode(errors="replace")) + ("…" if len(line) > 80 else "")
