"""Turns among real processes: one at a time, all equally often, and nobody waits for who is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from harness.environment import ROOT
from harness.rounds import Ended, Rounds, Turn, announce

#: Asks for turns; writes its name when one begins and when it ends. `die`: in the middle of that turn.
WORKER = """
import os, sys
from harness.rounds import Ended, Turn
address, log, name, turns, die = *sys.argv[1:4], *map(int, sys.argv[4:])
turn = Turn(address)
def note(what):
    with open(log, "a") as file:
        file.write(f"{name} {what}\\n")
try:
    for n in range(turns):
        turn.wait()
        note("begins")
        sum(range(20000))
        if n == die:
            os._exit(3)
        note("ends")
except Ended:
    sys.exit(13)
"""


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.touch()
    return path


def worker(rounds: Rounds, log, name: str, turns: int, die: int = -1) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, rounds.address, str(log), name, str(turns), str(die)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})


def lines(log) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


def test_one_measures_at_a_time_and_each_once_per_round(log):
    with Rounds() as rounds:
        announce(rounds.address, 2)
        announce(rounds.address, 2)
        started = [worker(rounds, log, name, 6) for name in "abcd"]
        assert [process.wait(60) for process in started] == [0] * 4
    said = lines(log)
    for begins, ends in zip(said[::2], said[1::2], strict=True):
        assert begins == [ends[0], "begins"] and ends[1] == "ends"
    order = [name for name, what in said if what == "begins"]
    rounds_of = [order[n : n + 4] for n in range(0, len(order), 4)]
    assert len(rounds_of) == 6 and all(sorted(one) == list("abcd") for one in rounds_of)
    assert len({tuple(one) for one in rounds_of}) > 1  # drawn anew


def test_nobody_begins_before_all_have_come(log):
    with Rounds() as rounds:
        announce(rounds.address, 1)
        early = worker(rounds, log, "early", 1)
        announce(rounds.address, 1)
        time.sleep(0.5)
        assert log.read_text() == ""
        late = worker(rounds, log, "late", 1)
        assert [early.wait(60), late.wait(60)] == [0, 0]
    assert Counter(name for name, _ in lines(log)) == {"early": 2, "late": 2}


def test_a_side_that_has_nothing_to_do_is_not_waited_for(log):
    with Rounds() as rounds:
        announce(rounds.address, 0)
        announce(rounds.address, 1)
        assert worker(rounds, log, "only", 2).wait(60) == 0


def test_who_dies_in_its_turn_stops_nobody_and_its_successor_joins(log):
    with Rounds() as rounds:
        announce(rounds.address, 2)
        announce(rounds.address, 1)
        started = [worker(rounds, log, name, 40, die) for name, die in (("a", -1), ("b", 2), ("c", -1))]
        assert started[1].wait(60) == 3
        started[1] = worker(rounds, log, "successor", 2)
        assert [process.wait(60) for process in started] == [0] * 3
    ended = Counter(name for name, what in lines(log) if what == "ends")
    assert ended == {"a": 40, "b": 2, "c": 40, "successor": 2}


def test_who_waits_when_the_rounds_end_is_told(log):
    with Rounds() as rounds:
        announce(rounds.address, 1)
        waiting = worker(rounds, log, "waiting", 1)
        turn = Turn(rounds.address)
        ended = threading.Event()

        def wait():
            with pytest.raises(Ended):
                turn.wait()
            turn.close()
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        time.sleep(0.2)  # the second announcement never comes
    assert ended.wait(10) and waiting.wait(60) == 13 and log.read_text() == ""
    for late in (Turn, lambda address: announce(address, 1)):
        with pytest.raises(Ended):
            late(rounds.address)
