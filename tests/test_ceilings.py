"""The ceilings: really measured once, small; kept; and None with a reason where they cannot be had."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from types import SimpleNamespace

import pytest
from command_help import ask

from harness import ceilings, ceilings_worker, manifest, runner
from harness.ceilings import Effort, ceilings_of, is_whole
from harness.environment import machine_card
from harness.errors import UsageError
from harness.plan import Plan, Settings
from harness.store import read_table

TINY = Effort((32, 64), (4096, 65536), 0.002)
CARD = {"id": "0123456789ab", "device": "cpu", "threads": 1, "packages": {"torch": "2.99.0+cpu"}}
FOUND = {
    "device": "cpu",
    "dtype": "fp32",
    "threads": 1,
    "flops_per_s": 1e11,
    "read_bytes_per_s": {"1024": 2e10, "1048576": 1e10},
    "measured": "by nobody",
    "note": None,
}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Ceilings are wanted, kept in a folder of the test's own."""
    monkeypatch.delenv("KVMARK_CEILINGS")
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ceilings, "CPU", TINY)
    return tmp_path / "cache" / "ceilings"


class Worker:
    """Stands in for the process; `answer` is what its stdout holds, or the exception of starting it."""

    def __init__(self, monkeypatch, answer=None, code=0, error=""):
        self.starts, self.answer, self.code, self.error = 0, answer, code, error
        subprocess_ = SimpleNamespace(
            run=self.run, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
        )
        monkeypatch.setattr(ceilings, "subprocess", subprocess_)

    def run(self, command, **_):
        self.starts += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return subprocess.CompletedProcess(command, self.code, self.answer, self.error)


@pytest.fixture
def worker(monkeypatch):
    return lambda *arguments, **known: Worker(monkeypatch, *arguments, **known)


def test_a_process_of_its_own_measures_and_the_next_run_finds_it(asked, worker):
    found, note = ceilings_of(CARD, "fp32")
    assert note is None and is_whole(found)
    assert (found["device"], found["dtype"], found["threads"]) == ("cpu", "fp32", 1)
    assert set(found["read_bytes_per_s"]) == {"4096", "65536"}
    assert "CPU time" in found["measured"]
    (kept,) = asked.iterdir()
    assert all(part in kept.name for part in ("0123456789ab", "cpu", "fp32", "1t", "torch2.99.0"))

    process = worker(json.dumps(FOUND))
    assert ceilings_of(CARD, "fp32") == (found, None) and process.starts == 0
    assert ceilings_of(CARD, "fp32", again=True) == (FOUND, None) and process.starts == 1
    assert ceilings_of(CARD, "fp32") == (FOUND, None) and process.starts == 1


@pytest.mark.parametrize(
    "change",
    [
        {"id": "ba9876543210"},
        {"device": "cuda:1"},
        {"threads": 2},
        {"packages": {"torch": "3.0"}},
    ],
)
def test_another_machine_device_thread_count_or_torch_has_ceilings_of_its_own(asked, worker, change):
    process = worker(json.dumps(FOUND))
    ceilings_of(CARD, "fp32")
    ceilings_of(CARD, "bf16")
    ceilings_of(CARD | change, "fp32")
    assert process.starts == 3
    assert len(list(asked.iterdir())) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00 not text",
        b"[1, 2]",
        b'{"version": 1}',
        json.dumps({"version": 0, "ceilings": FOUND}).encode(),
        json.dumps({"version": 1, "ceilings": FOUND | {"flops_per_s": 0}}).encode(),
        json.dumps({"version": 1, "ceilings": FOUND | {"read_bytes_per_s": {}}}).encode(),
        json.dumps({"version": 1, "ceilings": FOUND | {"read_bytes_per_s": {"many": 1.0}}}).encode(),
        json.dumps({"version": 1, "ceilings": FOUND | {"read_bytes_per_s": [1.0]}}).encode(),
    ],
)
def test_a_file_that_is_damaged_or_of_another_version_is_measured_anew(asked, worker, content):
    process = worker(json.dumps(FOUND))
    ceilings_of(CARD, "fp32")
    (kept,) = asked.iterdir()
    kept.write_bytes(content)
    assert ceilings_of(CARD, "fp32") == (FOUND, None) and process.starts == 2
    assert ceilings_of(CARD, "fp32") == (FOUND, None) and process.starts == 2


@pytest.mark.parametrize(
    ("answer", "code", "error", "words"),
    [
        ("", -9, "", "exit code -9: it gave no reason."),
        ("", 1, "Traceback\nRuntimeError: out of luck.\n", "exit code 1: RuntimeError: out of luck."),
        ("almost {", 0, "", "exit code 0"),
        (json.dumps(FOUND | {"flops_per_s": math.nan}), 0, "", "exit code 0"),
        (json.dumps(FOUND), 3, "late", "exit code 3: late."),
        (subprocess.TimeoutExpired("worker", 1), 0, "", "took longer than"),
        (OSError(12, "Cannot allocate memory"), 0, "", "(Cannot allocate memory)."),
    ],
)
def test_a_worker_that_dies_hangs_or_babbles_is_a_note(asked, worker, answer, code, error, words):
    process = worker(answer, code, error)
    found, note = ceilings_of(CARD, "fp32")
    assert found is None and note.endswith(".") and words in note and process.starts == 1
    assert not asked.exists(), "nothing is kept of a failure"


@pytest.mark.full
def test_a_device_that_is_not_there_is_a_note(asked):
    found, note = ceilings_of(CARD | {"device": "cuda:77"}, "fp32")
    assert found is None and "'cuda:77' is not usable" in note


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(asked, worker):
    asked.parent.write_text("a file where the cache folder should be")
    worker(json.dumps(FOUND))
    found, note = ceilings_of(CARD, "fp32")
    assert note is None and found == FOUND | {"note": found["note"]}
    assert found["note"].startswith("not kept for later runs (")


def test_the_switch_leaves_them_out(asked, worker, monkeypatch):
    process = worker(json.dumps(FOUND))
    monkeypatch.setenv("KVMARK_CEILINGS", "0")
    assert ceilings_of(CARD, "fp32") == (None, "Not measured: KVMARK_CEILINGS is 0.")
    assert process.starts == 0


# --- the worker -----------------------------------------------------------------------------------


def test_slow_products_and_sets_that_do_not_fit_are_left_out(monkeypatch):
    monkeypatch.setattr(ceilings_worker, "LONGEST_PRODUCT_S", 0.0)
    monkeypatch.setattr(ceilings_worker, "available_memory_bytes", lambda: 4 * 8192)
    found = ceilings_worker.measure("cpu", "bf16", 1, (64, 16, 32), (65536, 4096, 8192), 0.001)
    assert "product 16 x 16 x 16" in found["measured"]
    assert set(found["read_bytes_per_s"]) == {"4096", "8192"}
    monkeypatch.setattr(ceilings_worker, "available_memory_bytes", lambda: None)
    found = ceilings_worker.measure("cpu", "fp32", 1, (16,), (65536, 4096), 0.001)
    assert set(found["read_bytes_per_s"]) == {"4096"}


def test_the_best_round_counts_and_in_it_the_median(monkeypatch):
    """Three rounds of samples: the second is the quiet one, and its outlier is none of its median."""
    timer = ceilings_worker._Timer("cpu", 1)
    taken = iter([1.0, 9.0, 5.0, 6.0, 7.0, 9.0, 2.0, 2.5, 0.1, 9.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(ceilings_worker, "LEAST_SAMPLES", 3)
    monkeypatch.setattr(timer, "window", lambda work, calls=1: next(taken))
    assert timer.best_median({(1, "a"): lambda: None}, 0.0) == {(1, "a"): 2.0}
    assert next(taken, None) is None


# --- in a run -------------------------------------------------------------------------------------

PLAN = Plan("p", ("transformer",), ("decode:contexts=32,new_tokens=2",), settings=Settings("tiny", repeats=1))


@pytest.fixture(scope="module")
def prepared():
    return runner.prepare(PLAN)


def card_of(out) -> dict:
    return json.loads((out / "run.json").read_text())["machine"]


def test_the_manifest_carries_them_and_no_key_knows(asked, worker, prepared, tmp_path):
    worker(json.dumps(FOUND))
    written = manifest.write_manifest(prepared, tmp_path / "run")
    assert card_of(tmp_path / "run")["ceilings"] == FOUND
    assert written["machine"]["ceilings_note"] is None
    assert "ceilings" not in prepared.machine and "ceilings" not in machine_card()


def test_a_resumed_run_keeps_its_own(asked, worker, prepared, tmp_path):
    process = worker(json.dumps(FOUND))
    out = tmp_path / "run"
    manifest.write_manifest(prepared, out)
    process.answer = json.dumps(FOUND | {"flops_per_s": 2e11})
    next(asked.iterdir()).unlink()
    manifest.write_manifest(prepared, out)
    manifest.write_manifest(prepared, out, ceilings=False)
    assert card_of(out)["ceilings"] == FOUND and process.starts == 1
    moved = dataclasses.replace(prepared, machine=prepared.machine | {"id": "another"})
    manifest.write_manifest(moved, out)
    assert card_of(out)["ceilings"]["flops_per_s"] == 2e11 and process.starts == 2


def test_a_run_that_does_not_want_them_says_so_and_one_that_later_does_gets_them(
    asked, worker, prepared, tmp_path
):
    process = worker(json.dumps(FOUND))
    out = tmp_path / "run"
    manifest.write_manifest(prepared, out, ceilings=False)
    assert card_of(out)["ceilings"] is None and process.starts == 0
    assert card_of(out)["ceilings_note"] == "Not measured: --no-ceilings."
    manifest.write_manifest(prepared, out)
    assert card_of(out)["ceilings"] == FOUND


@pytest.mark.parametrize("machine", [None, [], {"ceilings": 5}, {"ceilings": {"flops_per_s": "fast"}}])
def test_a_manifest_that_somebody_edited_is_no_reason_to_stop(asked, worker, prepared, tmp_path, machine):
    worker(json.dumps(FOUND))
    out = tmp_path / "run"
    manifest.write_manifest(prepared, out)
    edited = json.loads((out / "run.json").read_text())
    edited["machine"] = machine if not isinstance(machine, dict) else edited["machine"] | machine
    (out / "run.json").write_text(json.dumps(edited))
    manifest.write_manifest(prepared, out)
    assert card_of(out)["ceilings"] == FOUND


@pytest.mark.parametrize(("option", "wanted"), [((), True), (("--no-ceilings",), False)])
def test_the_option_reaches_the_run(monkeypatch, tmp_path, option, wanted):
    asked_for = []

    def run(*arguments):
        asked_for.append(arguments[-1])
        raise UsageError("Far enough.")

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.chdir(tmp_path)
    done = ask("run", "--shape", "tiny", "--arch", "transformer", "--suite", "decode:contexts=32", *option)
    assert (done.code, asked_for) == (2, [wanted])


@pytest.mark.full
def test_a_real_run_has_mfu_and_mbu_of_what_was_measured_here(asked, prepared, tmp_path):
    out = tmp_path / "run"
    runner.run(prepared, out)
    roof = card_of(out)["ceilings"]
    rows = read_table(out / "rows.parquet").to_pandas().drop_duplicates("metric").set_index("metric")["value"]
    assert rows["prefill_mfu"] * rows["prefill_cpu_s"] * roof["flops_per_s"] == pytest.approx(
        rows["prefill_flops"]
    )
    assert 0 < rows["decode_mbu"] == pytest.approx(1 / rows["decode_over_floor"])
    assert 0 < rows["weights_read_bytes"] < rows["read_bytes_per_step"]
