"""Figures in processes of their own: what comes back, what is raised, and that nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from harness.report.canvas import figure, legend, render
from harness.report.plot import Pen
from harness.report.pool import later, together


def drawing(number: int):
    fig, panel = figure(3.0, 2.5)
    panel.title = f"figure {number}"
    panel.plot([1, 2, 3], [number, 2, 1], Pen(width=1.0, marker="o"))
    legend(fig, {"a": Pen(marker="o"), "$b_1$ as it is": Pen(width=2.0)})
    return render(fig, f"f-{number}", f"figure {number}")


def test_a_figure_is_the_same_bytes_wherever_it_is_drawn():
    here = [drawing(number).result() for number in range(5)]
    with together(cores=2):
        waiting = [drawing(number) for number in range(5)]
        there = [one.result() for one in waiting]
    assert here == there and len(set(here)) == 5
    assert all("$b_1$ as it is" in svg for svg, _ in here)  # no formula


def test_children_are_others_and_no_more_than_cores():
    with together(cores=2):
        waiting = [later(lambda: (time.sleep(0.05), os.getpid())[1]) for _ in range(6)]
        assert len(multiprocessing.active_children()) <= 2
        assert os.getpid() not in {one.result() for one in waiting}
    with together(cores=1):
        assert later(os.getpid).result() == os.getpid()
    assert later(os.getpid).result() == os.getpid()


def fail(error: BaseException) -> None:
    raise error


def test_what_a_child_raises_is_raised_here_with_its_place():
    with together(cores=2):
        broken, sound = later(lambda: fail(KeyError("no such thing"))), later(lambda: 1)
        with pytest.raises(KeyError, match="no such thing") as raised:
            broken.result()
        assert "in fail" in raised.value.__notes__[0] and sound.result() == 1


def test_a_child_that_dies_is_an_error():
    with together(cores=2), pytest.raises(RuntimeError, match="exit code 3"):
        later(lambda: os._exit(3)).result()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nobody_is_left_behind(error):
    with pytest.raises(error), together(cores=2):
        for _ in range(4):
            later(lambda: time.sleep(600))
        assert len(multiprocessing.active_children()) == 2
        raise error
    assert multiprocessing.active_children() == []
