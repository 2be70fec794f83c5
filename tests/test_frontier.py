"""The search for the largest context: exact on any memory that ends somewhere, few probes, honest endings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from command_help import desk_with_a_run, refused
from harness_help import Bench, cells
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness import frontier_search, machine_limits
from harness.errors import UsageError
from harness.frontier import CEILING, FLOOR, GRANULARITY, MOST_PROBES, bracket, most_fitting, next_context
from harness.frontier_asked import _cpu_limit, forget_failed
from harness.frontier_memory import Memory, default_limit_bytes, memory_of
from harness.frontier_search import Search
from harness.frontier_show import COLUMNS, markdown, shown
from harness.plan import Plan, Settings
from harness.predicted import predictor
from harness.rows import base_row, failure_row
from harness.store import read_table, write_rows, write_table

contexts = st.integers(0, CEILING)


def searched(fits, guess: int, ceiling: int, tried: dict[int, bool] | None = None) -> dict[int, bool]:
    """Every context that a search tries, with its answer."""
    tried = dict(tried or {})
    while (context := next_context(tried, guess, ceiling)) is not None:
        assert context not in tried and FLOOR <= context <= ceiling
        tried[context] = fits(context)
    return tried


@given(most=contexts, guess=st.integers(-5, 2 * CEILING), ceiling=st.integers(FLOOR, CEILING))
@example(most=13_087_575, guess=FLOOR, ceiling=4_001_438)
@example(most=12_192_773, guess=0, ceiling=12_192_774)
@example(most=196, guess=9_193_192, ceiling=9_193_192)
def test_the_search_encloses_the_last_context_that_fits_in_few_probes(most, guess, ceiling):
    """Whatever the guess, too low or too high by any factor."""
    tried = searched(lambda context: context <= most, guess, ceiling)
    low, high = bracket(tried)
    assert len(tried) <= MOST_PROBES
    if most >= ceiling:
        assert (low, high) == (ceiling, None)
    elif most < FLOOR:
        assert (low, high) == (None, FLOOR)
    else:
        assert low is not None and high is not None and low <= most < high
        assert high == low + 1 or high <= low * (1 + GRANULARITY)


@given(most=st.integers(FLOOR, CEILING // 2))
def test_a_good_guess_saves_probes(most):
    tried = searched(lambda context: context <= most, round(most * 0.97), CEILING)
    assert len(tried) <= 7


@given(most=st.integers(FLOOR, CEILING // 2), guess=contexts, stop=st.integers(0, MOST_PROBES))
def test_an_interrupted_search_goes_on_from_what_was_tried(most, guess, stop):
    """Also with another guess, or a ceiling that was raised: no context is tried twice."""
    whole = searched(lambda context: context <= most, guess, CEILING // 2)
    begun = dict(list(whole.items())[:stop])
    assert searched(lambda context: context <= most, guess, CEILING // 2, begun) == whole
    low, high = bracket(searched(lambda context: context <= most, guess // 3, CEILING, begun))
    assert low is not None and high is not None and low <= most < high


@settings(max_examples=30)
@given(answers=st.lists(st.booleans(), min_size=40, max_size=40), guess=contexts)
def test_memory_without_order_ends_the_search_all_the_same(answers, guess):
    """Nothing says that a longer context needs more; the search assumes it, and still ends."""
    it = iter(answers)
    tried = searched(lambda context: next(it), guess, CEILING)
    assert len(tried) <= MOST_PROBES


@given(limit=st.integers(0, 2**40), fixed=st.integers(0, 2**30), each=st.integers(1, 2**20))
@settings(max_examples=50)
def test_the_prediction_is_inverted_exactly(limit, fixed, each):
    found = most_fitting(limit, lambda context: fixed + each * context, CEILING)
    expected = (limit - fixed) // each
    assert found == (None if expected >= CEILING else max(expected, 0))


# --- what is predicted --------------------------------------------------------------------------


def test_predicted_bytes_are_weights_cache_and_one_block():
    """By hand for the tiny shape: 2 KiB of keys and values per token, SwiGLU's 4F and the stream's 4E."""
    import models
    from models.shapes import SHAPES

    shape = SHAPES["tiny"]
    told = dataclasses.asdict(shape)
    model = models.build("transformer", shape)
    weights = sum(p.numel() for p in model.parameters()) * 4
    chosen = Settings("tiny")
    predict = predictor("transformer", told, chosen, 3, 8, 1000)
    token = 4 * (4 * shape.dim + 4 * shape.ffn_dim)
    tables = 2 * shape.head_dim // 2 * 4
    assert predict(100) == 1000 + weights + 3 * (2048 * 109 + 100 * token) + 109 * tables
    window = predictor("window:budget=8", told, chosen, 1, 8, 0)
    assert window(5000) - window(4000) == 1000 * (token + tables)
    chunked = predictor("window:budget=8", told, Settings("tiny", prefill_chunk=64), 1, 8, 0)
    assert chunked(5000) - chunked(4000) == 1000 * tables, "a fixed budget and chunks: positions alone"


def test_half_of_what_is_available_is_the_default(monkeypatch):
    monkeypatch.setattr("harness.frontier_memory.available_memory_bytes", lambda: 10 << 30)
    assert default_limit_bytes() == 5 << 30


def test_available_memory_is_the_least_of_machine_and_control_group(tmp_path: Path):
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert machine_limits.available_memory_bytes(meminfo, group) == 4000 * 1024
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2500000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert machine_limits.available_memory_bytes(meminfo, group) == 1000000
    (group / "memory.max").write_text("max\n")
    assert machine_limits.available_memory_bytes(meminfo, group) == 4000 * 1024
    assert machine_limits.available_memory_bytes(tmp_path / "none", tmp_path) is None


# --- a whole search on invented memory ----------------------------------------------------------


class Invented:
    """Stands in for the runner: writes rows as a worker would, on memory that ends where MOST says."""

    def __init__(self, out: Path, crash: bool) -> None:
        self.out, self.crash = out, crash
        self.tried: list[int] = []

    def __call__(self, prepared, out: Path, ceilings: bool) -> None:
        for cell in prepared.cells:
            path = out / "cells" / f"{cell.key}.parquet"
            if path.exists():
                continue
            context = cell.axes["context"]
            self.tried.append(context)
            base = base_row("r", cell, prepared.plan.settings, batch=cell.axes["batch"])
            if self.crash and len(self.tried) == 1:
                row = failure_row(base, "crash", "RuntimeError: lost", "decode")
            elif context <= MOST[cell.architecture, cell.axes["batch"]]:
                row = dataclasses.replace(
                    base, metric="peak_prefill_bytes", value=2.0 * context, unit="bytes"
                )
            else:
                row = failure_row(base, "oom", "MemoryError: too much", "prefill")
                row = dataclasses.replace(row, value=1000.0, unit="bytes")
            write_rows(path, [row])
        manifest = {"cells": [vars(cell) for cell in prepared.cells]}
        (out / "run.json").write_text(json.dumps(manifest))
        if any("context" not in cell.axes for cell in prepared.cells):  # the results are there
            self.assemble(prepared.cells)

    def assemble(self, cells) -> None:
        tables = [read_table(self.out / "cells" / f"{cell.key}.parquet") for cell in cells]
        write_table(self.out / "rows.parquet", pa.concat_tables(tables))


@pytest.fixture(scope="module")
def prepared():
    from harness.runner import prepare

    architectures, suite = ("transformer", "window:budget=64"), "decode:batches=1+4,new_tokens=8"
    found = prepare(Plan("frontier", architectures, (suite,), Settings("tiny", repeats=1)))
    chosen = [cell for cell in found.cells if (cell.architecture, cell.axes["batch"]) in MOST]
    return dataclasses.replace(found, cells=chosen)


MOST = {("transformer", 1): 9_000, ("transformer", 4): 10, ("window:budget=64", 1): 60_000}


def searched_in(prepared, out: Path, ceiling: int = 50_000, crash: bool = False, limit: int = 40 << 20):
    """The runner and the rows of a search on invented memory, beginning with what lies in the folder."""
    runner = Invented(out, crash)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier_search, "run_plan", runner)
        stopped = Search(prepared, out, lambda: Memory(limit, 0), ceiling).run()
    return runner.tried, stopped, read_table(out / "rows.parquet").to_pandas()


@pytest.fixture(scope="module")
def found(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return folder, *searched_in(prepared, folder)


def value(rows, architecture: str, batch: int, metric: str):
    mine = rows[(rows.architecture == architecture) & (rows["axes"] == f'{{"batch": {batch}}}')]
    return mine[mine.metric == metric].iloc[0]


def test_the_result_is_rows_predicted_against_measured(found, prepared):
    *_, rows = found
    measured = value(rows, "transformer", 1, "frontier_context")
    assert measured.value <= 9_000 < measured.value * 1.01 and measured.unit == "tokens"
    shape = prepared.weights["transformer"].shape
    predict = predictor("transformer", shape, prepared.plan.settings, 1, 8, 0)
    predicted = value(rows, "transformer", 1, "frontier_context_predicted")
    assert predict(int(predicted.value)) <= 40 << 20 < predict(int(predicted.value) + 1)
    assert predicted.phase == "predicted"
    failed = value(rows, "transformer", 1, "frontier_failure_bytes")
    assert (failed.value, failed.phase, failed.message) == (1000.0, "prefill", "MemoryError: too much")
    assert value(rows, "transformer", 1, "frontier_fit_bytes").value == 2 * measured.value
    probes = value(rows, "transformer", 1, "frontier_probes")
    probed = rows[(rows.architecture == "transformer") & rows["axes"].str.contains('"batch": 1, "context"')]
    assert probes.value == probed.cell.nunique() > 3
    for axes in probed["axes"]:
        assert re.search(rf"\b{json.loads(axes)['context']:,}\b", probes.message)


def test_no_limit_and_no_room_are_sentences_and_not_numbers(found):
    *_, rows = found
    endless = value(rows, "window:budget=64", 1, "frontier_context")
    assert math.isnan(endless.value) and endless.message == "no limit found up to 50,000 tokens, which fit"
    nothing = value(rows, "transformer", 4, "frontier_context")
    assert math.isnan(nothing.value) and nothing.message == "not even 16 tokens fit"
    text, table = markdown(rows), shown(rows)
    assert "no limit found up to 50,000 tokens" in text and "on the assumption that" in text
    assert len(table.rows) == 3 and all(len(line) == len(COLUMNS) for line in table.rows)
    assert text.splitlines()[2].startswith("| transformer | 1 | ")


def test_finished_probes_are_never_repeated(found, prepared, tmp_path: Path):
    folder, tried, _, before = found
    shutil.copytree(folder, tmp_path / "r")
    again, _, after = searched_in(prepared, tmp_path / "r")
    assert tried and again == []
    assert after.assign(run="r").equals(before.assign(run="r"))
    higher, _, rows = searched_in(prepared, tmp_path / "r", ceiling=100_000, limit=20 << 20)
    assert higher and min(higher) > 50_000, "with another guess, too, only what is above the old ceiling"
    assert 0.99 < value(rows, "window:budget=64", 1, "frontier_context").value / 60_000 <= 1


def test_a_crash_says_nothing_about_memory(prepared, tmp_path: Path):
    """It ends the search of its architecture and batch without a number; the others go on."""
    tried, stopped, rows = searched_in(prepared, tmp_path, crash=True)
    at = f"crash in decode at {tried[0]:,} tokens"
    mine = rows[(rows.architecture == "transformer") & (rows["axes"] == '{"batch": 1}')]
    measured = mine[mine.metric == "frontier_context"].iloc[0]
    assert math.isnan(measured.value) and measured.message == at
    assert not mine.metric.str.contains("failure").any()
    assert stopped == [f"transformer, batch 1: {at}"]
    assert value(rows, "window:budget=64", 1, "frontier_context").message.startswith("no limit found")
    assert searched_in(prepared, tmp_path)[:2] == ([], stopped), "it stays until another try is asked for"
    forget_failed(tmp_path)
    tried, stopped, rows = searched_in(prepared, tmp_path)
    assert tried and not stopped and value(rows, "transformer", 1, "frontier_context").value > 8_900


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "mamba"], ["mamba", "transformer"]),
        (["--arch", "transformer", "--batch", "many"], ["--batch", "1,4", "many"]),
        (["--arch", "transformer", "--batch", "0"], ["batches", "1 or more"]),
        (["--arch", "transformer", "--max-context", "3"], ["--max-context", "16", "16,777,216"]),
        (["--arch", "transformer", "--memory-limit-bytes", "0"], ["memory_limit_bytes", "at least 1"]),
        (["--arch", "transformer", "--shape", "huge"], ["huge", "tiny"]),
        (["--arch", "transformer", "--device", "tpu"], ["tpu", "cpu", "cuda"]),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path, monkeypatch, arguments, words):
    desk = desk_with_a_run(tmp_path, monkeypatch)
    more = [] if "--shape" in arguments else ["--shape", "tiny"]
    sentence = refused(desk, "frontier", *arguments, *more, "--out", "r")
    assert all(word in sentence for word in words), sentence


def test_the_limit_of_an_earlier_search_stays(tmp_path, monkeypatch):
    """Half of what is available differs from day to day; a search has one limit."""
    monkeypatch.setattr("harness.frontier_asked.available_memory_bytes", lambda: 4 << 30)
    monkeypatch.setattr("harness.frontier_memory.available_memory_bytes", lambda: 4 << 30)
    assert _cpu_limit(None, tmp_path)[0] == 2 << 30
    (tmp_path / "run.json").write_text('{"plan": {"settings": {"memory_limit_bytes": 12345}}}')
    assert _cpu_limit(None, tmp_path)[0] == 12345
    assert _cpu_limit(777, tmp_path)[0] == 777
    (tmp_path / "run.json").write_text('{"plan": {"settings": {"memory_limit_bytes": 9999999999}}}')
    with pytest.raises(UsageError, match="available now"):
        _cpu_limit(None, tmp_path)


@pytest.mark.full
def test_a_real_search_on_this_machine(tmp_path):
    """Real processes under a real limit, set relative to what a fresh worker holds.

    Many requests of few tokens, where 1 % is one token: few probes.
    """
    bench = Bench(tmp_path)
    held = memory_of(Settings("tiny", memory_limit_bytes=1 << 40)).held_bytes
    words = ["frontier", "--arch", "transformer", "--shape", "tiny", "--batch", "512", "--out", "r"]
    words += ["--memory-limit-bytes", str(held + (128 << 20))]
    done = bench.run(*words)
    assert done.code == 0, done.err
    run = bench.cwd / "r"
    rows = read_table(run / "rows.parquet").to_pandas()
    found = value(rows, "transformer", 512, "frontier_context")
    failed = value(rows, "transformer", 512, "frontier_failure_context")
    assert FLOOR <= found.value == failed.value - 1
    assert value(rows, "transformer", 512, "frontier_failure_bytes").value > 128 << 20
    assert f"│ {found.value:,.0f} " in done.out and "assumption" in done.out
    # The probes are ordinary rows of the decode suite.
    axes = f'{{"batch": 512, "context": {found.value:.0f}}}'
    fitted = rows[(rows["axes"] == axes) & (rows.status == "ok")]
    assert {"prefill_s", "decode_step_s", "cache_bytes_live"} <= set(fitted.metric)
    assert set(rows[rows.metric == "failure"].status) == {"oom"}

    before = cells(run)
    again = bench.run(*words, "--markdown")
    assert again.code == 0, again.err
    assert again.out.startswith("| architecture | batch | predicted |")
    assert cells(run) == before, "nothing was measured again"
