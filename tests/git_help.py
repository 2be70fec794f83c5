"""Small repositories to check out from."""

from __future__ import annotations

import subprocess
from pathlib import Path

_OWN = ("user.name=t", "user.email=t@localhost", "commit.gpgsign=false", "core.excludesFile=")


def git(folder: Path, *arguments: str) -> str:
    own = [word for setting in _OWN for word in ("-c", setting)]
    return subprocess.run(
        ["git", *own, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def committed(folder: Path, message: str) -> str:
    """Commit all that lies there and is not ignored, into a new repository if there is none; the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def worktrees(folder: Path) -> int:
    """How many checkouts the repository knows, itself included."""
    return git(folder, "worktree", "list", "--porcelain").count("worktree ")
