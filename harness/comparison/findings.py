"""What a comparison of two runs says: one finding per architecture, suite cell and number.

    kind        verdict                                   fails
    latency     FAST | SAME | SLOW | AMBIGUOUS            SLOW
    bytes       FEWER | SAME | MORE                       MORE, by a single byte
    allocator   FEWER | SAME | MORE                       MORE, beyond the threshold
    quality     BETTER | SAME | WORSE | AMBIGUOUS         WORSE
    cell        SAME | NEW | MENDED | NEW FAILURE         NEW FAILURE
    any         MISSING | INVALID | INSUFFICIENT          all three

AMBIGUOUS is what the data do not decide: it is told, and fails nothing. INVALID and INSUFFICIENT are no
regressions either, but whoever reads "pass" believes that something was measured: they end with 4.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..metrics import metric
from .rules import Rules

KINDS = ("bytes", "allocator", "latency", "quality", "cell")
#: What fails as a regression, gravest first; what cannot be judged; the rest, in the order of the table.
REGRESSIONS = ("NEW FAILURE", "MISSING", "MORE", "WORSE", "SLOW")
UNJUDGED = ("INVALID", "INSUFFICIENT")
VERDICTS = (*REGRESSIONS, *UNJUDGED, "AMBIGUOUS", "FEWER", "BETTER", "FAST", "MENDED", "NEW", "SAME")

EXIT_PASS, EXIT_REGRESSION, EXIT_USAGE, EXIT_INCOMPARABLE, EXIT_INSUFFICIENT = range(5)


@dataclass(frozen=True)
class Finding:
    """What was found of one number at one point. Unknown is None.

    `effect`, `low` and `high` are relative to base (0.05: five per cent more), of quality the difference
    head - base in the metric's unit; `low` to `high` is the 95 % interval. `p` is after Holm's correction.
    `threshold` is what the effect had to exceed, in the effect's unit. `num_base` and `num_head` count
    processes (latency; `num_invalid` were left out), cases (quality) or rows.
    """

    architecture: str
    suite: str
    axes: str  # JSON with sorted keys, as in rows
    metric: str
    kind: str
    verdict: str
    base: float | None = None
    head: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    threshold: float | None = None
    num_base: int = 0
    num_head: int = 0
    num_invalid: int = 0  # left out of both
    message: str = ""
    suspect: str = ""  # reasons why the numbers are doubtful; they are judged all the same

    @property
    def point(self) -> tuple[str, str, str]:
        """Architecture, suite and axes: what a gate measures again."""
        return self.architecture, self.suite, self.axes

    @property
    def place(self) -> str:
        """The cell as people read it: "context 1024, batch 1"."""
        return ", ".join(f"{name} {value}" for name, value in json.loads(self.axes).items())

    @property
    def label(self) -> str:
        """What the number is called."""
        return "cell" if self.kind == "cell" else metric(self.metric).label

    @property
    def fails(self) -> bool:
        """Whether a gate that sees it does not pass."""
        return self.verdict in REGRESSIONS + UNJUDGED


@dataclass(frozen=True)
class Side:
    """One side of a comparison: which runs, of which code, on which machine."""

    names: tuple[str, ...]
    commit: str | None
    dirty: bool | None
    source_hash: str | None
    num_cells: int
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """ "run@commit", with a plus sign where the sources differ from the commit."""
        commit = f"@{self.commit[:10]}{'+' if self.dirty else ''}" if self.commit else ""
        return f"{', '.join(self.names)}{commit}"


@dataclass(frozen=True)
class Comparison:
    """Everything that `compare` found. With `refusals` nothing was judged, and `findings` is empty."""

    base: Side
    head: Side
    rules: Rules
    findings: list[Finding]
    refusals: list[str]
    allowed: list[str]  # differences of the fingerprints that the user allowed
    notes: list[str]

    @property
    def regressions(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict in REGRESSIONS]

    @property
    def unjudged(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict in UNJUDGED]

    @property
    def ambiguous(self) -> list[Finding]:
        """What the data do not decide; of latency a gate measures these points once more."""
        return [finding for finding in self.findings if finding.verdict == "AMBIGUOUS"]

    @property
    def counts(self) -> dict[str, int]:
        """How many findings have each verdict, in the order of `VERDICTS`."""
        counted = Counter(finding.verdict for finding in self.findings)
        return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}

    @property
    def exit_code(self) -> int:
        """3 refused, 1 a regression, 4 something invalid or insufficient or nothing compared, else 0."""
        if self.refusals:
            return EXIT_INCOMPARABLE
        if self.regressions:
            return EXIT_REGRESSION
        # Where no number was set against another, nothing passed.
        nothing = all(finding.kind == "cell" for finding in self.findings)
        return EXIT_INSUFFICIENT if self.unjudged or nothing else EXIT_PASS
