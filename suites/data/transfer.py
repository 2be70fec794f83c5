"""One request for what is missing of a file, and what its answer means.

The part that is here is continued only if the answer itself has the version of the part (ETag or date); a
whole body in answer to a Range starts it anew.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answers import Again, asking, refuse
from .catalogue import Remote
from .faults import Unavailable, writing

if TYPE_CHECKING:
    import requests

#: Nothing that is published without a size comes near this.
LARGEST = 64 << 30
PIECE = 1 << 14
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "kvmark"}
#: (bytes so far, bytes in all if known)
Hear = Callable[[int, int | None], None]
Get = Callable[..., "requests.Response"]


@dataclass(frozen=True)
class Patience:
    """Tries in a row without a new byte, seconds before the second (then doubled), seconds of silence.

    A server that asks for more seconds (Retry-After) gets them, up to `most_asked_s`.
    """

    tries: int = 4
    delay_s: float = 0.5
    most_delay_s: float = 60.0
    most_asked_s: float = 600.0
    connect_s: float = 10.0
    read_s: float = 60.0
    #: On the clock of time.monotonic; for all tries together.
    deadline: float = float("inf")

    def wait_s(self, failures: int, asked_s: float) -> float:
        return max(asked_s, min(self.most_delay_s, self.delay_s * 2 ** (failures - 1)))


def attempt(url: str, remote: Remote, part: Path, hear: Hear, patience: Patience, get: Get | None) -> None:
    """Add to the part what is missing. Raises Again for a passing fault, Unavailable for another."""
    import requests

    tag = _tag(part, url)
    have = size(part) if tag else 0
    headers = HEADERS | ({"Range": f"bytes={have}-", "If-Range": tag} if have else {})
    limits = (patience.connect_s, patience.read_s)
    if have and not joined(part):
        _note(part, url, tag, joined=True)
    with asking(url), (get or requests.get)(url, stream=True, headers=headers, timeout=limits) as answer:
        if answer.status_code == 416 and have:  # nothing left to send, or the file is shorter now
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            forget(part)
            raise Again("its size changed", 0.0)
        refuse(answer, url)
        start, total = _extent(answer, have)
        if start and _version(answer) != tag:  # a server that has Range but not If-Range
            forget(part)
            raise Again("it changed", 0.0)
        limit = remote.bytes or total or LARGEST
        if total not in (None, limit):
            raise Unavailable(f"{url} has {total:,} bytes; {limit:,} are published.")
        done = _receive(answer, part, url, start, total, limit, hear, patience)
    if done < (total if total is not None else remote.bytes or 0):
        raise Again(f"only {done:,} bytes came", 0.0)


def _extent(answer: requests.Response, have: int) -> tuple[int, int | None]:
    """(where the body starts in the file, bytes of the whole file if stated)."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            raise Unavailable(f"{answer.url} sent another range than was asked for.")
        return have, int(found[2])
    length = answer.headers.get("Content-Length", "")
    coded = answer.headers.get("Content-Encoding", "identity") != "identity"
    return 0, int(length) if length.isdecimal() and not coded else None


def _version(answer: requests.Response) -> str:
    """What If-Range may hold: a strong ETag or a date."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")


def _receive(
    answer: requests.Response, part: Path, url: str, start: int, total: int | None, limit: int,
    hear: Hear, patience: Patience,
) -> int:  # fmt: skip
    """Write the body behind `start`; the size of the part then."""
    done = start
    with contextlib.ExitStack() as stack:
        with writing(part):
            if not start:
                part.unlink(missing_ok=True)  # first of all: a part must never have another's tag
                _note(part, url, _version(answer))
            file = stack.enter_context(part.open("ab" if start else "wb"))
        for piece in answer.iter_content(PIECE):
            done += len(piece)
            if done > limit:
                forget(part)
                raise Unavailable(f"{url} sends more than {limit:,} bytes.")
            with writing(part):
                file.write(piece)
                file.flush()
            hear(done, total)
            if time.monotonic() > patience.deadline:
                raise Unavailable(f"{url} is too slow.")
    return done


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _note(part: Path, url: str, tag: str, joined: bool = False) -> None:
    """Keep what the part is of, and whether bytes of several answers were joined in it."""
    noted = {"url": url, "tag": tag, "joined": joined}
    with writing(part):
        _beside(part).write_text(json.dumps(noted), encoding="utf-8")


def _noted(part: Path) -> dict[str, Any]:
    """What was kept; empty if nobody knows."""
    try:
        noted = json.loads(_beside(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _tag(part: Path, url: str) -> str:
    """What the server called this version of the file; empty if nobody knows."""
    noted = _noted(part)
    return str(noted.get("tag", "")) if noted.get("url") == url else ""


def joined(part: Path) -> bool:
    """Whether bytes of several answers were joined, which may have been of different files."""
    return bool(_noted(part).get("joined"))


def size(part: Path) -> int:
    """Bytes that are here."""
    return part.stat().st_size if part.is_file() else 0


def forget(part: Path) -> None:
    """Nothing came."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)
