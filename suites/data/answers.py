"""What a server may say instead of sending a file, or that none says anything; which of it may pass."""

from __future__ import annotations

import contextlib
import email.utils
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .faults import Unavailable

if TYPE_CHECKING:
    import requests

PASSING = (429, 500, 502, 503, 504)


class Again(Exception):
    """A fault that may pass: (what happened, seconds that the server asks to wait)."""


class Unreached(Again):
    """No server answered."""


class NoServer(Unavailable):
    """No server answered, however often it was asked; whoever knows the set says what to import instead."""


def unreached(url: str, reason: str) -> NoServer:
    """The sentence for a machine without network."""
    return NoServer(f"{urlsplit(url).netloc} cannot be reached ({reason}).")


@contextlib.contextmanager
def asking(url: str) -> Iterator[None]:
    """Turn what `requests` raises into Again, or Unavailable where the next try would end alike."""
    import requests

    try:
        yield
    except requests.exceptions.TooManyRedirects:
        raise Unavailable(f"{url} redirects without end.") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise Unavailable(f"{url} leads to no valid address ({reason_of(error)}).") from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Unreached(reason_of(error), 0.0) from None
    except requests.RequestException as error:
        raise Again(reason_of(error), 0.0) from None


def refuse(answer: requests.Response, url: str) -> None:
    """Raise Again or Unavailable for an answer that is no file."""
    said = f"the server says {answer.status_code} {answer.reason}"
    if answer.status_code in PASSING:
        raise Again(said, asked_wait_s(answer))
    if answer.status_code not in (200, 206):
        raise Unavailable(f"{url} could not be fetched: {said}.")
    if url.startswith("https:") and not answer.url.startswith("https:"):
        raise Unavailable(f"{url} redirects to an address without https.")


def asked_wait_s(answer: requests.Response) -> float:
    """Retry-After in seconds, which is a number of them or a date; 0 where it says nothing."""
    wait = answer.headers.get("Retry-After", "").strip()
    if wait.isdecimal():
        return float(wait)
    try:
        until = email.utils.parsedate_to_datetime(wait)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def reason_of(error: BaseException) -> str:
    """The innermost cause, in few words: libraries wrap it several times."""
    while (inner := getattr(error, "reason", None) or error.__cause__ or error.__context__) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return (text or type(error).__name__)[:200].rstrip(".")
