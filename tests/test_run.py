"""Whole runs with real processes: what lies in the folder, when it appears, and what a second run redoes."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from harness_help import TINY, Bench, Done, cells, one_sentence, processes_of, rows, telemetry, tree, wait_for

pytestmark = pytest.mark.full

#: Notes what lies in the run folder when its worker builds it, and prints where events are expected.
WITNESS = """
print("this is no event", flush=True)
seen = sorted(str(p) for p in Path("run").rglob("*"))
(HERE / "seen").write_text("\\n".join(seen)) if not (HERE / "seen").exists() else None
"""
COMMAND = ("run", *TINY, "--repeats", "2", "--arch", "transformer", "--arch", "witness", "--out", "run")


class Watch(threading.Thread):
    """Reads every Parquet file that is visible while a run is going on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.going, self.read, self.torn = folder, True, 0, []
        self.orders: list[set[str]] = []

    def run(self) -> None:
        while self.going:
            there = {p.name for p in self.folder.iterdir()} if self.folder.exists() else set()
            self.orders.append(there)
            for path in self.folder.rglob("*.parquet"):
                try:
                    pq.read_table(path)
                    self.read += 1
                except FileNotFoundError:
                    pass  # a side file that was merged and removed meanwhile
                except Exception as error:
                    self.torn.append((path, error))
            time.sleep(0.01)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.toy("witness", WITNESS, at=32)
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def first(bench) -> tuple[Done, Watch]:
    watch = Watch(bench.cwd / "run")
    watch.start()
    done = bench.run(*COMMAND)
    watch.going = False
    watch.join()
    return done, watch


@pytest.fixture(scope="module")
def table(bench, first) -> pd.DataFrame:
    assert first[0].code == 0, first[0].err
    return rows(bench.cwd / "run")


def test_a_run_ends_in_rows_a_page_and_a_summary(bench, first):
    done, _ = first
    assert (done.code, done.err) == (0, "")
    assert (bench.cwd / "reports" / "local" / "run" / "index.html").exists()
    assert "reports/local/run/index.html" in done.out and "transformer" in done.out
    assert processes_of(bench.cwd / "run") == []


def test_the_manifest_is_there_before_the_first_cell(bench, first, table):
    seen = (bench.here / "seen").read_text().splitlines()
    assert "run/run.json" in seen
    assert not [name for name in seen if name.startswith("run/cells/")]
    _, watch = first
    assert all("run.json" in there for there in watch.orders if there & {"jobs", "rows.parquet"})
    manifest = json.loads((bench.cwd / "run" / "run.json").read_text())
    assert manifest["plan"]["architectures"] == ["transformer", "witness"]
    assert {"commit", "dirty", "source_hash", "cpu_model"} <= manifest["machine"].keys()
    assert {cell["key"] + ".parquet" for cell in manifest["cells"]} == set(cells(bench.cwd / "run"))


def test_parquet_files_are_never_seen_half_written(bench, first, table):
    _, watch = first
    assert watch.read > 10 and watch.torn == []
    assert not [
        p for p in (bench.cwd / "run").rglob("*") if p.name.startswith((".partial", ".")) and p.suffix
    ]


def test_every_repeat_is_kept_and_the_warm_up_is_not(table):
    for _, cell in table.groupby("cell"):
        steps = cell[cell.metric == "decode_step_s"]
        assert sorted(zip(steps.repeat, steps.step, strict=True)) == [
            (r, s) for r in (0, 1) for s in range(3)
        ]
        prefill = cell[cell.metric == "prefill_s"]
        assert prefill.repeat.tolist() == [0, 1] and (prefill.value > 0).all()
    assert table.repeat.dropna().min() == 0


def test_loading_is_a_metric_once_per_model_and_process(table):
    load = table[table.metric == "load_s"]
    assert sorted(load.architecture) == ["transformer", "witness"]
    assert (load.value > 0).all() and (load.phase == "load").all()


def test_rows_say_what_they_are(table):
    assert (table.status == "ok").all()
    assert set(table.axis) == {"systems"} and set(table.weights) == {"random@seed=0"}
    assert set(table.dtype) == {"fp32"} and set(table.device) == {"cpu"} and set(table.threads) == {1}
    live = table[table.metric == "cache_bytes_live"].groupby("cell").value.first()
    predicted = table[table.metric == "cache_bytes_predicted"].groupby("cell").value.first()
    assert live.to_dict() == predicted.to_dict()
    measured = table[table.metric == "decode_step_s"]
    assert set(measured.scoring_mode) == {"cache-step"} and set(measured.batch) == {1}


def test_repeats_of_the_architectures_alternate(bench, table):
    """A, B, A, B, warm-up first, at each point of the grid before the next one."""
    marks = telemetry(bench.cwd / "run").query("kind == 'mark' and phase == 'prefill'")
    assert marks.t_s.is_monotonic_increasing
    assert marks.architecture.tolist() == ["transformer", "witness"] * 6
    contexts = table.drop_duplicates("cell").set_index("cell")["axes"].map(lambda a: json.loads(a)["context"])
    assert marks.cell.map(contexts).tolist() == [32] * 6 + [64] * 6


def test_memory_is_sampled_over_time_with_its_source(bench, table):
    found = telemetry(bench.cwd / "run")
    samples, marks = found[found.kind == "sample"], found[found.kind == "mark"]
    assert set(samples.source) == {"rss"} and (samples.rss_bytes > 0).all()
    # Before the first mark there are samples of an interpreter that has hardly started; then torch is in.
    assert (samples.rss_bytes[samples.t_s >= marks.t_s.min()] > 100e6).all()
    assert samples.power_w.isna().all(), "absence is null, not zero"
    assert samples.t_s.min() < marks.t_s.min(), "sampling began before the first execution"
    assert samples.t_s.max() > marks.t_s.median()
    assert set(marks.phase) == {"allocate", "prefill", "decode", "idle"}


def test_the_same_command_measures_nothing_twice(bench, table):
    run = bench.cwd / "run"
    before, times = cells(run), {p: p.stat().st_mtime_ns for p in (run / "cells").iterdir()}
    done = bench.ask(*COMMAND)
    assert done.code == 0 and "4 of 4 cells were measured before" in done.out
    assert cells(run) == before and {p: p.stat().st_mtime_ns for p in times} == times
    pd.testing.assert_frame_equal(rows(run), table)


def test_another_plan_in_the_folder_is_refused(bench, table):
    before = tree(bench.cwd / "run")
    sentence = one_sentence(bench.ask(*COMMAND, "--seed", "5"), 2)
    assert "another plan" in sentence
    assert tree(bench.cwd / "run") == before


def test_a_damaged_cell_is_measured_again_and_no_other(bench, table):
    run = bench.cwd / "run"
    before = cells(run)
    damaged = run / "cells" / min(before)
    damaged.write_bytes(damaged.read_bytes()[:100])
    (run / "cells" / ".partial-left-by-a-kill").write_bytes(b"x")
    done = bench.ask(*COMMAND)
    assert done.code == 0 and "3 of 4 cells" in done.out
    after = cells(run)
    assert {name for name in before if after[name] != before[name]} == {damaged.name}
    assert len(rows(run)) == len(table) or len(rows(run)) == len(table) + 1  # one more load_s
    assert not list(run.rglob(".partial*"))


def test_changed_sources_are_measured_anew(bench, table):
    """Old cells stay on the disk, but neither the rows nor the report take them for the new code's."""
    run = bench.cwd / "run"
    before = cells(run)
    source = bench.source / "models" / "layers.py"
    source.write_text(source.read_text() + "# changed\n")
    done = bench.run(*COMMAND)
    assert done.code == 0 and "measured before" not in done.out
    assert "4 cells here were measured with another" in done.out
    new = set(rows(run).cell)
    assert len(new) == 4 and not {f"{key}.parquet" for key in new} & before.keys()
    assert {name: data for name, data in cells(run).items() if name in before} == before
    assert not set(telemetry(run).cell.dropna()) - new


# --- interruptions --------------------------------------------------------------------------------

#: Never returns while HERE/hang exists, and says so.
HANG = """
while (HERE / "hang").exists():
    (HERE / "hanging").touch()
    time.sleep(0.05)
"""
INTERRUPTED = ("run", *TINY, "--arch", "transformer", "--arch", "hangs", "--out", "cut", "--no-report")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("cut"))
    bench.toy("hangs", HANG)
    yield bench
    (bench.here / "hang").unlink(missing_ok=True)
    bench.close()


def until_it_hangs(cut: Bench):
    """A run whose first group is finished and whose second hangs in mid-cell."""
    (cut.here / "hanging").unlink(missing_ok=True)
    (cut.here / "hang").touch()
    process = cut.start(*INTERRUPTED)
    try:
        wait_for(lambda: (cut.here / "hanging").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        assert len(cells(cut.cwd / "cut")) == 2
        assert len(processes_of(cut.cwd / "cut")) == 2, "a worker and a sampler"
    except BaseException:
        process.kill()
        raise
    return process


def test_ctrl_c_and_kill_lose_only_the_cell_in_flight(cut):
    """One story, since each chapter costs seconds: refused twin, SIGINT, kill -9, the same command."""
    run = cut.cwd / "cut"
    process = until_it_hangs(cut)
    finished = cells(run)

    twin = cut.run(*INTERRUPTED)
    assert "in use by another" in one_sentence(twin, 2)
    assert process.poll() is None and cells(run) == finished

    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.startswith("kvmark: Interrupted; the same command") and "Traceback" not in err
    wait_for(lambda: not processes_of(run))
    assert cells(run) == finished
    assert set(rows(run).cell) == {name.removesuffix(".parquet") for name in finished}
    marked = set(telemetry(run).cell.dropna())
    assert len(marked) >= 3

    process = until_it_hangs(cut)
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_of(run))
    assert cells(run) == finished

    (cut.here / "hang").unlink()
    done = cut.ask(*INTERRUPTED)
    assert done.code == 0, done.err
    assert "2 of 4 cells were measured before" in done.out
    after = cells(run)
    assert len(after) == 4 and {name: after[name] for name in finished} == finished
    assert (rows(run).status == "ok").all()
    assert len(set(telemetry(run).cell.dropna())) == 4, "the series of the first session is still there"
    assert not [p.name for p in run.rglob(".*") if p.name != ".lock"]
