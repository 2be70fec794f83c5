"""One request for what is missing of a file, and what its answer means.

The part that is here is continued only if the server says that it still has the same version (ETag or date);
a whole body in answer to a Range starts it anew.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .catalogue import Remote
from .faults import Unavailable, writing

if TYPE_CHECKING:
    import requests

PASSING = (429, 500, 502, 503, 504)
#: Nothing that is published without a size comes near this.
LARGEST = 64 << 30
PIECE = 1 << 14
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "kvmark"}
#: (bytes so far, bytes in all if known)
Hear = Callable[[int, int | None], None]
Get = Callable[..., "requests.Response"]


@dataclass(frozen=True)
class Patience:
    """Tries in a row without a new byte, seconds before the second (then doubled), seconds of silence."""

    tries: int = 4
    delay_s: float = 0.5
    most_delay_s: float = 60.0
    connect_s: float = 10.0
    read_s: float = 60.0
    #: On the clock of time.monotonic; for all tries together.
    deadline: float = float("inf")

    def wait_s(self, failures: int, asked_s: float) -> float:
        return min(self.most_delay_s, max(asked_s, self.delay_s * 2 ** (failures - 1)))


class Again(Exception):
    """A fault that may pass: (what happened, seconds that the server asks to wait)."""


class Unreached(Again):
    """No server answered."""


def unreached(url: str, reason: str) -> Unavailable:
    """The sentence for a machine without network."""
    host, file = urlsplit(url).netloc, url.rpartition("/")[2]
    return Unavailable(
        f"{host} cannot be reached ({reason}): get {file} on another machine and use `kvmark data import`."
    )


def attempt(url: str, remote: Remote, part: Path, hear: Hear, patience: Patience, get: Get | None) -> None:
    """Add to the part what is missing. Raises Again for a passing fault, Unavailable for another."""
    import requests

    have, tag = size(part), _tag(part, url)
    if not tag:
        have = 0
    headers = HEADERS | ({"Range": f"bytes={have}-", "If-Range": tag} if have else {})
    limits = (patience.connect_s, patience.read_s)
    try:
        with (get or requests.get)(url, stream=True, headers=headers, timeout=limits) as answer:
            if answer.status_code == 416 and have:  # nothing left to send, or the file is shorter now
                if answer.headers.get("Content-Range") == f"bytes */{have}":
                    return
                forget(part)
                raise Again("its size changed", 0.0)
            _refuse(answer, url)
            start, total = _extent(answer, have)
            if start and _version(answer) not in ("", tag):  # a server that has Range but not If-Range
                forget(part)
                raise Again("it changed", 0.0)
            limit = remote.bytes or total or LARGEST
            if total not in (None, limit):
                raise Unavailable(f"{url} has {total:,} bytes; {limit:,} are published.")
            done = _receive(answer, part, url, start, total, limit, hear, patience)
    except requests.exceptions.TooManyRedirects:
        raise Unavailable(f"{url} redirects without end.") from None
    except requests.exceptions.InvalidURL:
        raise Unavailable(f"{url} leads to no valid address.") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Unreached(reason_of(error), 0.0) from None
    except requests.RequestException as error:
        raise Again(reason_of(error), 0.0) from None
    if done < (total if total is not None else remote.bytes or 0):
        raise Again(f"only {done:,} bytes came", 0.0)


def _refuse(answer: requests.Response, url: str) -> None:
    if answer.status_code in PASSING:
        wait = answer.headers.get("Retry-After", "")
        asked_s = float(wait) if wait.isdigit() else 0.0
        raise Again(f"the server says {answer.status_code} {answer.reason}", asked_s)
    if answer.status_code not in (200, 206):
        raise Unavailable(
            f"{url} could not be fetched: the server says {answer.status_code} {answer.reason}."
        )
    if url.startswith("https:") and not answer.url.startswith("https:"):
        raise Unavailable(f"{url} redirects to an address without https.")


def _extent(answer: requests.Response, have: int) -> tuple[int, int | None]:
    """(where the body starts in the file, bytes of the whole file if stated)."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            raise Unavailable(f"{answer.url} sent another range than was asked for.")
        return have, int(found[2])
    length = answer.headers.get("Content-Length", "")
    coded = answer.headers.get("Content-Encoding", "identity") != "identity"
    return 0, int(length) if length.isdigit() and not coded else None


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
                noted = {"url": url, "tag": _version(answer)}
                _beside(part).write_text(json.dumps(noted), encoding="utf-8")
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


def _tag(part: Path, url: str) -> str:
    """What the server called this version of the file; empty if nobody knows."""
    try:
        noted = json.loads(_beside(part).read_text(encoding="utf-8"))
        return str(noted["tag"]) if noted["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def size(part: Path) -> int:
    """Bytes that are here."""
    return part.stat().st_size if part.is_file() else 0


def forget(part: Path) -> None:
    """Nothing came."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def reason_of(error: BaseException) -> str:
    """The innermost cause, in few words: libraries wrap it several times."""
    while (inner := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return (text or type(error).__name__)[:200].rstrip(".")
