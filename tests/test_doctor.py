"""The doctor: every answer has a status and one sentence, and each ailment is recognised."""

import pytest

from harness import doctor


def test_all_checks_answer_in_one_sentence(tmp_path):
    found = doctor.checks(threads=1, out=tmp_path / "not" / "yet")
    assert len({check.name for check in found}) == len(found) == 13
    for check in found:
        assert check.status in ("ok", "warn", "fail")
        assert check.detail.endswith(".")
        assert "\n" not in check.detail
    status = {check.name: check.status for check in found}
    assert status["python"] == "ok"
    assert status["torch"] == "ok"
    assert not (tmp_path / "not").exists()


def test_versions_are_compared_as_numbers():
    assert doctor.judge_torch("2.11.0+cpu").status == "ok"
    assert doctor.judge_torch("2.9.1").status == "fail"  # as strings, 2.9 > 2.11
    assert doctor.judge_torch("3.0.0a0+git1234").status == "ok"
    assert doctor.check_python((3, 10, 9)).status == "fail"


def test_a_torch_that_does_not_import_is_a_failure_with_its_reason(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: libfoo.so is missing' >&2\nexit 1\n")
    broken.chmod(0o755)
    check = doctor.check_torch(str(broken))
    assert check.status == "fail"
    assert "libfoo.so is missing" in check.detail


@pytest.mark.parametrize(
    ("installed", "status"),
    [
        ({"nvidia-ml-py": "13.0"}, "ok"),
        ({"nvidia-ml-py": "13.0", "pynvml": "12.0.0"}, "ok"),  # since 12 a thin layer over nvidia-ml-py
        ({"nvidia-ml-py": "13.0", "pynvml": "11.5.3"}, "warn"),
        ({"pynvml": "11.5.3"}, "warn"),
        ({}, "warn"),
    ],
)
def test_the_old_pynvml_is_recognised(installed, status):
    assert doctor.check_pynvml(installed.get).status == status


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


def test_what_is_missing_is_said(tmp_path):
    assert doctor.check_browser(lambda name: None).status == "warn"
    assert doctor.check_browser({"google-chrome": "x"}.get).status == "ok"
    assert doctor.check_pid_namespace(inside=True).status == "warn"
    assert doctor.check_peak_memory(tmp_path / "no-proc").status == "warn"
    assert doctor.check_load(window_s=0.0).status == "warn"  # too short to tell: not "ok"
