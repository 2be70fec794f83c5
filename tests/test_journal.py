"""A cell that was killed between its batches goes on where it was, and ends in the same rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import measure as measuring
from harness.journal import Journal
from harness.loading import load_model
from harness.measure import Measurement
from harness.plan import Cell, Settings
from harness.rows import base_row
from harness.store import Row
from suites.suite import Case, Context, Suite
from suites.tokenizer import ByteTokenizer

SETTINGS = Settings(shape="tiny", batch=2)
CONTEXT = Context(ByteTokenizer(), None)
#: Depend on the moment.
TIMES = ("_s", "_share", "_per_s", "_bytes")


class Toy(Suite):
    """Seven requests of growing length; one shares its prompt with another and generates."""

    def cases(self, cell):
        for i in range(7):
            yield Case(f"c{i}", tuple(range(6 + i)), forced=(4, 5, 6), watched=((0, 2),))
        yield Case("c7", tuple(range(9)), max_new_tokens=3)

    def score(self, case, answer):
        return {"nll_nats": -sum(answer.logprobs), "steps": list(answer.logprobs)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(dies=batch or None, file) -> (rows, batches that were executed)."""

    def build(dies: int | None = None, file: str = "a") -> tuple[list[Row], int]:
        executed, real = [], measuring.execute

        def counted(model, cases, *arguments, **named):
            if len(executed) == dies:
                raise KeyboardInterrupt
            executed.append(cases)
            return real(model, cases, *arguments, **named)

        cell = Cell(file, "window:budget=4,sinks=1", "toy", {"context": 8})
        one = Measurement(
            load_model(cell.architecture, SETTINGS), Toy(Suite.Options(), CONTEXT), cell, SETTINGS, None,
            base=lambda cell, **known: base_row("run", cell, SETTINGS, **known),
            on_phase=lambda phase: None, journal=Journal(tmp_path / "unfinished" / f"{file}.jsonl"),
        )  # fmt: skip
        monkeypatch.setattr(measuring, "execute", counted)
        try:
            return one.measure(), len(executed)
        except KeyboardInterrupt:
            return [], len(executed)
        finally:
            monkeypatch.setattr(measuring, "execute", real)

    build.folder = tmp_path / "unfinished"
    return build


def timeless(rows: list[Row]) -> list[Row]:
    return [replace(row, value=0.0) if row.metric.endswith(TIMES) else row for row in rows]


def test_a_cell_goes_on_where_it_was(run):
    whole, batches = run(file="whole")
    assert batches == 4
    assert run(dies=2) == ([], 2)
    rows, executed = run()
    assert executed == 2
    assert repr(timeless(rows)) == repr([replace(row, cell="a") for row in timeless(whole)])
    assert {row.case for row in rows} == {None, *(f"c{i}" for i in range(8))}
    assert run()[1] == 0, "until the cell's own file is written, nothing is asked twice"


def test_another_cell_never_finds_the_answers(run):
    run()
    assert run(file="b")[1] == 4


@pytest.mark.parametrize(("cut", "left"), [(1, 2), (2, 3), (400, 3)])
def test_a_line_that_was_cut_off_is_measured_again(run, cut, left):
    """A lost line end loses nothing, and what is appended after it is whole."""
    run(dies=2)
    file = run.folder / "a.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    assert run()[1] == left
    assert run()[1] == 0


@pytest.mark.parametrize("written", [b"[1]", b"null", b"[" * 100_000, b"\xff\xfe\0", b'{"asked": 3}'])
def test_what_we_did_not_write_is_nothing(run, written):
    run(dies=2)
    file = run.folder / "a.jsonl"
    first, second = filter(None, file.read_bytes().split(b"\n"))
    file.write_bytes(b"\n".join((written, first, second.replace(b"answers", b"replies"))))
    assert run()[1] == 3
    assert run()[1] == 0


def test_other_questions_are_other_batches(run, monkeypatch):
    """The same cell name with cases that changed (which a key would not allow) is not taken for it."""
    run()
    real = Toy.cases
    monkeypatch.setattr(Toy, "cases", lambda self, cell: (replace(c, seed=1) for c in real(self, cell)))
    assert run()[1] == 4
