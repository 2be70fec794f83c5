"""A stream may be as long as it likes: under a budget the process does not grow with what it has read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_help import PROSE

BENCHMARK = Path(__file__).parent / "peers" / "bench_stream.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("spec", ["h2o:budget=128"])  # which keeps most: scores, as no other does
def test_memory_stays_flat_while_a_stream_is_scored(tmp_path, spec):
    """Second quarter against last: whatever is kept of each segment between large temporaries shows here."""
    (tmp_path / "story.txt").write_text(PROSE[:17_000] * 4, encoding="utf-8")
    command = [sys.executable, str(BENCHMARK), "--book", str(tmp_path / "story.txt"), "--only", spec]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["streams"][spec]
    assert found["tokens"] > 65_536 and found["evicted"] > 4 * 65_000
    assert found["grown"] <= 2 * 2**20, done.stdout
