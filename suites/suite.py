"""What a suite promises: it yields Cases and scores Answers, and sees neither clock nor device.

    Suite.cells()            the grid, ascending in size, e.g. {"length": 512, "depth": 0.5}
    Suite.cases(cell)        the Cases of one cell: token ids in, never text
        ▼                    (the harness executes them through the cache under test)
    Suite.score(case, answer)  -> {"accuracy": 1.0, ...}; an unscored value is NaN, never 0

A Case either *generates* (greedy, until a stop string or `max_new_tokens`) or is *forced*: its
continuation is fed through the same cache and each of its tokens is scored exactly once, from the
logits of the token before it. `step_forced` asks that the forced tokens go one at a time through
`decode` (latency of generation at an exact length); otherwise they go through `extend`. With
`scored=False` a stepped continuation leaves no log-probabilities (NaN), and its memory peak no logits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from .text import Text
    from .tokenizer import Tokenizer

Axes = Mapping[str, float | int | str]


@dataclass(frozen=True)
class Case:
    """One request. Lengths may differ between the cases of a cell (ragged batches).

    `id` is stable across runs and machines; `seed` drives a policy's own randomness (the `random`
    control) and depends on the id alone. Cases with the same prompt and seed are one request until their
    continuations part (several answers to one question; one that is scored and one that is generated):
    the prompt goes through the cache once.

    `watched` names spans [start, stop) of the prompt; whether the cache still holds them when the prompt
    ends and when the answer is given becomes rows (`watched_held_share`, its `bin` the span's number).
    """

    id: str
    prompt: tuple[int, ...]
    forced: tuple[int, ...] | None = None
    step_forced: bool = False
    scored: bool = True
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    axes: Axes = field(default_factory=dict)
    target: Any = None
    seed: int = 0
    watched: tuple[tuple[int, int], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Most tokens that the cache may have to see for this case."""
        return len(self.prompt) + (self.max_new_tokens if self.forced is None else len(self.forced))


def seed_of(id: str) -> int:
    """63 bits of the id's SHA-256: the same on every machine, and never a training seed."""
    return int.from_bytes(hashlib.sha256(id.encode("utf-8")).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Answer:
    """What the harness observed for one Case.

    `tokens` are the generated (or forced) ids; `logprobs` their natural-log probabilities, same
    length; `text` the decoded generation up to the first stop string. `likeliest` tells of each forced
    token whether it was that; None where nobody looked.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str = ""
    likeliest: tuple[bool, ...] | None = None

    @property
    def greedy(self) -> bool | None:
        """Whether every forced token was the likeliest one."""
        return None if self.likeliest is None else all(self.likeliest)


@dataclass(frozen=True)
class Context:
    """What the harness hands a suite: how to tokenize, which text to read, which seed.

    `context_length`: tokens that the checkpoint was trained for; None where nobody says.
    """

    tokenizer: Tokenizer
    text: Text | None
    seed: int = 0
    context_length: int | None = None


class Suite:
    """Base of every suite; a file in `suites/workloads/` defines `Options` and `Workload(Suite)`."""

    @dataclass(frozen=True)
    class Options:
        pass

    #: "quality" needs trained weights; "systems" measures cost and runs on random weights too.
    axis: ClassVar[str] = "quality"
    #: Latency suites are timed: several architectures share one process, repeats interleaved.
    interleaved: ClassVar[bool] = False
    #: Most requests that may run together, where that is less than the run's own `batch`; None: no limit.
    most_together: ClassVar[int | None] = None
    #: Whether another library drives: then `drive` is called instead of `cells().cases()` and `score`.
    driven: ClassVar[bool] = False
    #: Whether cases() reads `context.text`.
    needs_text: ClassVar[bool] = True

    def __init__(self, options: Any, context: Context) -> None:
        self.options = options
        self.context = context

    def cells(self) -> list[dict[str, float | int | str]]:
        """Axes of every cell, in ascending size."""
        raise NotImplementedError

    def cases(self, cell: Axes) -> Iterator[Case]:
        """The Cases of one cell, always the same ones for the same context."""
        raise NotImplementedError

    def score(self, case: Case, answer: Answer) -> dict[str, float | Sequence[float]]:
        """Metrics of one Case; names must stand in `harness.metrics` or are drawn as plain numbers.

        A list is a histogram: one row per entry, its `bin` counted from 0.
        """
        raise NotImplementedError

    def drive(self, cell: Axes, run: Callable[[Sequence[Case]], list[Answer]]) -> dict[str, float]:
        """Let a library ask: it turns its requests into Cases and calls `run`, as often as it likes.

        `run` executes the Cases through the cache under test and returns their Answers in order; cost
        and evictions are recorded on the way. Returns the metrics of the whole cell.
        """
        raise NotImplementedError

    def source(self) -> str | None:
        """The label of what was read, for rows and for the cells' keys; None: nothing was.

        A suite with data of its own must override it (`suites.data.label`), or changed data finds old cells.
        """
        return self.context.text.label if self.needs_text and self.context.text else None

    def notes(self) -> dict[str, str]:
        """Facts that every row of this suite carries, e.g. which protocol was followed."""
        return {}


def options_dict(options: Any) -> dict[str, Any]:
    """Options dataclass -> plain dict, for records."""
    return dataclasses.asdict(options)
