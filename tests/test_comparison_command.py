"""`kvmark compare` as it is asked: exit codes, refusals in one sentence, and files that machines read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pandas as pd
import pyarrow as pa
import pytest
from command_help import ask
from comparison_help import HOSTILE, slower, times, write
from harness_help import one_sentence

from harness.store import write_table

PASS, REGRESSION, USAGE, INCOMPARABLE, INSUFFICIENT = range(5)
SMALL = {"architectures": ("transformer",), "contexts": (256,)}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base") / "base", **SMALL)


def compared(base, head, *options):
    return ask("compare", str(base), str(head), *options)


def test_a_pass_is_counts_and_zero(base, tmp_path):
    done = compared(base, write(tmp_path / "head", seed=1, **SMALL))
    assert (done.code, done.err, done.broke) == (PASS, "", None)
    assert "PASS: 6 findings (6 SAME)." in done.out and "SAME: 4 bytes, 2 latency." in done.out
    assert "base base@0000000000" in done.out


def test_a_regression_is_a_row_of_the_table_and_one(base, tmp_path):
    head = write(tmp_path / "head", seed=1, speed=slower(1.3, "", "decode"), **SMALL)
    done = compared(base, head)
    assert done.code == REGRESSION and done.broke is None
    [row] = [line for line in done.out.splitlines() if "SLOW" in line and "decode step" in line]
    assert "+3" in row and "transformer" in row and "1.99 ms" in row
    assert compared(base, head, "--threshold", "0.5").code == PASS
    assert compared(base, head, "--only", "bytes").code == PASS


def test_one_process_is_insufficient_and_four(tmp_path):
    runs = [write(tmp_path / n, seed=s, replicates=1, **SMALL) for n, s in (("a", 0), ("b", 1))]
    done = compared(*runs)
    assert done.code == INSUFFICIENT and "--replicates 5" in done.out and done.broke is None


DIFFERENT = {
    "torch": {"machine": {"packages": {"torch": "2.12.0", "triton": None}}},
    "triton": {"machine": {"packages": {"torch": "2.13.0", "triton": "3.5.0"}}},
    "cpu": {"machine": {"cpu_model": "Invented CPU 3000"}},
    "cores": {"machine": {"cores": 4}},
    "memory": {"machine": {"memory_bytes": 16 << 30}},
    "python": {"machine": {"python": "CPython 3.12.1"}},
    "threads": {"settings": {"threads": 2}},
    "dtype": {"settings": {"dtype": "bf16"}},
    "seed": {"settings": {"seed": 1}},
    "batch": {"settings": {"batch": 8}},
    "weights": {"edit": lambda row: replace(row, weights="transformer@beef")},
    "text": {"edit": lambda row: replace(row, text="pg19:test@1234")},
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_named_and_refused_and_can_be_allowed(base, tmp_path, name):
    if name == "text":
        base = write(tmp_path / "base", edit=lambda row: replace(row, text="bundled:prose@ba98"), **SMALL)
    head = write(tmp_path / "head", seed=1, **{**SMALL, **DIFFERENT[name]})
    sentence = one_sentence(compared(base, head), INCOMPARABLE)
    assert f"they differ in {name} " in sentence and "in base" in sentence and "in head" in sentence
    for option in (("--allow-different", name), ("--anyway",)):
        done = compared(base, head, *option)
        assert done.code == PASS and f"Allowed to differ: {name} " in done.out, done.err


@pytest.mark.parametrize(
    "gpu", [{"name": "Other GPU"}, {"driver": "575.0"}, {"sm_clock_max_hz": 1.2e9}], ids=lambda gpu: [*gpu][0]
)
def test_the_gpu_counts_where_it_was_used(tmp_path, gpu):
    usual = {"name": "Invented GPU", "driver": "570.1", "sm_clock_max_hz": 1.9e9, "count": 1}
    name = {"sm_clock_max_hz": "clocks", "name": "gpu"}.get([*gpu][0], [*gpu][0])
    for device, code in (("cpu", PASS), ("cuda:0", INCOMPARABLE)):
        runs = [
            write(tmp_path / f"{device[:3]}-{seed}", seed=seed, device=device, machine={"gpu": card}, **SMALL)
            for seed, card in enumerate((usual, usual | gpu))
        ]
        done = compared(*runs)
        assert done.code == code and (code == PASS or f"differ in {name} " in done.err), done.err


@pytest.mark.parametrize(("device", "code"), [("cpu", PASS), ("cuda:0", INCOMPARABLE)])
def test_a_gpu_that_ran_at_another_clock_is_another_machine(tmp_path, device, code):
    """Its limits are the same; somebody locked it lower. Idle samples are no matter."""
    runs = []
    for seed, hz in enumerate((1.9e9, 1.2e9)):
        run = write(tmp_path / f"r{seed}", seed=seed, device=device, **SMALL)
        clocks = [3e8] * 6 + [hz] * 4
        series = pd.DataFrame({"job": "j", "t_s": range(10), "kind": "sample", "sm_clock_hz": clocks})
        table = pa.Table.from_pandas(series, preserve_index=False)
        write_table(run / "telemetry.parquet", table.replace_schema_metadata({"kvmark_schema": "1"}))
        runs.append(run)
    done = compared(*runs)
    assert done.code == code and ("1900 MHz in base, 1200 MHz in head" in done.err) == (code != PASS)
    assert compared(*runs, "--allow-different", "clocks").code == (PASS if code else USAGE)


def test_the_limit_that_was_exceeded_or_not_is_told(base, tmp_path):
    head = write(tmp_path / "head", seed=1, **SMALL)
    assert "change by more than 5 %: the noise of this machine is not known" in compared(base, head).out
    entry = {"architecture": "transformer", "suite": "decode", "axes": "{}", "metric": "prefill_s"}
    noise = {"noise": [entry | {"noise": 0.4, "processes": 8}], "source_hash": None, "created": "2026-01-02T"}
    (tmp_path / "noise.json").write_text(json.dumps({"schema": 1, "machine": "m1"} | noise))
    said = compared(base, head, "--calibration", str(tmp_path / "noise.json")).out
    assert "more than 5 % to 40 %: the noise of this machine, calibrated 2026-01-02" in said


def test_code_and_repeats_may_differ(base, tmp_path):
    other = {"commit": "f" * 40, "dirty": True, "source_hash": "x", "kernel": "Linux 9"}
    head = write(tmp_path / "head", seed=1, machine=other, settings={"repeats": 9, "timeout_s": 1.0}, **SMALL)
    done = compared(base, head)
    assert done.code == PASS and "head head@ffffffffff+" in done.out
    assert "The sources of head differ from its commit." in done.out


def test_a_calibration_of_another_machine_is_refused(base, tmp_path):
    entry = {"architecture": "transformer", "suite": "decode", "axes": "{}", "metric": "prefill_s"}
    noise = {"noise": [entry | {"noise": 0.4, "processes": 8}], "source_hash": None, "created": "2026"}
    head, file = write(tmp_path / "head", seed=1, speed=slower(1.2), **SMALL), tmp_path / "noise.json"
    file.write_text(json.dumps({"schema": 1, "machine": "m2"} | noise))
    assert "calibration" in one_sentence(compared(base, head, "--calibration", str(file)), INCOMPARABLE)
    file.write_text(json.dumps({"schema": 1, "machine": "m1"} | noise))
    said = json.loads(_json(base, head, tmp_path, "--calibration", str(file)))["findings"]
    assert {f["metric"]: f["verdict"] for f in said if f["kind"] == "latency"} == {
        "prefill_s": "SAME",
        "decode_step_s": "SLOW",
    }


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "noise": [{"noise": -1}]}']
)
def test_a_file_that_is_no_calibration_is_told(base, tmp_path, content):
    (tmp_path / "noise.json").write_text(content)
    one_sentence(compared(base, tmp_path / "x", "--calibration", str(tmp_path / "noise.json")), USAGE)


@pytest.mark.parametrize(
    "options",
    [("--allow-different", "colour"), ("--only", "speed"), ("--threshold", "-1"), ("--threshold", "nan")],
)
def test_wrong_options_are_told(base, tmp_path, options):
    head = write(tmp_path / "head", seed=1, **SMALL)
    one_sentence(compared(base, head, *options), USAGE)


def test_what_is_no_run_folder_is_told(base, tmp_path):
    one_sentence(compared(base, tmp_path / "nowhere"), USAGE)
    one_sentence(compared(base, base), USAGE)
    (tmp_path / "run.json").write_text("{")
    one_sentence(compared(tmp_path, base), USAGE)


def _json(base, head, tmp_path, *options):
    compared(base, head, "--json", str(tmp_path / "out.json"), *options)
    return (tmp_path / "out.json").read_text()


@pytest.fixture
def hostile(tmp_path):
    """A comparison with one regression of every kind under a name from somebody's file."""
    names = {"architectures": (HOSTILE, "transformer"), "contexts": (256,), "quality": True}
    worse = times(0.0, "accuracy_strict")
    base = write(tmp_path / "base", **names)
    head = write(tmp_path / "head", seed=1, speed=slower(1.5), edit=worse, **names)
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "junit")}
    done = compared(base, head, *(w for name, path in files.items() for w in (f"--{name}", str(path))))
    assert done.code == REGRESSION and done.broke is None, done.broke
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def test_json_holds_every_finding(hostile):
    said = json.loads(hostile["json"], parse_constant=lambda name: pytest.fail(name))
    assert (said["schema"], said["exit_code"], said["outcome"]) == (1, 1, "regression")
    findings = said["findings"]
    assert sum(said["counts"].values()) == len(findings) and {f["architecture"] for f in findings} == {
        HOSTILE,
        "transformer",
    }
    slow = [f for f in findings if f["verdict"] == "SLOW"]
    assert len(slow) == 4 and all(
        f["low"] < f["effect"] < f["high"] and f["effect"] > 0.4 and f["fails"] and f["axes"] for f in slow
    )
    assert [f["fails"] for f in findings] == sorted((f["fails"] for f in findings), reverse=True)
    assert said["base"]["source_hash"] == "hash-0" and said["head"]["machine"] == "m1"
    assert said["rules"]["alpha"] == 0.05 and said["rules"]["calibrated"] is False


def test_markdown_has_one_line_per_row_and_no_markup_from_names(hostile):
    lines = hostile["markdown"].splitlines()
    assert lines[0].startswith("**kvmark&#58; REGRESSION&#58;") or lines[0].startswith("**kvmark: REGRESSION")
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4 + 2 and len({line.count("|") for line in table}) == 1
    text = hostile["markdown"]
    for bad in ("<script", "`", "](", "@everyone", "\x07", "\n# "):
        assert bad not in text, bad
    assert "&#60;script&#62;" in text and "SLOW" in text and "WORSE" in text


def test_junit_parses_and_its_counts_are_those_of_its_cases(hostile):
    root = ElementTree.fromstring(hostile["junit"])
    [suite] = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases) == len(json.loads(hostile["json"])["findings"])
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 6
    assert any("<script>alert(1)</script>" in case.get("classname") for case in cases)
    assert "<script>" not in hostile["junit"] and "\x07" not in hostile["junit"]
    assert suite.find("testcase/failure").get("message").startswith(("SLOW", "WORSE"))


def test_junit_knows_errors_and_skips(tmp_path):
    runs = [write(tmp_path / n, seed=s, replicates=1, **SMALL) for n, s in (("a", 0), ("b", 1))]
    compared(*runs, "--junit", str(tmp_path / "few.xml"))
    assert ElementTree.parse(tmp_path / "few.xml").getroot().get("errors") == "2"
    runs = [write(tmp_path / n, seed=s, noise=0.3, **SMALL) for n, s in (("c", 0), ("d", 1))]
    assert compared(*runs, "--junit", str(tmp_path / "open.xml")).code == PASS
    assert ElementTree.parse(tmp_path / "open.xml").getroot().get("skipped") == "2"


def test_a_refusal_is_in_the_files_too(base, tmp_path):
    head = write(tmp_path / "head", seed=1, settings={"threads": 2}, **SMALL)
    paths = {name: tmp_path / name for name in ("json", "markdown", "junit")}
    one_sentence(
        compared(base, head, *(w for n, p in paths.items() for w in (f"--{n}", str(p)))), INCOMPARABLE
    )
    said = json.loads(paths["json"].read_text())
    assert said["outcome"] == "incomparable" and said["findings"] == [] and "threads" in said["refusals"][0]
    assert "INCOMPARABLE" in paths["markdown"].read_text()
    assert ElementTree.parse(paths["junit"]).getroot().find("testsuite/testcase/error") is not None


def test_a_file_that_cannot_be_written_is_told(base, tmp_path):
    head = write(tmp_path / "head", seed=1, **SMALL)
    (tmp_path / "file").write_text("")
    one_sentence(compared(base, head, "--json", str(tmp_path / "file" / "out.json")), USAGE)


def test_a_long_table_is_cut_in_the_comment_and_says_so(tmp_path):
    from harness.comparison import Comparison, Finding, Rules, Side
    from harness.comparison.write import MOST_ROWS, as_markdown

    side = Side(("x",), None, None, None, 1)
    many = [
        Finding(f"a{n}", "decode", "{}", "prefill_s", "latency", "SLOW", 1.0, 2.0, 1.0) for n in range(150)
    ]
    text = as_markdown(Comparison(side, side, Rules(), many, [], [], []))
    assert text.count("\n| SLOW") == MOST_ROWS and "50 further rows" in text and len(text.encode()) < 65_536


def test_comparing_imports_neither_torch_nor_models():
    modules = "harness.comparison.write, harness.show_comparison, harness.statistics"
    code = (
        f"import sys, {modules}; sys.exit(bool({{'torch', 'models', 'suites', 'pynvml'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
