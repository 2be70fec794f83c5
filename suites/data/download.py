"""One file over HTTP: resumed, repeated after passing faults, checked.

What arrived stays in `FILE.part` until it is whole, with the server's ETag (or date) beside it. The next try
asks for the rest by Range and If-Range, so a file that changed meanwhile comes anew instead of being glued;
without an ETag or a date, also in the answer, nothing is resumed. Repeated are: no connection, broken and
short bodies, 429, 500, 502, 503, 504 (not before Retry-After; more than ten minutes are not waited), and once
from the start what was joined of several answers and has another SHA-256. The rest is one sentence, and so is
a body that is longer than stated, has another SHA-256, or comes by a redirect from https to http. Proxies and
certificates are those that `requests` finds.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from .answers import Again, Unreached, asking, unreached
from .catalogue import HUB, Remote
from .faults import Unavailable, writing
from .transfer import HEADERS, Get, Hear, Patience, attempt, forget, joined, size

PATIENCE = Patience()


def download(
    remote: Remote,
    target: Path,
    hear: Hear = lambda done, total: None,
    patience: Patience = PATIENCE,
    get: Get | None = None,
) -> None:
    """Fetch to `target`, which appears whole or not at all. Raises Unavailable.

    `get` is `requests.get` or that of a session, whose connection is used again.
    """
    url = address(remote.url)
    part = target.with_name(f"{target.name}.part")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _whole(url, remote, part, hear, patience, get)
    found = sha256(part)
    if remote.sha256 not in (None, found) and joined(part):
        forget(part)  # its pieces may have been of several files: once more, from the start
        _whole(url, remote, part, hear, patience, get)
        found = sha256(part)
    if remote.sha256 not in (None, found):
        forget(part)
        raise Unavailable(
            f"{url} differs from its checksum: sha256 {found[:12]} came, {remote.sha256[:12]} is published."
        )
    with writing(target):
        os.replace(part, target)
    forget(part)


def sha256(path: Path) -> str:
    """Of the file as it lies there."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def address(url: str) -> str:
    """Where to ask: a hub's mirror in HF_ENDPOINT takes the hub's place."""
    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return mirror + url.removeprefix(HUB) if mirror and url.startswith(f"{HUB}/") else url


def size_of(remote: Remote, patience: Patience = PATIENCE) -> int | None:
    """Bytes that the server states, for files of unknown size; None if it states none. Raises Unavailable."""
    import requests

    url = address(remote.url)
    try:
        limits = (patience.connect_s, patience.read_s)
        with asking(url):
            answer = requests.head(url, allow_redirects=True, timeout=limits, headers=HEADERS)
    except Again as error:
        raise unreached(url, error.args[0]) from None
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.ok and length.isdecimal() else None


def _whole(url: str, remote: Remote, part: Path, hear: Hear, patience: Patience, get: Get | None) -> None:
    """Try until the part is as long as the file."""
    furthest = failures = 0
    while True:
        try:
            return attempt(url, remote, part, hear, patience, get)
        except Again as error:
            fault, (reason, asked_s) = error, error.args
        furthest, failures = (size(part), 1) if size(part) > furthest else (furthest, failures + 1)
        if asked_s > patience.most_asked_s:
            raise Unavailable(
                f"{url} could not be fetched: {reason} and asks to wait {asked_s:,.0f} s, "
                f"more than the {patience.most_asked_s:,.0f} s that are waited."
            )
        wait_s = patience.wait_s(failures, asked_s)
        if failures >= patience.tries or time.monotonic() + wait_s > patience.deadline:
            if isinstance(fault, Unreached) and not furthest:
                raise unreached(url, reason)
            raise Unavailable(f"{url} could not be fetched: {reason}.")
        time.sleep(wait_s)
