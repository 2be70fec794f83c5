"""`kvmark gate --base` with real processes, on a repository of its own, and the sides it drives."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from git_help import committed, worktrees
from harness_help import Bench, one_sentence, tree, wait_for

#: Head's toy keeps a copy of what it was fed.
EXTRA = """
    def extend(self, tokens_BT, valid_BT, cache, logits="last"):
        next(iter(cache.states.values())).fed = tokens_BT.clone()
        return super().extend(tokens_BT, valid_BT, cache, logits)
"""
ASKED = (
    *("--arch", "transformer", "--arch", "gone", "--arch", "fat", "--arch", "fresh", "--shape", "tiny"),
    *("--suite", "decode:contexts=32,new_tokens=3", "--repeats", "1", "--replicates", "2"),
)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def sides_of(bench: Bench) -> list[str]:
    """Sides that still run, of whichever checkout: they were started in the bench's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "harness.side" in words and path.with_name("cwd").resolve() == bench.cwd.resolve():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def sources(bench: Bench) -> dict[str, bytes]:
    """What lies in the checkout, without the repository and what Python compiled meanwhile."""
    apart = (".git", "__pycache__")
    return {name: held for name, held in tree(bench.source).items() if not {*Path(name).parts} & {*apart}}


def test_a_base_that_is_older_than_the_gate_is_told(bench):
    side = bench.source / "harness" / "side.py"
    content = side.read_bytes()
    side.unlink()
    committed(bench.source, "old")
    side.write_bytes(content)
    done = bench.run("gate", "--base", "HEAD", *ASKED)
    assert "older than kvmark gate" in one_sentence(done, 3) and worktrees(bench.source) == 1
    assert tree(bench.cwd) == {}


@pytest.mark.full
def test_a_gate_is_interrupted_goes_on_and_sees_what_head_changed(bench):
    """Head has lost one architecture, gained one, and made one hold more."""
    bench.toy("gone")
    bench.toy("fat")
    committed(bench.source, "base")
    (bench.source / "models" / "architectures" / "gone.py").unlink()
    bench.toy("fresh")
    fat = bench.source / "models" / "architectures" / "fat.py"
    fat.write_text(fat.read_text() + EXTRA)
    before = sources(bench)

    process = bench.start("gate", "--base", "HEAD", *ASKED)
    finished = wait_for(lambda: sorted(bench.cwd.glob("results/local/gate-run-*/base/cells/[!.]*.parquet")))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip().splitlines()[-1].startswith("kvmark: Interrupted")
    assert "Traceback" not in err and worktrees(bench.source) == 1 and sides_of(bench) == []
    kept = {path: path.read_bytes() for path in finished}

    done = bench.run("gate", "--base", "HEAD", *ASKED, "--json", "g.json")
    assert done.code == 1 and done.err == "", (done.out, done.err)
    assert {path: path.read_bytes() for path in kept} == kept
    found = json.loads((bench.cwd / "g.json").read_text())
    said = {(f["verdict"], f["architecture"], f["metric"]) for f in found["findings"]}
    assert {v[:2] for v in said if v[0] in ("MISSING", "NEW")} == {("MISSING", "gone"), ("NEW", "fresh")}
    assert {v for v in said if v[0] == "MORE"} == {("MORE", "fat", "cache_bytes_live")}
    assert {f["verdict"] for f in found["findings"] if f["kind"] == "latency"} == {"INSUFFICIENT"}
    assert any("head does not know gone" in note for note in found["notes"])
    assert found["base"]["dirty"] is False and found["head"]["dirty"] is True
    assert worktrees(bench.source) == 1 and sides_of(bench) == []
    assert sources(bench) == before


@pytest.mark.full
def test_what_neither_side_knows_is_a_mistake_of_the_users(bench):
    committed(bench.source, "base")
    done = bench.run("gate", "--base", "HEAD", *ASKED)
    assert "Unknown architecture" in one_sentence(done, 2) and worktrees(bench.source) == 1
