"""The doctor: every answer has a status and one sentence, and each ailment is recognised."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace

import pytest
from command_help import ask
from fake_nvml import FakeNvml

from harness import doctor
from harness.doctor.gpu import find_gpu
from harness.doctor.software import Torch
from harness.nvml import NoGpu

CUDA = Torch("2.13.0", "13.0")


def test_all_checks_answer_in_one_sentence(tmp_path):
    found = doctor.checks(threads=1, out=tmp_path / "not" / "yet")
    assert len({check.name for check in found}) == len(found) >= 14
    for check in found:
        assert check.status in ("ok", "warn", "fail")
        assert check.detail.endswith(".")
        assert "\n" not in check.detail
    status = {check.name: check.status for check in found}
    assert status["python"] == "ok"
    assert status["torch"] == "ok"
    assert not (tmp_path / "not").exists()


def test_versions_are_compared_as_numbers():
    assert doctor.check_torch(Torch("2.11.0+cpu")).status == "ok"
    assert doctor.check_torch(Torch("2.9.1")).status == "fail"  # as strings, 2.9 > 2.11
    assert doctor.check_torch(Torch("3.0.0a0+git1234")).status == "ok"
    assert doctor.check_python((3, 10, 9)).status == "fail"


def test_a_torch_that_does_not_import_is_a_failure_with_its_reason(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: libfoo.so is missing' >&2\nexit 1\n")
    broken.chmod(0o755)
    check = doctor.check_torch(doctor.find_torch(str(broken)))
    assert check.status == "fail"
    assert "libfoo.so is missing" in check.detail


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        ({"nvidia-ml-py": "13.0"}, "ok"),
        ({"nvidia-ml-py": "13.0", "pynvml": "12.0.0"}, "ok"),  # since 12 a thin layer over nvidia-ml-py
        ({"nvidia-ml-py": "13.0", "pynvml": "11.5.3"}, "warn"),
        ({"nvidia-ml-py": "13.0", "nvidia-ml-py3": "7.352.0"}, "warn"),
        ({"pynvml": "11.5.3"}, "warn"),
        ({}, "warn"),
    ],
)
def test_the_old_pynvml_is_recognised(installed, status):
    assert doctor.check_pynvml(installed.get).status == status


@pytest.mark.parametrize(
    ("lines", "installed", "status", "words"),
    [
        (["filelock", 'triton==3.7.1; platform_system == "Linux"'], {"triton": "3.7.1"}, "ok", "wants"),
        (["triton==3.7.1"], {"triton": "3.4.0"}, "warn", "wants triton 3.7.1 and 3.4.0 is installed"),
        (["triton (==3.7.1) ; extra"], {}, "warn", "none is installed: pip install triton==3.7.1"),
        (["pytorch-triton==3.8+git1"], {"pytorch-triton": "3.8+git1", "triton": "3.4.0"}, "ok", "3.8+git1"),
        (["filelock", "sympy>=1.13"], {}, "ok", "asks for no version"),
        (None, {"triton": "3.4.0"}, "ok", "3.4.0 is installed"),
    ],
)
def test_triton_is_the_one_that_torch_was_built_for(lines, installed, status, words):
    check = doctor.check_triton(installed.get, lambda package: lines)
    assert check.status == status and words in check.detail


def test_triton_without_torch():
    def nothing(package):
        raise metadata.PackageNotFoundError(package)

    assert doctor.check_triton(dict().get, nothing).status == "ok"


def test_more_threads_than_cores_or_quota_are_a_warning():
    assert doctor.check_threads(2, 2, None).status == "ok"
    assert doctor.check_threads(3, 2, None).status == "warn"
    assert doctor.check_threads(2, 8, 1.5).status == "warn"


def test_the_data_folder(tmp_path):
    assert doctor.check_data({}).status == "warn"
    assert doctor.check_data({"KVMARK_DATA": str(tmp_path / "gone")}).status == "fail"
    assert doctor.check_data({"KVMARK_DATA": str(tmp_path)}).status == "warn"
    (tmp_path / "pg19").mkdir()
    assert doctor.check_data({"KVMARK_DATA": str(tmp_path)}).status == "ok"


def test_free_disk_is_that_of_the_nearest_folder(tmp_path, monkeypatch):
    asked = []
    for free, status in ((50 << 20, "fail"), (1 << 30, "warn"), (9 << 30, "ok")):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda path, usage=usage: asked.append(path) or usage)
        assert doctor.check_disk(tmp_path / "not" / "yet").status == status
    assert set(asked) == {tmp_path.resolve()}


def test_what_is_missing_is_said(tmp_path):
    assert doctor.check_browser(lambda name: None).status == "warn"
    assert doctor.check_browser({"google-chrome": "x"}.get).status == "ok"
    assert doctor.check_pid_namespace(inside=True).status == "warn"
    assert doctor.check_peak_memory(tmp_path / "no-proc").status == "warn"
    assert doctor.check_load(window_s=0.0).status == "warn"  # too short to tell: not "ok"


# --- the GPU, by recorded answers -----------------------------------------------------------------


def gpu(monkeypatch, refuse=(), used=0, processes=(), **answers):
    """The first GPU of a machine whose NVML gives these answers."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    module = FakeNvml(refuse=refuse, processes=processes)
    module.nvmlDeviceGetMemoryInfo = lambda handle, version: SimpleNamespace(used=used, total=80 << 30)
    for call, answer in answers.items():
        setattr(module, call, lambda *_, answer=answer: answer)
    return find_gpu("cuda", module)


def test_a_driver_that_answers_is_described(monkeypatch):
    check = doctor.check_driver(gpu(monkeypatch))
    assert (check.status, check.detail) == (
        "ok", "NVIDIA H100, 3 GPUs, driver 580.65.06, CUDA up to 13.0.",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("No NVIDIA driver answers (NVML Shared Library Not Found).", "--gpus all"),
        ("No NVIDIA driver answers (Driver Not Loaded).", "modprobe nvidia"),
        ("No NVIDIA driver answers (RM has detected an NVML/RM version mismatch.).", "reboot"),
        ("No NVIDIA driver answers (Insufficient Permissions).", "/dev/nvidia"),
        ("nvidia-ml-py is not installed.", "install nvidia-ml-py"),
        ("No GPU cuda:3 is visible (CUDA_VISIBLE_DEVICES=None, 2 installed).", "set CUDA_VISIBLE_DEVICES"),
        ("No NVIDIA driver answers (something new).", "reinstall the driver"),
    ],
)
def test_a_driver_that_does_not_answer_is_explained(tmp_path, reason, advice):
    """Runs on the CPU go on without; one on the GPU does not."""
    on_cpu = doctor.check_driver(NoGpu(reason), "cpu", kernel_side=tmp_path / "none")
    on_gpu = doctor.check_driver(NoGpu(reason), "cuda", kernel_side=tmp_path / "none")
    assert (on_cpu.status, on_gpu.status) == ("warn", "fail")
    assert advice in on_cpu.detail and advice in on_gpu.detail and "CPU" not in on_gpu.detail


def test_a_container_without_the_drivers_library(tmp_path):
    (tmp_path / "version").touch()
    reason = NoGpu("No NVIDIA driver answers (NVML Shared Library Not Found).")
    check = doctor.check_driver(reason, kernel_side=tmp_path / "version")
    assert "NVIDIA_DRIVER_CAPABILITIES" in check.detail


@pytest.mark.parametrize(
    ("torch", "reach", "status", "words"),
    [
        (CUDA, "13.0", "ok", "built for CUDA 13.0"),
        (Torch("2.13.0", "12.9"), "12.2", "ok", "12.9"),  # minor versions get along
        (Torch("2.13.0", "12.9"), "13.0", "ok", "12.9"),  # a driver runs what is older
        (CUDA, "12.2", "warn", "reaches 12.2: update the driver, or install a build for CUDA 12"),
        (Torch("2.13.0+cpu"), "12.2", "warn", "install a build for CUDA 12.2 or earlier"),
        (CUDA, None, "ok", "13.0"),
        (Torch(problem="torch does not import (x): reinstall it."), "13.0", "warn", "does not import"),
    ],
)
def test_the_build_of_torch_fits_gpu_and_driver(torch, reach, status, words):
    card = {"name": "NVIDIA H100", "driver": "535.1", "cuda_driver": reach}
    check = doctor.check_build(torch, card)
    assert check.status == status and words in check.detail
    needed = doctor.check_build(torch, card, "cuda")
    assert needed.status == {"ok": "ok", "warn": "fail"}[status]


ROOT, USER = "CapEff:\t000001ffffffffff\n", "Name:\tpython\nCapEff:\t0000000000000000\n"
IN_CONTAINER = "CapEff:\t00000000a80425fb\n"  # root as Docker starts it


@pytest.mark.parametrize(
    ("rights", "answers", "status", "words"),
    [
        (ROOT, {"nvmlDeviceGetPersistenceMode": 1}, "ok", "nvidia-smi -lgc"),
        (ROOT, {"nvmlDeviceGetPersistenceMode": 0}, "warn", "nvidia-smi -pm 1"),
        (ROOT, {}, "ok", "may be locked"),
        (USER, {"nvmlDeviceGetAPIRestriction": 1}, "warn", "ask an administrator"),
        (USER, {"nvmlDeviceGetAPIRestriction": 0}, "warn", "nvidia-smi -ac"),
        (IN_CONTAINER, {}, "warn", "CAP_SYS_ADMIN"),
        ("", {}, "warn", "CAP_SYS_ADMIN"),
    ],
)
def test_who_may_lock_the_clocks(tmp_path, monkeypatch, rights, answers, status, words):
    (tmp_path / "status").write_text(rights)
    check = doctor.check_clocks(gpu(monkeypatch, **answers), tmp_path / "status")
    assert check.status == status and words in check.detail


def test_nothing_is_ever_set(tmp_path, monkeypatch):
    """No call of NVML's that changes anything is made: each would end the test."""
    asked = []

    class Watched(FakeNvml):
        def __getattribute__(self, name):
            asked.append(name)
            assert not name.startswith(("nvmlDeviceSet", "nvmlDeviceReset"))
            return super().__getattribute__(name)

    found = find_gpu("cuda", Watched())
    for check in (doctor.check_driver, doctor.check_clocks, doctor.check_processes):
        check(found)
    assert "nvmlDeviceGetComputeRunningProcesses" in asked


def test_who_uses_the_gpu_now(monkeypatch):
    check = doctor.check_processes(gpu(monkeypatch, processes=((4242, 3 << 30), (7, None))))
    assert (
        check.status == "warn"
        and "2 processes use the GPU now (PID 7, PID 4242 with 3.0 GiB)" in check.detail
    )
    drawing = {"nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=9, usedGpuMemory=1 << 30)]}
    assert "1 process uses the GPU" in doctor.check_processes(gpu(monkeypatch, **drawing)).detail
    assert doctor.check_processes(gpu(monkeypatch)).status == "ok"
    hidden = doctor.check_processes(gpu(monkeypatch, used=5 << 30))
    assert hidden.status == "warn" and "5.0 GiB" in hidden.detail
    silent = doctor.check_processes(gpu(monkeypatch, refuse=["nvmlDeviceGetComputeRunningProcesses"]))
    assert silent.status == "warn" and "cannot be read" in silent.detail


# --- the command ----------------------------------------------------------------------------------


def test_the_command_takes_the_runs_options(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(doctor, "checks", lambda *options: asked.append(options) or [found])
    found = doctor.Check("driver", "fail", "No driver.")
    done = ask("doctor", "--device", "cuda:1", "--threads", "3", "--out", str(tmp_path))
    assert (done.code, done.out) == (3, "fail  driver: No driver.\n")
    assert asked == [(3, tmp_path, "cuda:1")]
    assert "Unknown device" in ask("doctor", "--device", "tpu").err
