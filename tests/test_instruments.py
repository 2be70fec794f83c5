"""Instruments against known quantities: 800 MB held for a second, and a GPU whose every reading is known.

Whoever makes the quantity notes when, on the clock of the samples, and tests compare with those times: a busy
machine makes a plateau longer and its samples fewer, and neither wrong. The GPU is a `pynvml` of ours, found
before the real one by the sampler's own process; its readings are functions of time.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_nvml import UUIDS, Trace
from fault_help import Nursery
from harness_help import Bench, rows, telemetry

from harness import sampler, store

MB = 10**6
HELD = 800 * MB
#: Of what is held: the interpreter's own pages come and go.
TOLERANCE = 0.02 * HELD
ROOT = Path(sampler.__file__).parent.parent

# --- memory ----------------------------------------------------------------------------------------

#: Holds the block; then a second one for as long as a memset takes. Says what it saw and when.
WORKER = """
import json, sys, time
from harness.clock import PeakMemory
peak = PeakMemory()
def wait(): print(flush=True); sys.stdin.readline()
wait()
peak.reset()
at = [time.monotonic()]
block = b"x" * 800_000_000
at.append(time.monotonic()); time.sleep(1.0); at.append(time.monotonic())
del block
at.append(time.monotonic()); time.sleep(0.3); at.append(time.monotonic())
held = [peak.baseline_bytes, peak.read()]
peak.reset()
block = b"x" * 300_000_000; del block
print(json.dumps({"at": at, "held": held, "spike": [peak.baseline_bytes, peak.read()], "why": peak.reason}))
wait()
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """(what the worker says, its samples) after 800 MB were held for a second."""
    out = tmp_path_factory.mktemp("held") / "job.parquet"
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as worker:
        worker.stdout.readline()
        with sampler.Sampler(out) as probe:
            assert probe.start(worker.pid), probe.note
            worker.stdin.write("\n")
            worker.stdin.flush()
            said = json.loads(worker.stdout.readline())
        worker.kill()
    return said, [(row["t_s"], row["rss_bytes"]) for row in store.read_table(out).to_pylist()]


def between(samples: list[tuple[float, int]], begin_s: float, end_s: float) -> list[int]:
    """Sizes that were surely read in this time: a reading follows its time and precedes that of the next."""
    pairs = itertools.pairwise(samples)
    return [size for (t_s, size), (next_s, _) in pairs if begin_s <= t_s and next_s <= end_s]


def test_800_mb_are_a_plateau_of_800_mb(held):
    said, samples = held
    _, full_s, free_s, *_ = said["at"]
    before = statistics.median(size for t_s, size in samples if t_s < said["at"][0])
    plateau = between(samples, full_s, free_s)
    assert plateau, "a sample in a second"
    assert all(abs(size - before - HELD) <= TOLERANCE for size in plateau)


def test_the_plateau_is_as_long_as_it_was_held(held):
    """Between two samples nobody knows; the edges lie within an interval, as it really was, of the truth."""
    said, samples = held
    begin_s, full_s, free_s, gone_s, later_s = said["at"]
    before = statistics.median(size for t_s, size in samples if t_s < begin_s)
    high = [t_s for t_s, size in samples if size - before > HELD - TOLERANCE]
    step_s = max(later - t_s for (t_s, _), (later, _) in itertools.pairwise(samples))
    assert begin_s <= high[0] <= full_s + 2 * step_s, "it fills up until full_s"
    assert free_s - 2 * step_s <= high[-1] <= gone_s
    low = between(samples, gone_s, later_s)
    assert low and all(abs(size - before) <= TOLERANCE for size in low), "and it is given back"


def test_the_peak_is_exact_even_of_what_no_sample_can_see(held):
    said, _ = held
    if said["why"] is not None:
        pytest.skip(said["why"])
    for (before, peak), size in ((said["held"], HELD), (said["spike"], 300 * MB)):
        assert abs(peak - before - size) <= TOLERANCE


#: What a cell of a real run holds.
HOLDS = """
at = [time.monotonic()]
block = torch.ones(200_000_000)
at.append(time.monotonic()); time.sleep(1.0); at.append(time.monotonic())
del block
at.append(time.monotonic())
(HERE / "held").open("a").write(" ".join(map(str, at)) + "\\n")
"""


@pytest.mark.full
def test_800_mb_in_a_cell_are_in_its_row_and_in_the_series_of_its_phase(tmp_path):
    bench = Bench(tmp_path)
    bench.toy("holds", HOLDS)
    nursery = Nursery(bench)
    words = (
        "--shape",
        "tiny",
        "--suite",
        "decode:contexts=64,new_tokens=2",
        "--repeats",
        "1",
        "--no-ceilings",
    )
    life = nursery.run(
        "run", *words, "--arch", "holds", "--arch", "transformer", "--out", "run", "--no-report"
    )
    nursery.close()
    assert life.code == 0, nursery.err
    table, series = rows(bench.cwd / "run"), telemetry(bench.cwd / "run")
    taken = {}
    for name in ("holds", "transformer"):
        own = table[(table.architecture == name) & (table.repeat == 0)].set_index("metric").value
        taken[name] = own["peak_prefill_bytes"] - own["baseline_prefill_bytes"]
    if taken["holds"] == taken["holds"]:  # NaN where the kernel cannot reset a peak
        assert abs(taken["holds"] - taken["transformer"] - HELD) <= TOLERANCE
    marks = series[(series.kind == "mark") & (series.architecture == "holds")]
    samples = series[series.kind == "sample"]
    seen = list(zip(samples.t_s, samples.rss_bytes, strict=True))
    for line in (bench.here / "held").read_text().splitlines():  # the warm-up and one repeat
        begin_s, full_s, free_s, gone_s = map(float, line.split())
        phase = marks[marks.t_s <= begin_s].iloc[-1]
        assert phase.phase == "prefill"
        assert marks[marks.t_s > phase.t_s].t_s.min() >= gone_s
        before = between(seen, -math.inf, begin_s)[-1]  # the first execution still loads libraries until then
        plateau = between(seen, full_s, free_s)
        assert plateau and all(abs(size - before - HELD) <= TOLERANCE for size in plateau)


# --- a GPU -----------------------------------------------------------------------------------------

#: The module that the sampler imports: a trace that the test wrote beside it.
PYNVML = """
import json, os, sys
sys.path.append({tests!r})
from fake_nvml import Trace
_driver = Trace(**json.load(open({path!r})))
def __getattr__(name):
    return getattr(_driver, name)
"""
#: Power of the two devices: a step up after half a second, one down after one.
POWER = {"0": [[0.0, 100.0], [0.5, 400.0], [1.0, 250.0]], "1": [[0.0, 60.0]]}


def sample(tmp_path, monkeypatch, device="cuda", visible=None, seconds=1.6, **trace):
    """(rows, note, trace) of the sampler's own process on this driver; this very process is the job."""
    trace = {
        "start_s": time.monotonic(),
        "power_w": POWER,
        "processes": {"0": [[os.getpid(), 3 << 30]]},
    } | trace
    (tmp_path / "trace.json").write_text(json.dumps(trace))
    module = PYNVML.format(tests=str(Path(__file__).parent), path=str(tmp_path / "trace.json"))
    (tmp_path / "pynvml.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with sampler.Sampler(tmp_path / "job.parquet", device=device) as probe:
        assert probe.start(os.getpid()), probe.note
        while time.monotonic() < trace["start_s"] + seconds:
            time.sleep(0.05)
    table = store.read_table(tmp_path / "job.parquet")
    note = (table.schema.metadata or {}).get(b"kvmark_sampler_note")
    return table.to_pylist(), note, Trace(**trace)


def held_to(found, name, truth):
    """Every reading is what the device had between the reading's time and that of the next."""
    for row, following in itertools.pairwise(found):
        times = (row["t_s"], following["t_s"])
        inside = [t for t in truth.changes() if times[0] < t < times[1]]
        assert row[name] in [truth.at(name, t) for t in (*times, *inside)], (row["t_s"], name)


def test_power_energy_clocks_and_throttling_are_what_the_device_had(tmp_path, monkeypatch):
    found, note, truth = sample(tmp_path, monkeypatch, slow_s=0.7)
    assert note is None and {row["source"] for row in found} == {"nvml"}
    for name in ("power_w", "energy_j", "sm_clock_hz", "throttle_reasons"):
        held_to(found, name, truth)
        assert len({row[name] for row in found}) > 1, f"{name} changed, and was seen to"
    assert {row["gpu_process_bytes"] for row in found} == {3 << 30}
    assert {row["foreign_gpu_processes"] for row in found} == {0}


def test_the_energy_counter_is_the_area_under_the_power(tmp_path, monkeypatch):
    """A counter that moves every 100 ms is late by at most that at each end: nothing over a long window."""
    found, _, _ = sample(tmp_path, monkeypatch)
    pairs = list(itertools.pairwise(found))
    area_j = sum((b["t_s"] - a["t_s"]) * (a["power_w"] + b["power_w"]) / 2 for a, b in pairs)
    step_s = max(b["t_s"] - a["t_s"] for a, b in pairs)
    assert abs(found[-1]["energy_j"] - found[0]["energy_j"] - area_j) <= 400.0 * (0.1 + 2 * step_s)
    assert area_j > 100.0, "the guard is small beside it"


@pytest.mark.parametrize(
    ("visible", "device", "index"),
    [
        (None, "cuda:1", 1),
        ("1", "cuda", 1),
        ("1,0", "cuda:1", 0),
        (UUIDS[1], "cuda", 1),
        ("0,1", "cuda:0", 0),
    ],
)
def test_the_sampler_reads_the_workers_device_of_two(tmp_path, monkeypatch, visible, device, index):
    power = {"0": [[0.0, 111.0]], "1": [[0.0, 222.0]]}
    found, _, _ = sample(tmp_path, monkeypatch, device, visible, 0.0, power_w=power)
    assert {row["power_w"] for row in found} == {(111.0, 222.0)[index]}


def test_a_slice_of_a_gpu_tells_its_memory_and_no_power(tmp_path, monkeypatch):
    found, note, _ = sample(tmp_path, monkeypatch, "cuda", "MIG-5678", 0.0)
    assert note is None and {row["gpu_used_bytes"] for row in found} == {7 << 30}
    for name in ("power_w", "energy_j", "sm_clock_hz", "throttle_reasons"):
        assert {row[name] for row in found} == {None}, name
    assert all(row["rss_bytes"] > 0 for row in found)


@pytest.mark.parametrize("processes", [{"0": [[os.getpid(), None]]}, {"0": [[1, 5 << 30]]}, {}])
def test_a_process_whose_memory_the_driver_does_not_tell_is_null_and_not_zero(
    tmp_path, monkeypatch, processes
):
    found, _, _ = sample(tmp_path, monkeypatch, seconds=0.0, processes=processes)
    assert {row["gpu_process_bytes"] for row in found} == {None}
    assert {row["gpu_used_bytes"] for row in found} == {5 << 30}


def test_a_device_that_is_lost_in_mid_run_leaves_nulls_and_the_series_goes_on(tmp_path, monkeypatch):
    found, _, truth = sample(tmp_path, monkeypatch, seconds=1.2, lost_s=0.6)
    lost_s = truth.start_s + 0.6
    after = [row for row in found if row["t_s"] > lost_s]
    before = [row for row, later in itertools.pairwise(found) if later["t_s"] < lost_s]
    assert before and after, "it was lost while it was sampled"
    assert all(row["power_w"] is not None for row in before)
    for name in (
        "power_w",
        "energy_j",
        "sm_clock_hz",
        "gpu_used_bytes",
        "gpu_process_bytes",
        "throttle_reasons",
    ):
        assert {row[name] for row in after} == {None}, name
    assert all(row["rss_bytes"] > 0 for row in after)


def test_a_device_that_is_lost_before_the_run_is_a_sentence(tmp_path, monkeypatch):
    found, note, _ = sample(tmp_path, monkeypatch, seconds=0.0, lost_s=-1.0)
    assert {row["source"] for row in found} == {"rss"} and b"NVML does not answer (GPU is lost" in note
