"""The gate over finished runs, with every exit code; and what it measures a second time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from command_help import ask, one_sentence
from comparison_help import DECODE, Made, manifest, number, slower, times, without, write

from harness.comparison import Rules
from harness.gate import LOOKS, gate
from harness.gate_rules import CPU_TIME, finished
from harness.plan import Cell, Settings
from harness.rows import base_row
from harness.sides import Side, SideCell, take_turns
from harness.store import write_rows

#: Of a run with a GPU the device times are gated as they are.
GPU = {"device": "cuda"}


def on_a_cpu(row):
    """What is timed becomes CPU time."""
    return replace(row, metric=CPU_TIME.get(row.metric, row.metric))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gate") / "base", quality=True, **GPU)


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVMARK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({}, 0, "PASS"),
        ({"speed": slower(1.3, "window", "decode")}, 1, "SLOW"),
        ({"edit": times(1.0001, "cache_bytes_live")}, 1, "MORE"),
        ({"contexts": (256,)}, 1, "MISSING"),
        ({"edit": times(0.5, "accuracy_strict")}, 1, "WORSE"),
        ({"machine": {"cpu_model": "Another CPU"}}, 3, "cpu"),
        ({"replicates": 7}, 4, "8 processes per side"),
        ({"edit": without(replicate=7, suite=DECODE)}, 4, "not 7 of 8 that were planned"),
    ],
    ids=("same", "slow", "bytes", "removed", "quality", "machine", "few", "interrupted"),
)
def test_finished_runs_and_their_exit_codes(base, changes, code, says):
    """Seven processes would do for a test of eight latencies; a gate wants eight that were measured."""
    head = write(Path("head"), seed=1, **{"quality": True, **GPU, **changes})
    done = ask("gate", str(base), str(head), "--json", "g.json", "--markdown", "g.md", "--junit", "g.xml")
    assert (done.code, done.broke) == (code, None), done.err
    assert says in done.out + done.err
    assert json.loads(Path("g.json").read_text())["exit_code"] == code
    assert says in Path("g.md").read_text() and Path("g.xml").read_text().startswith("<?xml")


def test_a_latency_whose_processes_are_invalid_is_not_passed(base):
    def disturbed(row):
        return replace(row, validity="invalid", validity_reasons="throttled")

    head = write(Path("head"), seed=1, edit=disturbed, quality=True, **GPU)
    done = ask("gate", str(base), str(head))
    assert done.code == 4 and "INVALID" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("one",),
        ("one", "two", "three"),
        ("one", "two", "--base", "main"),
        ("one", "two", "--arch", "yoco"),
        ("one", "two", "--replicates", "9"),
        ("one", "two"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments):
    one_sentence(ask("gate", *arguments), 2)


def test_on_a_cpu_cpu_time_is_gated_and_the_wall_clock_told(tmp_path):
    """Wall clock alone moved: nobody's regression. CPU time moved: that is one."""
    one = write(tmp_path / "one", edit=on_a_cpu)
    slow = write(tmp_path / "slow", seed=1, edit=on_a_cpu, speed=slower(1.3))
    found = finished(one, slow, Rules())
    assert {f.metric for f in found.findings if f.verdict == "SLOW"} == set(CPU_TIME.values())
    walls = [write(tmp_path / f"wall{n}", seed=n, speed=slower(1 + n)) for n in range(2)]
    found = finished(*walls, Rules())
    assert found.exit_code == 0 and not [f for f in found.findings if f.kind == "latency"]
    assert sum("Wall clock, not gated" in note for note in found.notes) == 2


# --- measured here ----------------------------------------------------------------------------------


@dataclass
class Invented(Side):
    """A side whose cells take invented times: `seconds(cell)` for each process."""

    seconds: Any = None
    turns: Any = None
    contexts: set = field(default_factory=set)  # what was measured in which replicate

    def prepare(self, architectures, replicates):
        self.cells = [
            SideCell(
                f"{self.name[0]}{name[0]}{n:02d}{at}", name, DECODE, {"batch": 1, "context": at}, n, None
            )
            for n in range(replicates)
            for at in (256, 1024)
            for name in architectures
        ]
        return self

    def measure(self, cells, hear):
        cells = list(cells)
        self.turns.append((self.name, sorted({cell.replicate for cell in cells})))
        self.contexts.update((cell.replicate, cell.axes["context"]) for cell in cells)
        rows = [row for cell in cells for row in self._rows(cell)]
        self.folder.mkdir(exist_ok=True)
        write_rows(self.folder / "rows.parquet", rows)
        told = [{k: v for k, v in vars(cell).items() if k != "process"} for cell in cells]
        manifest(self.folder, told, Made(seed=len(self.name), **GPU))

    def _rows(self, cell):
        known = {k: v for k, v in vars(cell).items() if k != "process"}
        blank = base_row("invented", Cell(**known), Settings(device="cuda"))
        one = number(blank, "prefill_s", self.seconds(self, cell), phase="prefill", validity="valid")
        return [replace(one, repeat=repeat) for repeat in range(3)]


def sides(tmp_path, seconds, architectures=("still", "torn"), replicates=8):
    turns: list = []
    made = [Invented(name, tmp_path / name, seconds=seconds, turns=turns) for name in ("base", "head")]
    return [side.prepare(architectures, LOOKS * replicates) for side in made], turns


def quiet(side, cell):
    return 0.02 * (1 + 0.001 * cell.replicate)


def test_sides_take_turns_abba(tmp_path):
    (base, head), turns = sides(tmp_path, quiet)
    take_turns(base, head, lambda cell: cell.replicate < 4, lambda *_: None)
    assert [name[0] for name, _ in turns] == list("bhhbbhhb")
    assert [replicates for _, replicates in turns] == [[0], [0], [1], [1], [2], [2], [3], [3]]


def test_a_cell_that_one_side_alone_has_is_measured_there(tmp_path):
    (base, head), turns = sides(tmp_path, quiet, replicates=1)
    head.cells = [cell for cell in head.cells if cell.replicate == 0]
    take_turns(base, head, lambda cell: True, lambda *_: None)
    assert turns == [("base", [0]), ("head", [0]), ("base", [1])]


def test_what_is_undecided_is_measured_once_more_and_nothing_else(tmp_path):
    """Torn at 256: the first eight processes of both sides lie far apart, the next eight do not."""

    def seconds(side, cell):
        wide = (cell.architecture, cell.axes["context"]) == ("torn", 256) and cell.replicate < 8
        return 0.02 * (1 + (0.2 * (cell.replicate % 2) if wide else 0.001 * cell.replicate))

    (base, head), turns = sides(tmp_path, seconds)
    found = gate(base, head, 8, Rules(looks=LOOKS), lambda *_: None)
    counts = {(f.architecture, f.place[-4:].strip()): (f.num_base, f.num_head) for f in found.findings}
    assert counts.pop(("torn", "256")) == (16, 16) and set(counts.values()) == {(8, 8)}
    assert found.exit_code == 0 and found.counts["SAME"] >= 3
    assert {at for replicate, at in base.contexts | head.contexts if replicate >= 8} == {256}
    assert any("1 point was measured a second time" in note for note in found.notes)
    assert sum(len(replicates) == 1 for _, replicates in turns) == 32


def test_a_process_that_was_disturbed_is_replaced_by_the_second_set(tmp_path):
    """One of eight was throttled: seven are too few for a gate, however sure they are."""
    (base, head), turns = sides(tmp_path, quiet)
    own = head._rows

    def rows(cell):
        bad = (cell.architecture, cell.axes["context"], cell.replicate) == ("torn", 256, 3)
        told = {"validity": "invalid", "validity_reasons": "throttled"} if bad else {}
        return [replace(row, **told) for row in own(cell)]

    head._rows = rows
    found = gate(base, head, 8, Rules(looks=LOOKS), lambda *_: None)
    counts = {(f.architecture, f.place[-4:].strip()): (f.num_base, f.num_head) for f in found.findings}
    assert counts.pop(("torn", "256")) == (16, 15) and set(counts.values()) == {(8, 8)}
    assert found.exit_code == 0 and found.counts == {"SAME": 4}


def test_what_is_decided_is_measured_once(tmp_path):
    def seconds(side, cell):
        return quiet(side, cell) * (1.2 if (side.name, cell.architecture) == ("head", "torn") else 1)

    (base, head), turns = sides(tmp_path, seconds)
    found = gate(base, head, 8, Rules(looks=LOOKS), lambda *_: None)
    assert {(f.architecture, f.verdict) for f in found.findings} == {("torn", "SLOW"), ("still", "SAME")}
    assert found.exit_code == 1 and all(f.num_base == 8 for f in found.findings)
    assert sum(len(replicates) == 1 for _, replicates in turns) == 16


def test_a_spec_that_head_no_longer_knows_is_told_and_fails(tmp_path):
    (base, head), _ = sides(tmp_path, quiet)
    head.cells = [cell for cell in head.cells if cell.architecture != "torn"]
    head.refused = {"torn": "Unknown architecture 'torn'."}
    found = gate(base, head, 8, Rules(looks=LOOKS), lambda *_: None)
    assert found.exit_code == 1 and found.counts["MISSING"] == 2
    assert any("head does not know torn" in note for note in found.notes)


def test_too_few_processes_still_show_a_removed_cell_but_pass_no_latency(tmp_path):
    (base, head), _ = sides(tmp_path, quiet, replicates=2)
    found = gate(base, head, 2, Rules(looks=LOOKS), lambda *_: None)
    assert found.exit_code == 4 and found.counts == {"INSUFFICIENT": 4}
    head.cells = [cell for cell in head.cells if cell.architecture != "torn"]
    assert gate(base, head, 2, Rules(looks=LOOKS), lambda *_: None).exit_code == 1
