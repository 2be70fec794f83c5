"""Figures in processes of their own: what comes back, what is raised, and that nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest

from harness.report.canvas import figure, legend
from harness.report.plot import Pen
from harness.report.pool import later, together
from harness.report.render import render

ROOT = Path(__file__).parents[1]
#: Raises what cannot be made again from its words.
HOMEBOUND = """
class Homebound(Exception):
    def __init__(self, one, other):
        super().__init__("never to be seen")
raise Homebound(1, 2)
"""


def drawing(number: int):
    fig, panel = figure(3.0, 2.5)
    panel.title = f"figure {number}"
    panel.plot([1, 2, 3], [number, 2, 1], Pen(width=1.0, marker="o"))
    legend(fig, {"a": Pen(marker="crossed"), "$b_1$ as it is": Pen(width=2.0)})
    return render(fig, f"f-{number}", f"figure {number}")


def is_gone(pid: int) -> bool:
    """Or waits for its parent to notice that it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def all_go(pids: set[int]) -> bool:
    until = time.monotonic() + 20
    while not all(map(is_gone, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return all(map(is_gone, pids))


def pids_at_work() -> set[int]:
    return {later(os.getppid).result(), *(later(os.getpid).result() for _ in range(8))}


def test_a_figure_is_the_same_bytes_wherever_it_is_drawn():
    here = [drawing(number).result() for number in range(5)]
    with together(cores=2):
        waiting = [drawing(number) for number in range(5)]
        there = [one.result() for one in waiting]
    assert here == there and len(set(here)) == 5
    assert all("$b_1$ as it is" in svg for svg, _ in here)  # no formula


def test_others_draw_and_no_more_than_cores():
    with together(cores=2):
        waiting = [later(os.getpid) for _ in range(6)]
        found = {one.result() for one in waiting}
        drawer = later(os.getppid).result()
        children = Path(f"/proc/{drawer}/task/{drawer}/children").read_text().split()
        assert os.getpid() not in found and found <= set(map(int, children)) and len(children) == 2
    with together(cores=1):
        assert later(os.getpid).result() == os.getpid()
    assert later(os.getpid).result() == os.getpid()


def test_who_makes_a_page_imports_nothing_that_draws():
    code = "import sys, harness.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    code = "import sys, harness.report.draw, harness.report.render; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_raised_there_is_raised_here(cores):
    with together(cores=cores):
        broken, sound = later(partial(Fraction, "no number")), later(partial(int, "1"))
        with pytest.raises(ValueError, match="no number") as raised:
            broken.result()
        assert sound.result() == 1
    assert cores == 1 or "in __new__" in raised.value.__notes__[0]  # its place


def test_an_error_that_cannot_travel_is_told_in_words():
    with together(cores=2), pytest.raises(RuntimeError, match=r"Homebound: never to be seen"):
        later(partial(exec, HOMEBOUND)).result()


def test_a_process_that_dies_is_an_error_of_all_that_come_after_it():
    with together(cores=2):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ended without a word"):
                later(partial(os._exit, 3)).result()


def test_without_the_process_of_the_figures_every_figure_is_an_error():
    with together(cores=2):
        os.kill(later(os.getppid).result(), signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="exit code -9"):
                later(partial(time.sleep, 600)).result()
            time.sleep(0.05)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nobody_is_left_behind(error):
    found = set()
    with pytest.raises(error or ZeroDivisionError), together(cores=2):
        found |= pids_at_work()
        if error is not None:
            for _ in range(4):
                later(partial(time.sleep, 600))
            raise error
        raise ZeroDivisionError  # with nothing left to draw
    assert len(found) >= 2 and all_go(found)


def test_nobody_outlives_a_parent_that_is_killed():
    code = (
        "import sys; sys.path[:0] = ['tests']; import time, functools, test_report_pool as t\n"
        "with t.together(cores=2):\n"
        "    found = t.pids_at_work()\n"
        "    for _ in range(4): t.later(functools.partial(time.sleep, 600))\n"
        "    print(*found, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found = set(map(int, parent.stdout.readline().split()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(found) >= 2 and all_go(found)
