"""`kvmark data ...`: what it prints, what it asks, and its exit codes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from data_rows import LM_EVAL, SCROLLS, jsonl, scrolls_zip, tree
from harness_help import ROOT
from typer.testing import CliRunner

from harness.data_commands import app
from suites.data import catalogue
from suites.data.catalogue import CATALOGUE, Remote

pytest_plugins = ("data_server",)
#: Read here, since tests look at no data but their own.
GENUINE = os.environ.get("KVMARK_DATA")
ROWS = [{**row, "input": row["input"] + os.urandom(10_000).hex()} for row in SCROLLS["qmsum"]]
OK, DIFFERS, USAGE, ENVIRONMENT = 0, 1, 2, 3


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    for name in ("KVMARK_DATA", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def qmsum(server, tmp_path, monkeypatch) -> str:
    """SCROLLS's qmsum, published by a local server; 120 kB, so that it comes in several pieces."""
    raw = scrolls_zip(tmp_path / "a.zip", "qmsum", ROWS).read_bytes()
    server.files["/qmsum.zip"] = raw
    remote = Remote(f"{server.url}/qmsum.zip", hashlib.sha256(raw).hexdigest(), len(raw))
    known = replace(CATALOGUE["scrolls/qmsum"], files=(remote,), bytes=len(raw))
    monkeypatch.setitem(catalogue.CATALOGUE, "scrolls/qmsum", known)
    return "scrolls/qmsum"


def ask(*arguments: str, code: int = OK):
    done = CliRunner().invoke(app, list(arguments))
    broke = done.exception if not isinstance(done.exception, SystemExit) else None
    assert broke is None and done.exit_code == code, (broke, done.output)
    return done


def test_list_shows_every_set_with_its_licence_and_where_it_is(root, tmp_path):
    before = ask("list").stdout
    assert all(name in before for name in CATALOGUE)
    assert "CC BY-SA 4.0" in before and "8.05 GB" in before and str(root) in before
    ask("import", str(scrolls_zip(tmp_path / "qmsum.zip", "qmsum")))
    line = next(line for line in ask("list").stdout.splitlines() if "scrolls/qmsum" in line)
    assert "cache" in line and "scrolls:qmsum@" in line
    (tmp_path / "piqa.jsonl").write_bytes(jsonl(LM_EVAL["piqa"]))
    said = f"sha256 {hashlib.sha256(jsonl(LM_EVAL['piqa'])).hexdigest()[:12]}"
    assert f"lm_eval/piqa: 1 rows, {said} (no" in ask("import", str(tmp_path / "piqa.jsonl")).stdout
    shown = ask("list").stdout
    assert "label or hash" in shown and said in shown and "lm_eval:piqa@" not in shown


def test_fetch_shows_licence_and_size_and_then_fetches(qmsum, root):
    done = ask("fetch", qmsum, "--yes")
    assert "MIT" in done.stdout and "published" in done.stdout and str(root) in done.stdout
    assert "scrolls:qmsum@" in done.stdout and "published checksum" in done.stdout
    assert (root / "scrolls/qmsum/validation.jsonl").read_bytes() == jsonl(ROWS)
    assert "ok       scrolls/qmsum" in ask("verify").stdout


def test_what_is_here_is_not_fetched_again_unless_asked(qmsum, server):
    ask("fetch", qmsum, "--yes")
    assert "is here already" in ask("fetch", qmsum, "--yes").stdout
    assert len(server.asked("/qmsum.zip")) == 1
    ask("fetch", qmsum, "--yes", "--again")
    assert len(server.asked("/qmsum.zip")) == 2


def test_nothing_is_fetched_unasked(qmsum, root, server):
    done = ask("fetch", qmsum, code=USAGE)
    assert "say --yes" in done.stderr and not root.exists() and server.requests == []


def test_wrong_names_and_paths_are_usage_errors(tmp_path):
    assert "There is no set 'qmsum'" in ask("fetch", "qmsum", "--yes", code=USAGE).stderr
    assert "There is no file or folder" in ask("import", str(tmp_path / "no"), code=USAGE).stderr
    (tmp_path / "qmsum.jsonl").write_bytes(jsonl(SCROLLS["quality"]))
    sentence = ask("import", str(tmp_path / "qmsum.jsonl"), code=USAGE).stderr
    assert sentence == "kvmark: qmsum.jsonl holds rows of quality, not of qmsum.\n"


@pytest.mark.parametrize("fault", ["404", "gone", "forged", "offline", "claimed"])
def test_what_the_environment_refuses_is_code_3_and_one_sentence(qmsum, server, root, monkeypatch, fault):
    if fault == "404":
        server.always["/qmsum.zip"] = "404"
    if fault == "gone":
        known = catalogue.CATALOGUE[qmsum]
        remote = replace(known.files[0], url="http://127.0.0.1:9/qmsum.zip")
        monkeypatch.setitem(catalogue.CATALOGUE, qmsum, replace(known, files=(remote,)))
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    if fault == "forged":
        server.files["/qmsum.zip"] = os.urandom(len(server.files["/qmsum.zip"]))
    if fault == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if fault == "claimed":
        root.write_text("a file is where the cache folder should be")
    done = ask("fetch", qmsum, "--yes", code=ENVIRONMENT)
    assert done.stderr.startswith("kvmark: ") and done.stderr.count("\n") == 1
    assert root.is_file() or not (root / "scrolls").exists()


def test_what_a_folder_of_the_users_hides_is_said(root, tmp_path, monkeypatch):
    (tmp_path / "mine" / "scrolls" / "qmsum").mkdir(parents=True)
    (tmp_path / "mine" / "scrolls" / "qmsum" / "validation.jsonl").write_bytes(jsonl(SCROLLS["qmsum"]))
    monkeypatch.setenv("KVMARK_DATA", str(tmp_path / "mine"))
    done = ask("import", str(scrolls_zip(tmp_path / "qmsum.zip", "qmsum", ROWS)))
    assert "KVMARK_DATA has scrolls/qmsum too, and is read first." in done.stdout


def test_verify_says_by_its_code_that_something_differs(root, tmp_path):
    assert "No set is here" in ask("verify").stdout
    ask("import", str(scrolls_zip(tmp_path / "qmsum.zip", "qmsum")))
    ask("verify")
    (root / "scrolls/qmsum/validation.jsonl").write_bytes(jsonl(SCROLLS["qmsum"][:1]))
    assert "differs  scrolls/qmsum" in ask("verify", code=DIFFERS).stdout


def test_an_interrupted_fetch_goes_on(qmsum, server, root):
    """A real process, a real Ctrl-C in the middle of the body, and the rest by Range."""
    raw = server.files["/qmsum.zip"]
    server.always["/qmsum.zip"] = f"cut:{len(raw) // 2}"
    code = (
        "import os, signal, sys\nfrom dataclasses import replace\n"
        "from suites.data import catalogue, transfer\n"
        "from harness.data_commands import app\n"
        "known = catalogue.CATALOGUE['scrolls/qmsum']\n"
        "remote = catalogue.Remote(sys.argv[1], sys.argv[2], int(sys.argv[3]))\n"
        "catalogue.CATALOGUE['scrolls/qmsum'] = replace(known, files=(remote,), bytes=remote.bytes)\n"
        "transfer.time.sleep = lambda seconds: os.kill(os.getpid(), signal.SIGINT)\n"
        "app(['fetch', 'scrolls/qmsum', '--yes'])\n"
    )
    remote = catalogue.CATALOGUE[qmsum].files[0]
    arguments = [sys.executable, "-c", code, remote.url, remote.sha256, str(remote.bytes)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and "the same command goes on" in done.stderr, done.stderr
    (part,) = (root / ".partial").rglob("*.part")
    have = part.stat().st_size
    assert 0 < have < len(raw)
    server.always.clear()
    ask("fetch", qmsum, "--yes")
    assert server.asked("/qmsum.zip")[-1] == f"bytes={have}-"
    assert ".partial" not in {Path(path).parts[0] for path in tree(root)}


@pytest.mark.full
@pytest.mark.skipif(GENUINE is None, reason="KVMARK_DATA names no folder with genuine data")
def test_genuine_data_comes_in_and_holds(monkeypatch):
    done = ask("import", str(GENUINE))
    assert "pg19:test@" in done.stdout and "scrolls:qmsum@" in done.stdout
    labels = set(re.findall(r"\S+@[0-9a-f]{12}", done.stdout))
    monkeypatch.setenv("KVMARK_DATA", str(GENUINE))
    assert "differs" not in ask("verify").stdout
    assert labels <= set(re.findall(r"\S+@[0-9a-f]{12}", ask("list").stdout)), "packed or not, a label is one"
