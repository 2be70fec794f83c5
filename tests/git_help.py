"""Small repositories to check out from."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *own, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def committed(folder: Path, message: str) -> str:
    """Commit all that lies there, into a new repository if there is none; returns the commit."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--force", "--all", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def worktrees(folder: Path) -> int:
    """How many checkouts the repository knows, itself included."""
    return git(folder, "worktree", "list", "--porcelain").count("worktree ")
