"""The sampler against a process that allocates 200 MB, dies, or loses its parent; NVML from a recording."""

import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_nvml import UUIDS, FakeNvml

from harness import nvml, sampler, store

MB = 1_000_000
ROOT = Path(sampler.__file__).parent.parent

# Waits for a line before and after allocating, so the test decides what is sampled when.
WORKER = """
import sys
print("small", flush=True); sys.stdin.readline()
block = bytearray(200_000_000); block[:] = b"x" * len(block)
print("big", flush=True); sys.stdin.readline()
"""


def start_worker(code=WORKER):
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def wait_until(condition, timeout_s=60.0):
    """Generous: on a busy machine a Python start takes seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(pid):
    return sampler.rss_bytes(pid) is not None


def test_200_mb_appear_in_the_series_at_their_time(tmp_path):
    worker = start_worker()
    try:
        assert worker.stdout.readline() == "small\n"
        probe = sampler.Sampler(tmp_path / "job.parquet", interval_s=0.01)
        assert probe.start(worker.pid), probe.note
        time.sleep(0.1)
        asked_s = time.monotonic()
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "big\n"
        big_s = time.monotonic()
        time.sleep(0.1)
        path = probe.stop()
    finally:
        worker.kill()
        worker.communicate()
    assert path == tmp_path / "job.parquet"
    assert probe.note is None
    rows = store.read_table(path).to_pylist()
    before = [row["rss_bytes"] for row in rows if row["t_s"] < asked_s]
    after = [row["rss_bytes"] for row in rows if row["t_s"] > big_s]
    assert before
    assert after
    # The median: t_s is taken before the reading, so a delayed sample may show a little of the future.
    assert statistics.median(after) - statistics.median(before) >= 190 * MB
    assert [row["t_s"] for row in rows] == sorted(row["t_s"] for row in rows)


def test_without_a_gpu_its_columns_are_null_and_the_file_says_why(tmp_path):
    path = tmp_path / "job.parquet"
    with sampler.Sampler(path, device="cpu") as probe:
        assert probe.start(os.getpid()), probe.note
    table = store.read_table(path)
    assert set(table["source"].to_pylist()) == {"rss"}
    for name in (
        "gpu_used_bytes",
        "gpu_process_bytes",
        "power_w",
        "energy_j",
        "sm_clock_hz",
        "temperature_c",
    ):
        assert table[name].null_count == len(table) > 0
    assert table["throttle_reasons"].null_count == len(table)
    assert b"no GPU was sampled" in table.schema.metadata[b"kvmark_sampler_note"]


def test_it_ends_and_writes_when_the_worker_is_killed(tmp_path):
    worker = start_worker()
    worker.stdout.readline()
    probe = sampler.Sampler(tmp_path / "job.parquet")
    assert probe.start(worker.pid), probe.note
    side = probe._process
    worker.kill()  # a zombie until communicate(): that, too, has ended
    wait_until(lambda: side.poll() is not None)
    worker.communicate()
    path = probe.stop()
    assert side.returncode == 0
    assert len(store.read_table(path)) >= 1
    assert probe.stop() == path


PARENT = """
import os, sys, time
from harness.sampler import Sampler
probe = Sampler(sys.argv[1])
assert probe.start(int(sys.argv[2])), probe.note
if sys.argv[3] == "leak":          # a sibling that keeps the pipe open must not keep the sampler alive
    fd = os.dup(probe._process.stdin.fileno()); os.set_inheritable(fd, True)
    if os.fork() == 0:
        os.close(1); time.sleep(60); os._exit(0)
    print(probe._process.pid, flush=True)
else:
    print(probe._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("pipe", ["closed", "leak"])
def test_it_ends_when_its_parent_is_killed(tmp_path, pipe):
    out = tmp_path / "job.parquet"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(out), str(os.getpid()), pipe],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        side = int(parent.stdout.readline())
        assert alive(side)
        parent.kill()
        wait_until(lambda: not alive(side))
        wait_until(out.exists)  # what it had seen is not lost
    finally:
        os.killpg(parent.pid, signal.SIGKILL)  # the leaking sibling; the session is this test's own
        parent.wait()
        parent.stdout.close()


def test_ctrl_c_does_not_end_it(tmp_path):
    probe = sampler.Sampler(tmp_path / "job.parquet")
    assert probe.start(os.getpid()), probe.note
    os.kill(probe._process.pid, signal.SIGINT)
    time.sleep(0.1)
    assert probe._process.poll() is None
    assert probe.stop() is not None


def test_failures_are_none_with_a_reason(tmp_path):
    gone = sampler.Sampler(tmp_path / "job.parquet")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not gone.start(ended.pid)
    assert "had ended" in gone.note
    assert gone.stop() is None
    lost = sampler.Sampler(tmp_path / "deleted" / "job.parquet")
    assert lost.start(os.getpid())
    (tmp_path / "deleted").rmdir()  # a run that the user deletes is not brought back
    assert lost.stop() is None
    assert lost.note.endswith("is gone.")
    assert not (tmp_path / "deleted").exists()


def test_an_old_file_does_not_pass_for_a_new_one(tmp_path):
    old = tmp_path / "job.parquet"
    old.write_bytes(b"left by a run that was killed")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    probe = sampler.Sampler(old)
    assert not probe.start(ended.pid)
    assert not old.exists() or len(store.read_table(old)) == 0


def test_nvml_readings_arrive_in_si_units():
    series = sampler.Series(0.01)
    gpu = nvml.open_gpu("cuda", nvml=FakeNvml())
    sampler.watch(os.getpid(), series, gpu, wait=lambda _: False)
    (row,) = sampler.sample_table(series.rows, "sample", "job", None).to_pylist()
    assert row["source"] == "nvml"
    assert row["rss_bytes"] > MB
    assert row["gpu_used_bytes"] == 5 << 30
    assert row["gpu_process_bytes"] is None  # our PID is not among those the driver lists
    assert row["power_w"] == pytest.approx(312.5)
    assert row["energy_j"] == pytest.approx(987_654.321)
    assert row["sm_clock_hz"] == pytest.approx(1.755e9)
    assert row["temperature_c"] == 61.0
    assert row["throttle_reasons"] == "sw_power_cap,sw_thermal"
    assert gpu.sample(4242)["gpu_process_bytes"] == 3 << 30
    assert gpu.sample(7)["gpu_process_bytes"] is None  # listed, without a number


def test_what_the_driver_refuses_is_null_and_the_rest_stays():
    refused = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetMemoryInfo")
    clocks = ("nvmlDeviceGetCurrentClocksEventReasons",)
    reading = nvml.open_gpu("cuda", nvml=FakeNvml(refuse=refused + clocks)).sample(1)
    assert reading["energy_j"] is None
    assert reading["gpu_used_bytes"] is None
    assert reading["throttle_reasons"] is None
    assert reading["power_w"] == pytest.approx(312.5)


def test_throttle_bits_have_names_and_none_is_not_unknown():
    assert nvml.throttle_names(0) == "none"
    assert nvml.throttle_names(None) is None
    assert nvml.throttle_names(0x1 | 0x80) == "gpu_idle,hw_power_brake"
    assert nvml.throttle_names(0x8000) == "unknown_0x8000"


@pytest.mark.parametrize(
    ("visible", "index", "uuid"),
    [
        (None, 1, UUIDS[1]),
        ("2,0", 0, UUIDS[2]),
        ("2, 0", 1, UUIDS[0]),
        ("GPU-cc", 0, UUIDS[2]),
        ("GPU-cccc3333,1", 1, UUIDS[1]),
        ("MIG-1234", 0, "MIG-1234"),
        ("1,-1,2", 0, UUIDS[1]),
    ],
)
def test_cuda_visible_devices_decides_which_gpu_is_meant(visible, index, uuid):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert nvml.device_uuid(FakeNvml(), index, environ) == uuid


@pytest.mark.parametrize(("visible", "index"), [("", 0), ("-1", 0), ("1,-1,2", 1), ("GPU-aaa", 0), ("9", 0)])
def test_an_invisible_or_ambiguous_gpu_is_refused(visible, index):
    with pytest.raises(nvml.NoGpu, match="visible"):
        nvml.device_uuid(FakeNvml(), index, {"CUDA_VISIBLE_DEVICES": visible})


def test_numbers_name_no_gpu_when_cuda_may_have_sorted_several_models():
    mixed = FakeNvml(names=("NVIDIA T4", "NVIDIA H100", "NVIDIA T4"))
    with pytest.raises(nvml.NoGpu, match="CUDA_DEVICE_ORDER"):
        nvml.device_uuid(mixed, 0, {})
    assert nvml.device_uuid(mixed, 0, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == UUIDS[0]
    assert nvml.device_uuid(mixed, 0, {"CUDA_VISIBLE_DEVICES": UUIDS[1]}) == UUIDS[1]


def test_a_driver_that_fails_is_no_gpu():
    with pytest.raises(nvml.NoGpu, match="does not answer"):
        nvml.open_gpu("cuda", uuid="GPU-unknown", nvml=FakeNvml())


def test_due_times_do_not_drift_and_overrun_ticks_are_skipped():
    now, times, delays = [0.0], [], iter([0.0, 0.003, 0.025, 0.0, 0.0])

    class Late(sampler.Series):
        def append(self, row):
            times.append(row["t_s"])
            now[0] += next(delays)  # the reading takes this long

    def wait(seconds):
        now[0] += seconds
        return len(times) < 5

    sampler.watch(os.getpid(), Late(0.01), None, wait, clock=lambda: now[0])
    assert times == pytest.approx([0.0, 0.01, 0.02, 0.05, 0.06])


@pytest.mark.parametrize(("tick_s", "num"), [(50e-6, 3000), (2e-3, 200)])
def test_a_driver_that_answers_slowly_is_asked_less_often(tick_s, num):
    """A minute at 20 ms. Two milliseconds of CPU a tick would be a tenth of a core."""
    now, used = [0.0], [7.0]

    class Slow:
        def sample(self, pid):
            used[0] += tick_s
            return {}

    def wait(seconds):
        now[0] += seconds
        return now[0] < 60

    series = sampler.Series(0.02)
    sampler.watch(os.getpid(), series, Slow(), wait, clock=lambda: now[0], cpu=lambda: used[0])
    assert used[0] - 7 <= sampler.MOST_OF_A_CORE * 60 + sampler.FIRST_S + tick_s
    assert len(series.rows) == pytest.approx(num, rel=0.01)
    due = [row["t_s"] / 0.02 for row in series.rows]
    assert due == pytest.approx([round(tick) for tick in due]), "ticks are left out, not moved"
    assert due[:40] == pytest.approx(range(40)), "the first of a short job are all there"


def test_a_long_run_is_thinned_evenly():
    series = sampler.Series(1.0, limit=8)
    t_s = 0.0
    for _ in range(40):
        series.append({"t_s": t_s})
        t_s += series.interval_s
    times = [row["t_s"] for row in series.rows]
    assert 4 <= len(times) <= 8
    steps = {b - a for a, b in itertools.pairwise(times)}
    assert steps == {series.interval_s}
    assert times[0] == 0.0


def test_telemetry_merges_workers_and_marks_in_order_of_time(tmp_path):
    first = sampler.sample_table(
        [{"t_s": 1.0, "source": "rss", "rss_bytes": 10}], "sample", None, "no driver"
    )
    second = tmp_path / "second.parquet"
    later = sampler.sample_table([{"t_s": 3.0, "source": "rss", "rss_bytes": 30}], "sample", None, None)
    store.write_table(second, later)
    mark = {"t_s": 2.0, "cell": "c", "phase": "decode", "architecture": "tova:budget=128"}
    out = tmp_path / "telemetry" / "j.parquet"
    sampler.write_telemetry(out, "j", [first, second], [mark])
    table = store.read_table(out)
    assert table.column_names == list(sampler.COLUMNS)
    assert table.schema.metadata[b"kvmark_sampler_note"] == b"no driver"
    rows = table.to_pylist()
    assert [(row["t_s"], row["kind"], row["job"]) for row in rows] == [
        (1.0, "sample", "j"),
        (2.0, "mark", "j"),
        (3.0, "sample", "j"),
    ]
    assert rows[1]["architecture"] == "tova:budget=128"
    assert rows[1]["rss_bytes"] is None
    assert rows[0]["phase"] is None


def test_telemetry_of_nothing_is_an_empty_table_and_a_broken_file_an_error(tmp_path):
    sampler.write_telemetry(tmp_path / "t.parquet", "j", None, [])
    assert len(pq.read_table(tmp_path / "t.parquet")) == 0
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(store.StoreError):
        sampler.write_telemetry(tmp_path / "t.parquet", "j", tmp_path / "broken.parquet", [])
    assert isinstance(sampler.sample_table([], "sample", None, None), pa.Table)
