"""What a worker may say by mistake: noise, garbage, half a line; only the cell in flight takes the blame."""

from __future__ import annotations

import os

import pytest
from fault_help import last_words

from harness import supervise
from harness.events import NoEvent, Reader
from harness.plan import Cell, Settings
from harness.rows import base_row
from harness.store import LONGEST_MESSAGE, outcome, write_rows
from harness.supervise import EnvironmentRefuses

START = "say('start', 'a'); "
DIE = "os.kill(os.getpid(), signal.SIGKILL)"
WRITE = "os.write(1, {})"

#: What is written while cell a is in flight -> how its message ends.
GARBAGE = {
    "text": (b"hello\n", "no event: 'hello'"),
    "not UTF-8": (b"\xff\xfe{\n", "no event: '\\ufffd\\ufffd{'"),
    "JSON, but no object": (b"[1, 2]\n", "no event: '[1, 2]'"),
    "no kind": (b'{"cell": "a"}\n', 'no event: \'{"cell": "a"}\''),
    "unknown kind": (b'{"event": "x", "cell": "a"}\n', '"cell": "a"}\''),
    "unknown cell": (b'{"event": "done", "cell": "z"}\n', '"z"}\''),
    "a list for a cell": (b'{"event": "done", "cell": ["a"]}\n', '["a"]}\''),
    "no such status": (b'{"event": "failed", "cell": "a", "status": "ok", "message": "m"}\n', "'"),
    "an event that lacks its time": (b'{"event": "start", "cell": "b"}\n', '"b"}\''),
    "nested beyond measure": (b"[" * 100_000 + b"\n", "'" + "[" * 80 + "'…"),
    "glued to an event": (b'x{"event": "done", "cell": "a"}\n', '"a"}\''),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_a_crash_of_the_cell_in_flight(tmp_path, name):
    written, words = GARBAGE[name]
    script = START + WRITE.format(written) + "; say('done', 'b'); time.sleep(60)"
    assert last_words(tmp_path, script) == {"a": "crash"}
    status, message = outcome(tmp_path / "cells" / "a.parquet")
    assert message.startswith("the worker wrote what is no event: ") and message.endswith(words)
    assert message.isascii() or "…" in message


def test_a_line_without_end_does_not_fill_the_parents_memory(tmp_path):
    script = START + "[os.write(1, b'x' * 65536) for _ in range(64)]; time.sleep(60)"
    assert last_words(tmp_path, script) == {"a": "crash"}
    assert "a line without end: 'xxx" in outcome(tmp_path / "cells" / "a.parquet")[1]


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        (DIE, "crash", "ended by SIGKILL"),
        ("os.kill(os.getpid(), 40)", "crash", "ended by signal 40"),
        ("sys.stderr.write('x' * 9999); sys.exit(4)", "crash", "exit code 4"),
        ("time.sleep(60)", "timeout", "no result within 1 s"),
        ("os.close(1); time.sleep(60)", "timeout", "no result within 1 s"),
    ],
)
def test_half_a_line_is_nothing_and_the_end_has_its_own_story(tmp_path, end, status, words):
    script = START + WRITE.format(b'{"event": "do') + "; " + end
    assert last_words(tmp_path, script, timeout_s=1) == {"a": status}
    assert words in outcome(tmp_path / "cells" / "a.parquet")[1]


def test_what_is_said_before_the_first_event_is_nobodys_fault(tmp_path):
    """A sitecustomize that greets; with `-P -m` it runs before the worker has its pipe to itself."""
    greeting = "print('Welcome'); os.write(1, b'x' * (3 << 20) + b'\\n'); "
    assert last_words(tmp_path, greeting + "[say('done', c) for c in 'abc']") == dict.fromkeys("abc", "ok")


def test_a_greeting_that_swallows_the_first_event_does_not_change_who_is_to_blame(tmp_path):
    script = "sys.stdout.write('Welcome '); say('start', 'a'); "
    script += f"say('phase', 'a', phase='prefill', architecture='t'); {DIE}"
    assert last_words(tmp_path, script) == {"a": "crash"}


def test_a_child_that_holds_the_pipe_open_does_not_make_a_death_a_timeout(tmp_path):
    script = START + "\npid = os.fork()\nif pid == 0:\n    time.sleep(60)\n    os._exit(0)\n"
    script += f"with open('child', 'w') as file:\n    file.write(str(pid))\n{DIE}"
    try:
        assert last_words(tmp_path, script, timeout_s=50) == {"a": "crash"}
    finally:
        child = int((tmp_path / "child").read_text())
        assert child > 1
        os.kill(child, 9)


def test_a_cell_that_was_written_and_not_yet_announced_is_finished(tmp_path):
    """Its worker dies between the file and the word: the rows count, and nobody is to blame."""
    cell = Cell("a", "transformer", "decode", {"context": 1})
    write_rows(tmp_path / "ready.parquet", [base_row("r", cell, Settings("tiny"))])
    before = (tmp_path / "ready.parquet").read_bytes()
    script = START + f"os.mkdir('cells'); os.replace('ready.parquet', 'cells/a.parquet'); {DIE}"
    assert last_words(tmp_path, script) == {"a": "ok"}
    assert (tmp_path / "cells" / "a.parquet").read_bytes() == before


def test_a_worker_that_hangs_before_it_begins_is_no_cells_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "STARTUP_S", 1.5)
    with pytest.raises(EnvironmentRefuses, match=r"did not begin within 1\.5 s"):
        last_words(tmp_path, "time.sleep(60)", timeout_s=1)
    assert not list((tmp_path / "cells").glob("*"))


def test_events_may_come_in_any_pieces():
    line = b'{"event": "start", "cell": "a", "t_s": 1.5}\n'
    for size in (1, 7, len(line), 3 * len(line)):
        reader, data = Reader({"a"}), line * 3
        parts = [data[i : i + size] for i in range(0, len(data), size)]
        assert [event["t_s"] for part in parts for event in reader.feed(part)] == [1.5] * 3


def test_events_before_garbage_count():
    reader, heard = Reader({"a"}), []
    with pytest.raises(NoEvent):
        for event in reader.feed(b'{"event": "done", "cell": "a"}\n\n'):
            heard.append(event["event"])
    assert heard == ["done"]


def test_messages_of_a_row_have_an_end(tmp_path):
    script = START + "sys.stderr.write('y' * 70000); sys.stderr.flush(); sys.exit(4)"
    last_words(tmp_path, script)
    assert len(outcome(tmp_path / "cells" / "a.parquet")[1]) < LONGEST_MESSAGE + 100
