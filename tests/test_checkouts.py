"""A second checkout comes and goes, however the `with` ends, and leaves the repository as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from git_help import committed, git, worktrees

from harness.checkouts import checkout_of
from harness.errors import UsageError


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "file.txt").write_text("old")
    committed(folder, "old")
    git(folder, "tag", "v1")
    (folder / "file.txt").write_text("new")
    committed(folder, "new")
    (folder / "file.txt").write_text("not committed")
    return folder


@pytest.mark.parametrize("revision", ["v1", "HEAD~1", "HEAD^"])
def test_it_holds_the_revision_and_nothing_else_changes(repository, revision):
    before = git(repository, "status", "--porcelain", "--branch")
    with checkout_of(revision, repository) as base:
        assert (base.root / "file.txt").read_text() == "old"
        assert base.commit == git(repository, "rev-parse", "v1")
        assert git(base.root, "rev-parse", "HEAD") == base.commit
        assert not git(base.root, "branch", "--show-current")
    assert not base.root.parent.exists() and worktrees(repository) == 1
    assert git(repository, "status", "--porcelain", "--branch") == before
    assert (repository / "file.txt").read_text() == "not committed"


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_goes_away_however_the_with_ends(repository, end):
    with pytest.raises(end), checkout_of("v1", repository) as base:
        raise end
    assert not base.root.parent.exists() and worktrees(repository) == 1


def test_a_checkout_that_was_interrupted_halfway_is_still_locked_and_goes_away(repository):
    with checkout_of("v1", repository) as base:
        git(repository, "worktree", "lock", str(base.root))
    assert not base.root.parent.exists() and worktrees(repository) == 1


def test_a_cancelled_job_leaves_nothing(repository):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), checkout_of("v1", repository) as base:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert not base.root.parent.exists() and worktrees(repository) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_killed_gate_left_is_forgotten(repository):
    stale = Path(git(repository, "rev-parse", "--show-toplevel")).parent / "stale"
    git(repository, "worktree", "add", "--detach", str(stale), "v1")
    for path in [*stale.iterdir(), stale]:
        path.rmdir() if path.is_dir() else path.unlink()
    assert worktrees(repository) == 2
    with checkout_of("v1", repository):
        assert worktrees(repository) == 2
    assert worktrees(repository) == 1


@pytest.mark.parametrize("revision", ["nowhere", "", "--all", "v1:file.txt", "0" * 40])
def test_what_is_no_commit_is_refused(repository, revision):
    with (
        pytest.raises(UsageError, match="is no commit of this repository"),
        checkout_of(revision, repository),
    ):
        raise AssertionError("checked out")
    assert worktrees(repository) == 1


def test_without_git_there_is_no_base(repository, tmp_path, monkeypatch):
    """Neither in a folder of a foreign repository, nor where git is not installed."""
    (repository / "inside").mkdir()
    for folder in (tmp_path, repository / "inside"):
        with pytest.raises(UsageError, match="git checkout"), checkout_of("v1", folder):
            raise AssertionError("checked out")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="git checkout"), checkout_of("v1", repository):
        raise AssertionError("checked out")
