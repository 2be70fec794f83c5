"""A second checkout of this repository at another revision, for as long as a `with` lasts.

    with checkout_of("main") as base:
        base.root, base.commit

`git worktree` shares the objects with the repository and leaves its index and its branches alone. The folder
lies in the system's temporary folder, detached, and goes away however the `with` ends: by itself, by an
error, by Ctrl-C, or by the SIGTERM with which a CI system cancels a job. What a SIGKILL leaves behind is
forgotten by git at the next call, once the temporary folder is cleaned.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import ROOT
from .errors import UsageError


@dataclass(frozen=True)
class Checkout:
    """Sources in a folder, and the commit that they were checked out from."""

    root: Path
    commit: str


@contextmanager
def checkout_of(revision: str, root: Path = ROOT) -> Iterator[Checkout]:
    """Check `revision` of the repository at `root` out. Raises UsageError, one sentence."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        raise UsageError(
            "--base needs kvmark to run from a git checkout, and this one is none; "
            "two finished runs are gated by kvmark gate BASE HEAD."
        )
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise UsageError(
            f"'{revision}' is no commit of this repository; a shallow clone lacks older ones "
            "(git fetch --unshallow)."
        )
    _git(root, "worktree", "prune")
    with _cancelled_like_ctrl_c():
        folder = Path(tempfile.mkdtemp(prefix="kvmark-base-"))
        place = folder / "checkout"
        try:
            if (said := _failed(root, "worktree", "add", "--detach", str(place), commit)) is not None:
                raise UsageError(f"git could not check '{revision}' out ({said}).")
            yield Checkout(place, commit)
        finally:
            # Twice --force: also where it is still locked because `add` was interrupted.
            _git(root, "worktree", "remove", "--force", "--force", str(place))
            shutil.rmtree(folder, ignore_errors=True)
            _git(root, "worktree", "prune")


@contextmanager
def _cancelled_like_ctrl_c() -> Iterator[None]:
    """SIGTERM would end Python where it stands, and the folder would stay."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Hooks and variables of a surrounding git (a `git bisect run`, a hook) speak of another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-C", str(root), *arguments],
        check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment,
        start_new_session=True,  # Ctrl-C is ours: a half-written worktree is removed by us
    )  # fmt: skip


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None if it fails or is not installed."""
    try:
        done = _run(root, *arguments)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _failed(root: Path, *arguments: str) -> str | None:
    """Why git failed, its last line; None if it did not."""
    done = _run(root, *arguments)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1].rstrip(".")
