"""Where the noise of a machine is kept, who finds it there, and what it does to a gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_help import ask, one_sentence
from comparison_help import slower, write

from harness.calibration import keep, kept, place
from harness.comparison import Rules, compare
from harness.gate_rules import finished
from harness.store import StoreError

GPU = {"device": "cuda"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))


def pair(noise: float = 0.02, **changes):
    return [write(Path(f"r{noise}-{seed}"), noise=noise, seed=seed, **GPU, **changes) for seed in (0, 1)]


def calibrated(noise: float, **changes):
    base, head = pair(noise, **changes)
    return keep(compare(base, head, Rules(only=("latency",))), base)


def test_it_is_found_again_by_what_the_numbers_were_measured_with():
    base, _ = pair()
    assert kept(base) is None
    found, path = calibrated(0.02)
    assert path == place(base) and path.is_relative_to("cache") or path.is_absolute()
    assert kept(base) == found and len(found.entries) == 8
    others = [
        {"machine": {"id": "m2"}},
        {"machine": {"packages": {"torch": "2.14.0"}}},
        {"settings": {"dtype": "bf16"}},
        {"settings": {"threads": 2}},
        {"settings": {"device": "cuda:1"}},
    ]
    for number, changes in enumerate(others):
        assert kept(write(Path(f"other{number}"), **GPU, **changes)) is None, changes


def test_a_second_calibration_replaces_its_own_points_and_keeps_the_others():
    calibrated(0.02, contexts=(256, 1024))
    before = kept(Path("r0.02-0")).entries
    found, _ = calibrated(0.1, contexts=(256,))
    now = kept(Path("r0.02-0"))
    assert len(found.entries) == 4 and len(now.entries) == 8
    assert {entry.axes for entry in found.entries} == {'{"batch": 1, "context": 256}'}
    assert set(found.entries) <= set(now.entries) and len(set(now.entries) & set(before)) == 4


def test_a_gate_takes_this_machines_noise_for_its_threshold():
    """Six per cent more, beyond doubt: too little on a machine whose equal runs lie as far apart."""
    base = write(Path("base"), noise=0.002, seed=0, **GPU)
    head = write(Path("head"), noise=0.002, seed=1, speed=slower(1.06), **GPU)
    assert finished(base, head, Rules()).exit_code == 1
    calibrated(0.2)
    found = finished(base, head, Rules())
    assert found.exit_code == 0 and all(f.threshold > 0.06 for f in found.findings if f.kind == "latency")


def test_a_file_of_another_machine_is_refused():
    _, path = calibrated(0.02)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"machine": "another"}))
    done = ask("gate", "r0.02-0", "r0.02-1")
    assert done.code == 3 and "calibration" in one_sentence(done, 3)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema": 1, "noise": [{"a": 1}]}'])
def test_a_damaged_file_is_told(content):
    base, head = pair()
    place(base).parent.mkdir(parents=True)
    place(base).write_text(content)
    assert str(place(base)) in one_sentence(ask("gate", str(base), str(head)), 2)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"machine": {}, "plan": {}}'])
def test_a_folder_that_is_no_run_has_no_place(content):
    Path("odd").mkdir()
    if content is not None:
        (Path("odd") / "run.json").write_text(content)
    with pytest.raises(StoreError, match="odd"):
        place(Path("odd"))
