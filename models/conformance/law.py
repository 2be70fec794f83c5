"""What a law is, and what is said when it is broken.

    @law(covers="T4", budget="any", shapes=("conv",))
    def rows_are_independent(s: Subject) -> None:
        '''Permuting rows permutes results; a row does not depend on its neighbours.'''
        ...
        same(part, whole[rows], 1e-11, "rows [2, 0, 1] alone", batch=3, cuts=cut)

A check compares and raises `Broken`; whatever else an architecture raises while it is checked breaks the
law, too. `covers` names the numbered invariants of the papers (T: TOVA, Y: YOCO, L: LoCoCo).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .subject import Subject

Budget = Literal["ample", "tight", "any"]
Verdict = Literal["kept", "broken", "not applicable"]

EVERY_SHAPE = ("plain", "conv", "heads", "one-kv", "checkpoint", "sliding")


class Broken(Exception):
    """A counter-example: one sentence with the two values and the limit, and the setting to reproduce it."""

    def __init__(self, sentence: str, **setting: Any) -> None:
        super().__init__(sentence)
        self.sentence, self.setting = sentence, setting


@dataclass(frozen=True)
class Outcome:
    """How one law fared on one architecture and shape. `detail` says why, `setting` how to reproduce it;
    `raised` is set where the architecture raised an exception instead of breaking a comparison.
    """

    law: Law
    spec: str
    shape: str
    verdict: Verdict
    detail: str = ""
    setting: dict[str, Any] = field(default_factory=dict)
    raised: bool = False


@dataclass(frozen=True)
class Law:
    """A promise of every architecture; `name` is its identifier, `sentence` what it promises."""

    name: str
    sentence: str
    check: Callable[[Subject], None]
    covers: str = ""
    #: On which budgets: "ample" (at least the tokens of the test, or none), "tight" (below, or none).
    budget: Budget = "any"
    shapes: tuple[str, ...] = ("plain", "conv")
    #: Reason why the law does not apply to a subject, "" where it does.
    excuse: Callable[[Subject], str] = lambda subject: ""

    def applies(self, subject: Subject) -> str:
        """Reason why this law does not apply, "" where it does. Builds the network.

        The law's own excuse comes first: another budget would not change it.
        """
        if reason := self.excuse(subject):
            return reason
        if self.budget == "ample" and not subject.ample:
            return f"its budget is below the {subject.length} tokens of the test"
        if self.budget == "tight" and not subject.tight:
            return f"its budget holds all {subject.length} tokens of the test"
        return ""

    def hold(self, subject: Subject) -> Outcome:
        """Check the law; whatever the architecture raises is an outcome."""
        try:
            reason = subject.refusal() or self.applies(subject)
            if reason:
                return Outcome(self, subject.spec, subject.shape, "not applicable", reason)
            with torch.no_grad():
                self.check(subject)
        except Broken as broken:
            return Outcome(
                self, subject.spec, subject.shape, "broken", broken.sentence, subject.setting(broken.setting)
            )
        except (Exception, SystemExit) as error:
            return Outcome(
                self, subject.spec, subject.shape, "broken", last_line(error, subject.file), raised=True
            )
        return Outcome(self, subject.spec, subject.shape, "kept")


def law(
    covers: str = "",
    budget: Budget = "any",
    shapes: tuple[str, ...] = ("plain", "conv"),
    excuse: Callable[[Subject], str] = lambda subject: "",
) -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law of a function; its docstring is the sentence."""

    def make(check: Callable[[Subject], None]) -> Law:
        sentence = " ".join((check.__doc__ or "").split())
        return Law(check.__name__, sentence, check, covers, budget, shapes, excuse)

    return make


def same(got: Tensor, expected: Tensor, limit: float, what: str, **setting: Any) -> None:
    """Raise Broken at the first position where logits (B,T,V) or (B,V) differ by more than `limit`.

    NaN differs from everything. `at`, if given, holds the true position of each column.
    """
    at = setting.pop("at", None)
    if got.shape != expected.shape:
        raise Broken(f"{what}: shape {tuple(got.shape)}, not {tuple(expected.shape)}.", **setting)
    if got.ndim == 2:
        got, expected = got[:, None], expected[:, None]
    gap_BTV = (got - expected).abs().nan_to_num(float("inf"), float("inf"))
    wrong_BT = gap_BTV.amax(-1) > limit
    if not wrong_BT.any():
        return
    column = int(wrong_BT.any(0).nonzero()[0])
    row = int(wrong_BT[:, column].nonzero()[0])
    token = int(gap_BTV[row, column].argmax())
    a, b = float(got[row, column, token]), float(expected[row, column, token])
    raise Broken(
        f"{what}: a logit is {a:.6g} and not {b:.6g}; a gap of {gap_BTV[row, column, token]:.3g}, "
        f"the limit is {limit:g}.",
        **{"row": row, "position": column if at is None else at[column], "logit": token, **setting},
    )  # fmt: skip


def equal(got: Any, expected: Any, what: str, **setting: Any) -> None:
    """Raise Broken unless two plain values are equal."""
    if got != expected:
        raise Broken(f"{what} is {got}, not {expected}.", **setting)


def last_line(error: BaseException, file: str) -> str:
    """`ValueError: … (my_arch.py:31 in attend)`: the innermost place in the architecture's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    said = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
    return f"{said} ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})"
