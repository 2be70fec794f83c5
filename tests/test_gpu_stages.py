"""The script for a GPU, on a CPU: stages end or are cut off, go on, and hand out what they did.

The kernel table runs with every contestant that this machine has, in the interpreter and at tiny sizes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from harness_help import ROOT

FOLDER = ROOT / "tests" / "gpu"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("stages", FOLDER / "stages.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stages", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


#: Counts its starts in a file of its stage; sleeps in the first, as a run that is cut off.
SLOW = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1], "starts")
starts = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(starts))
pathlib.Path(sys.argv[1], "x.training.pt").write_text("state")
if starts == 1:
    time.sleep(600)
"""


def stage(script, name, code, *more, **options):
    return script.Stage(name, ((sys.executable, "-c", code, "{work}", *more),), **options)


def test_the_order_is_that_of_their_worth(script):
    assert list(script.stages()) == [
        "tests", "ceilings", "paper-yoco", "kernels", "paper-tova", "paper-lococo", "train-transformer",
        "train-yoco-swa", "train-yoco-retention",
    ]  # fmt: skip
    assert all(one.limit_s <= 540 for one in script.stages().values())
    compiled = [word for word in script.stages()["tests"].commands[0] if word.endswith(".py")]
    assert {os.path.basename(path) for path in compiled} == {"test_kernels.py", "test_implementations.py"}


def test_a_stage_that_is_cut_off_goes_on_elsewhere(script, tmp_path, capsys):
    known = {
        "quick": stage(script, "quick", "print('said')"),
        "broken": stage(script, "broken", "raise SystemExit(3)"),
        "slow": stage(script, "slow", SLOW, limit_s=1.5),
        "data": stage(script, "data", "", "{data}", needs_data=True),
    }
    out = tmp_path / "out"
    first = ["--out", str(out), "--work", str(tmp_path / "one")]
    assert script.main(first, known) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" after ")[0] for line in lines] == [
        "quick: ended", "broken: failed", "slow: unfinished", "data: not begun: it needs --data",
    ]  # fmt: skip
    assert "(exit code 3)" in lines[1]

    # Another machine: what ended is not done again, what was cut off goes on with its files.
    second = ["--out", str(tmp_path / "out2"), "--work", str(tmp_path / "two"), "--from", str(out)]
    assert script.main(["quick", "slow", *second], known) == 0
    assert capsys.readouterr().out.startswith("quick: ended before\nslow: ended after")
    assert (tmp_path / "two" / "slow" / "starts").read_text() == "2"
    assert (tmp_path / "two" / "quick" / "log.txt").read_text() == "said\n"
    # States of trainings are too large to travel.
    (tmp_path / "three").mkdir()
    script.take_in(tmp_path / "out2", tmp_path / "three")
    assert sorted(path.name for path in (tmp_path / "three" / "slow").iterdir()) == [
        "log.txt", "stage.json", "starts",
    ]  # fmt: skip
    assert not (tmp_path / "three" / "quick").exists(), "handed out before"


def test_parts_are_put_together_in_order(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PART_BYTES", 1000)
    work = tmp_path / "work" / "one"
    work.mkdir(parents=True)
    noise = bytes(pd.Series(range(12_000)).mul(7919).mod(251).astype("uint8")) + os.urandom(12_000)
    (work / "weights").write_bytes(noise)
    found = script.hand_out(work.parent, tmp_path / "out", ["one"])
    assert len(found) > 10 and max(path.stat().st_size for path in found) <= 1000
    script.take_in(tmp_path / "out", tmp_path / "there")
    assert (tmp_path / "there" / "one" / "weights").read_bytes() == noise
    (work / "weights").write_bytes(b"little")
    assert len(script.hand_out(work.parent, tmp_path / "out", ["one"])) == 1, "old parts are gone"


@pytest.mark.parametrize("wrong, said", [
    (["--out", "x", "nonsense"], "known: tests, ceilings"), ([], "--out is needed"),
    (["--out", "x", "train-yoco-swa"], "need --data"),
    (["--out", "x", "--from", "nowhere"], "holds no gpu.tar.gz"),
])  # fmt: skip
def test_wrong_options(script, capsys, wrong, said):
    with pytest.raises(SystemExit) as stopped:
        script.main(wrong)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_table_has_every_operation_and_contestant(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("KVMARK_CEILINGS", "0")
    command = [FOLDER / "kernel_table.py", "--out", tmp_path, "--device", "cpu", "--tiny", "--rounds", "2"]
    command += ["--samples", "1"]
    done = subprocess.run(
        [sys.executable, *map(str, command)], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    found = pd.read_parquet(tmp_path / "kernels.parquet").set_index(["op", "who"])
    ours = found.xs("ours", level="who")
    operations = {path.parent.name for path in (ROOT / "models" / "kernels").glob("*/fused.py")}
    assert set(ours.index) == operations and (ours.status == "ok").all()
    assert (ours.worst <= 1.6e-2).all() and (ours.time_s > 0).all()
    # Whoever is not there says so, and has no time.
    absent = found[found.status != "ok"]
    assert absent.time_s.isna().all() and absent.message.notna().all()
    assert (found[found.status == "ok"].samples == 2).all() and "| column_sums |" in done.stdout
    # Unknown ceilings are no floor.
    assert found.floor_s.isna().all() and json.loads((tmp_path / "kernels.json").read_text())["machine"]["id"]
