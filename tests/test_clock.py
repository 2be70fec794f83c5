"""The clock against known quantities: a sleep, a busy loop, 200 MB, and a GPU whose events were recorded.

Only lower bounds on time: a shared machine may make anything take longer.
"""

import gc
import os
import subprocess
import sys
import time

import pytest

from harness import clock

MB = 1_000_000


class FakeCuda:
    """The part of torch.cuda that clock uses; a device clock that the test moves on by hand."""

    def __init__(self):
        self.now_ms, self.synchronised, self.peak, self.used = 0.0, 0, 0, 0
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                assert stream == "stream of cuda:0"
                self.at_ms = fake.now_ms

            def elapsed_time(self, other):
                return other.at_ms - self.at_ms

        self.Event = Event

    def current_stream(self, device):
        return f"stream of {device}"

    def synchronize(self, device):
        self.synchronised += 1

    def reset_peak_memory_stats(self, device):
        self.peak = self.used

    def memory_allocated(self, device):
        return self.used

    def max_memory_allocated(self, device):
        return self.peak

    def max_memory_reserved(self, device):
        return self.peak + 7


def test_a_sleep_is_wall_time_but_not_cpu_time():
    with clock.Stopwatch("cpu").window() as w:
        time.sleep(0.3)
    assert w.wall_s >= 0.3
    assert w.device_s == w.wall_s
    assert 0 <= w.cpu_s < 0.15  # CPU time of this process alone: load by others cannot raise it


def test_own_work_is_cpu_time():
    with clock.Stopwatch("cpu").window() as w:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert w.cpu_s >= 0.2
    assert w.wall_s >= 0.2 * 0.99  # one thread cannot use more CPU time than passes


@pytest.mark.skipif(clock.cpu_ticks() is None, reason="no readable /proc/stat")
def test_work_of_another_process_is_foreign_load():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        with clock.Stopwatch("cpu").window() as w:
            time.sleep(0.5)
    finally:
        busy.kill()
        busy.wait()
    assert 0 < w.foreign_cpu_share <= 1


def test_foreign_share_is_busy_ticks_less_our_own():
    cores, tick_s = os.cpu_count(), 1 / os.sysconf("SC_CLK_TCK")
    total = 100 * cores
    assert clock.foreign_share((0, 0), (60, total), own_s=20 * tick_s) == pytest.approx(40 / total)
    assert clock.foreign_share((0, 0), (60, total), own_s=61 * tick_s) == 0.0
    assert clock.foreign_share((0, 0), (1, 9 * cores), own_s=0.0) is None  # too few ticks to say
    assert clock.foreign_share(None, (60, total), own_s=0.0) is None


def test_proc_stat_counts_guests_once_and_a_sandbox_of_zeros_is_unknown(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 400 50 6 7 8 90 9\ncpu0 1 2 3\n")
    assert clock.cpu_ticks(stat) == (100 + 20 + 30 + 6 + 7 + 8, 621)
    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    assert clock.cpu_ticks(stat) is None
    assert clock.cpu_ticks(tmp_path / "missing") is None
    with clock.Stopwatch("cpu", stat=tmp_path / "missing").window() as w:
        time.sleep(0.12)
    assert w.foreign_cpu_share is None
    assert w.wall_s >= 0.12


def test_no_garbage_collection_inside_and_the_old_state_after():
    watch = clock.Stopwatch("cpu")
    with watch.window(), watch.steps():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with watch.window():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_exception_leaves_no_reading_and_gc_enabled():
    watch = clock.Stopwatch("cpu")
    with pytest.raises(ZeroDivisionError), watch.window() as w, watch.steps() as steps:
        steps.mark()
        raise ZeroDivisionError
    assert w == clock.Window()
    assert steps.step_s == []
    assert gc.isenabled()


def test_steps_on_a_cpu_are_the_times_between_marks():
    with clock.Stopwatch("cpu").steps() as steps:
        for _ in range(3):
            time.sleep(0.02)
            steps.mark()
    assert len(steps.step_s) == 3
    assert all(step >= 0.02 for step in steps.step_s)


def test_cuda_reads_events_in_milliseconds_and_synchronises_only_at_the_ends():
    cuda = FakeCuda()
    watch = clock.Stopwatch("cuda:0", cuda=cuda)
    with watch.window() as w:
        cuda.now_ms += 250
    assert w.device_s == pytest.approx(0.25)
    assert 0 <= w.wall_s < 0.25  # the host's own clock, not the device's
    assert cuda.synchronised == 2
    with watch.steps() as steps:
        for step_ms in (5, 6, 7):
            cuda.now_ms += step_ms
            steps.mark()
        assert cuda.synchronised == 3
    assert cuda.synchronised == 4
    assert steps.step_s == pytest.approx([0.005, 0.006, 0.007])


class FakeTime:
    """The host's clock, moved on by hand."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s

    process_time = perf_counter


@pytest.fixture
def host(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(clock, "time", fake)
    return fake


def test_a_windows_launch_share_is_the_hosts_time_until_the_body_returns_over_the_devices(host):
    cuda = FakeCuda()
    watch = clock.Stopwatch("cuda:0", cuda=cuda)
    with watch.window() as ahead:
        cuda.now_ms, host.now_s = cuda.now_ms + 100, host.now_s + 0.02
    assert ahead.host_s == pytest.approx(0.02)
    assert ahead.launch_share == pytest.approx(0.2)
    with watch.window() as bound:
        cuda.now_ms, host.now_s = cuda.now_ms + 100, host.now_s + 0.11
    assert bound.launch_share == 1.0
    assert (ahead + bound).launch_share == pytest.approx(0.13 / 0.2)


def test_the_launch_share_of_steps_is_that_of_the_step_before_the_queue_is_full(host):
    """The device needs 10 ms a step, the host 2 ms; from the third step on it waits for room."""
    cuda = FakeCuda()
    with clock.Stopwatch("cuda:0", cuda=cuda).steps() as steps:
        for host_ms in (3, 2, 10, 10, 10, 10):
            cuda.now_ms, host.now_s = cuda.now_ms + 10, host.now_s + host_ms / 1000
            steps.mark()
    assert steps.launch_share == pytest.approx(0.2)
    assert cuda.synchronised == 2  # nothing was waited for in between


def test_steps_that_the_host_cannot_issue_fast_enough_are_launch_bound(host):
    cuda = FakeCuda()
    with clock.Stopwatch("cuda:0", cuda=cuda).steps() as steps:
        for _ in range(4):
            cuda.now_ms, host.now_s = cuda.now_ms + 5, host.now_s + 0.005
            steps.mark()
    assert steps.launch_share == pytest.approx(1.0)
    with clock.Stopwatch("cuda:0", cuda=cuda).steps() as none:
        pass
    assert none.launch_share is None


def test_a_cpu_launches_nothing():
    watch = clock.Stopwatch("cpu")
    with watch.window() as w, watch.steps() as steps:
        steps.mark()
    assert (w.host_s, w.launch_share, steps.launch_share) == (None, None, None)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="mps"):
        clock.Stopwatch("mps")


def test_cuda_peak_is_the_allocators_since_the_reset():
    cuda = FakeCuda()
    cuda.peak, cuda.used = 900, 100
    peak = clock.PeakMemory("cuda:0", cuda=cuda)
    assert peak.read() is None  # never reset: whose peak would it be?
    assert peak.in_use() == 100 and clock.PeakMemory("cpu").in_use() is None
    peak.reset()
    cuda.peak = 300
    assert (peak.baseline_bytes, peak.read(), peak.read_reserved()) == (100, 300, 307)


def test_peak_memory_sees_200_mb_come_and_forgets_them_after_a_reset():
    peak = clock.PeakMemory("cpu")
    peak.reset()
    if peak.reason:
        pytest.skip(peak.reason)
    block = bytearray(200 * MB)  # calloc: resident only once written
    block[:] = b"x" * len(block)
    with_block = peak.read()
    assert with_block - peak.baseline_bytes >= 190 * MB  # counters of the kernel lag by a few MB
    del block
    assert peak.read() >= with_block - 10 * MB  # a peak stays
    peak.reset()
    assert peak.read() < with_block - 100 * MB
    assert peak.read_reserved() is None


def test_a_kernel_that_does_not_reset_the_peak_gives_none_and_a_reason(tmp_path):
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n")
    peak = clock.PeakMemory("cpu", proc=tmp_path)
    peak.reset()
    assert peak.read() is None
    assert "did not do it" in peak.reason
    gone = clock.PeakMemory("cpu", proc=tmp_path / "nowhere")
    gone.reset()
    assert gone.read() is None
    assert "does not let us" in gone.reason


def test_importing_the_clock_does_not_import_torch():
    code = "import sys, harness.clock, harness.sampler, harness.environment; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
