"""Rates from prompt to last token, the batch sweep that ends where memory does, and its best batch."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
from harness_help import Bench
from harness_help import rows as rows_of

from harness import throughput
from harness.asked import plan_of
from harness.plan import Cell, Job, Settings
from harness.store import Row, read_table
from harness.supervise import Supervisor
from harness.sweep import SWEEP, left_out

BASE = Row(
    run="r", cell="", architecture="transformer", suite="decode", metric="", value=0.0, unit="s", repeat=0,
    axes='{"batch": 4, "context": 100}', batch=4, device="cpu", threads=1,
)  # fmt: skip


def execution(cell: str, prefill_s: float, step_s: list[float], **fields) -> list[Row]:
    base = dataclasses.replace(BASE, cell=cell, **fields)
    rows = [dataclasses.replace(base, metric="prefill_s", value=prefill_s, phase="prefill")]
    return rows + [
        dataclasses.replace(base, metric="decode_step_s", value=value, step=step, phase="decode")
        for step, value in enumerate(step_s)
    ]


def frame(*parts: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([dataclasses.asdict(row) for part in parts for row in part])


def rates(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    return rows[rows["metric"] == metric]


def test_yoco_counts_generated_tokens_over_prefill_and_generation():
    """The paper's figures at 512K: 180 s of prefill and 4.5 tokens/s can be nothing else."""
    step_s = (1024 / 4.5 - 180) / 1024
    rows = frame(execution("a", 180.0, [step_s] * 1024, batch=1))
    found = rates(throughput.derived_rows(rows), "prefill_plus_1024_tokens_per_s")
    assert found["value"].tolist() == [pytest.approx(4.5)]
    assert (found["unit"].iloc[0], found["phase"].iloc[0]) == ("tokens/s", "e2e")


def test_only_the_first_1024_steps_count_and_every_request_of_a_batch():
    rows = frame(execution("a", 2.0, [0.001] * 1024 + [9.0] * 3))
    found = throughput.derived_rows(rows)
    assert rates(found, "prefill_plus_1024_tokens_per_s")["value"].tolist() == [pytest.approx(4096 / 3.024)]
    assert rates(found, "e2e_tokens_per_s")["value"].tolist() == [pytest.approx(4 * 1027 / (3.024 + 27))]


def test_fewer_steps_are_no_number_and_the_reason_is_said_once_per_cell():
    parts = [execution("a", 1.0, [0.5] * 8, repeat=repeat) for repeat in range(3)]
    found = throughput.derived_rows(frame(*parts))
    short = rates(found, "prefill_plus_1024_tokens_per_s")
    assert len(short) == 1 and math.isnan(short["value"].iloc[0])
    assert "decode:new_tokens=1024" in short["message"].iloc[0] and "there are 8" in short["message"].iloc[0]
    assert rates(found, "e2e_tokens_per_s")["value"].tolist() == [pytest.approx(4 * 8 / 5)] * 3
    assert rates(found, "e2e_tokens_per_s")["repeat"].tolist() == [0, 1, 2]


def test_what_was_not_timed_gives_no_rows():
    failed = [dataclasses.replace(BASE, cell="f", metric="failure", status="oom", value=math.nan)]
    no_steps = execution("b", 1.0, [])
    assert throughput.derived_rows(frame(failed, no_steps)).empty
    mixed = throughput.derived_rows(frame(failed, no_steps, execution("a", 1.0, [0.5])))
    assert set(mixed["cell"]) == {"a"}


# --- a sweep of batches ---------------------------------------------------------------------------


def grid(*batches: int, **fields) -> list[Cell]:
    known = {"architecture": "transformer", "suite": "decode"} | fields
    return [Cell(f"{fields or ''}{b}", axes={"context": 64, "batch": b}, **known) for b in batches]


def test_larger_batches_than_one_that_ran_out_of_memory_are_left_out():
    cells = grid(1, 2, 4, 8)
    others = [*grid(4, 8, architecture="yoco"), *grid(4, replicate=1)]
    longer = Cell("longer", "transformer", "decode", {"context": 128, "batch": 4})
    statuses = {"1": "ok", "2": "oom"}
    left = list(left_out([*cells, *others, longer], statuses))
    assert [cell.key for cell, _ in left] == ["4", "8"]
    assert {message for _, message in left} == {"not tried: batch 2 ran out of memory"}
    [(cell, message)] = left_out(cells, {"1": "ok", "2": "oom", "4": "oom"})
    assert (cell.key, message) == ("8", "not tried: batch 2 ran out of memory")
    assert list(left_out(cells, {"2": "crash", "1": "timeout"})) == []


def test_cells_left_out_get_a_row_and_no_process(tmp_path, monkeypatch):
    """An invented worker for which 4 requests are too many."""
    cells = grid(1, 2, 4, 8, 16)
    asked: list[list[int]] = []

    def one_worker(self, job, groups, *_):
        asked.append([cell.axes["batch"] for group in groups for cell in group])
        for cell in (cell for group in groups for cell in group):
            if cell.axes["batch"] >= 4:
                self.record_failure(cell, "oom", "MemoryError: too much", "prefill")
                return cell.key
            self.settle(cell.key, "ok")
        return None

    monkeypatch.setattr(Supervisor, "_one_worker", one_worker)
    common = {"run": "r", "machine": "m", "sources": {}, "weights": {}}
    supervisor = Supervisor(tmp_path, Settings("tiny"), common)
    supervisor.run(Job("job", tuple((cell,) for cell in cells)))
    assert asked == [[1, 2, 4, 8, 16]]
    assert supervisor.statuses == {"1": "ok", "2": "ok", "4": "oom", "8": "oom", "16": "oom"}
    told = [read_table(tmp_path / "cells" / f"{n}.parquet").to_pylist()[0]["message"] for n in (4, 8, 16)]
    assert told == ["MemoryError: too much", *["not tried: batch 4 ran out of memory"] * 2]


def test_the_best_batch_of_a_sweep():
    def measured(batch: int, decode: list[float], prefill: float, replicate: int = 0) -> list[Row]:
        base = dataclasses.replace(
            BASE, cell=f"c{batch}", axes=f'{{"batch": {batch}, "context": 64}}', replicate=replicate
        )
        rows = [dataclasses.replace(base, metric="prefill_tokens_per_s", value=prefill)]
        return rows + [
            dataclasses.replace(base, metric="decode_tokens_per_s", value=value, repeat=repeat)
            for repeat, value in enumerate(decode)
        ]

    failed = [
        dataclasses.replace(
            BASE, cell=f"c{batch}", axes=f'{{"batch": {batch}, "context": 64}}', metric="failure",
            value=math.nan, status="oom", message=message,
        )
        for batch, message in ((16, "MemoryError"), (32, "not tried: batch 16 ran out of memory"))
    ]  # fmt: skip
    parts = [measured(1, [10, 11, 99], 500), measured(4, [40, 41, 42], 400), measured(8, [35, 36, 30], 300)]
    line = throughput.best(frame(*parts, failed)).iloc[0]
    assert (line["context"], line["largest_batch"], line["failed_batch"]) == (64, 8, 16)
    assert (line["decode_tokens_per_s"], line["decode_tokens_per_s_batch"]) == (41, 4)
    assert (line["prefill_tokens_per_s"], line["prefill_tokens_per_s_batch"]) == (500, 1)
    assert math.isnan(line["e2e_tokens_per_s"])
    assert math.isnan(throughput.best(frame(parts[0])).iloc[0]["failed_batch"])
    slow = measured(4, [1], 1, replicate=1) + measured(4, [1], 1, replicate=2)
    assert throughput.best(frame(parts[1], slow)).iloc[0]["decode_tokens_per_s"] == 1, "per process first"
    assert throughput.best(frame(execution("a", 1.0, []))).empty


def test_batch_sweep_on_the_command_line():
    empty = dict.fromkeys(("name", "suite", "arch", "contexts", "batch", "text", "dtype"))
    plan = plan_of(empty | {"arch": ["transformer"], "suite": ["decode"], "batch": "sweep"})
    assert plan.suites == (f"decode:batches={'+'.join(map(str, SWEEP))}",)
    assert SWEEP[:4] == (1, 2, 4, 8)


@pytest.mark.full
def test_a_real_sweep_ends_at_the_first_batch_without_memory(tmp_path):
    from harness.frontier_memory import memory_of

    held = memory_of(Settings("tiny", memory_limit_bytes=1 << 40)).held_bytes
    bench = Bench(tmp_path)
    done = bench.run(
        "run", "--arch", "transformer", "--shape", "tiny", "--suite", "decode:new_tokens=2",
        "--contexts", "64", "--batch", "1,1024,2048", "--repeats", "1", "--out", "r", "--no-ceilings",
        "--no-report",
        "--memory-limit-bytes", str(held + (128 << 20)),
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = rows_of(bench.cwd / "r")
    failed = rows[rows.metric == "failure"].set_index("axes")
    assert failed.status.tolist() == ["oom", "oom"]
    tried, left = (failed.loc[f'{{"batch": {batch}, "context": 64}}'] for batch in (1024, 2048))
    assert tried.phase in ("allocate", "prefill") and tried.unit == "bytes" and tried.value > 10 << 20
    assert left.message == "not tried: batch 1,024 ran out of memory" and math.isnan(left.value)
    assert rates(rows, "e2e_tokens_per_s")["value"].tolist()[0] > 0
    line = throughput.best(rows).iloc[0]
    assert (line["largest_batch"], line["failed_batch"]) == (1, 1024)


def test_the_page_shows_a_sweep_and_nothing_of_a_single_batch(tmp_path):
    from recorded_run import write_run

    from harness.report import load_run
    from harness.report.groups import groups
    from harness.report.sweep import sweep_table

    single, several = (
        groups(load_run(write_run(tmp_path / str(len(batches)), batches=batches, with_failures=False)))[0]
        for batches in ((1,), (1, 4))
    )
    assert sweep_table(single) == []
    (table,) = sweep_table(several)
    shown = [[getattr(field, "text", field) for field in row] for row in table.rows]
    assert {row[0] for row in shown} <= set(several.architectures) and {row[2] for row in shown} == {"4"}
    assert all("tok/s" in row[-1] for row in shown)
