"""Latency and memory: random tokens, exact context lengths, a fixed number of decoded tokens.

    cell   context × batch, ascending in the number of tokens; of the batches of a context that are
           larger than one that ran out of memory none is tried
    case   `context` random prompt tokens, then new_tokens + 1 random tokens fed one at a time

The content is random (plain ids, no specials) and the continuation forced, so that every architecture
sees the same ids and nobody stops early. The logits after the prompt score the first forced token,
which makes new_tokens steps of `decode`, the last of them at context + new_tokens. There is nothing to
score: time and bytes are the harness's business, and random weights serve as well as trained ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..suite import Answer, Axes, Case, Suite, seed_of


@dataclass(frozen=True)
class Options:
    contexts: tuple[int, ...] = (256, 1024, 4096)
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 32

    def __post_init__(self) -> None:
        if min(*self.contexts, *self.batches, self.new_tokens) < 1:
            raise ValueError("contexts, batches and new_tokens must be 1 or more.")


class Workload(Suite):
    axis = "systems"
    interleaved = True
    needs_text = False
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        grid = {(context, batch) for context in self.options.contexts for batch in self.options.batches}
        grid = sorted(grid, key=lambda cell: (cell[0] * cell[1], cell[0]))
        return [{"context": context, "batch": batch} for context, batch in grid]

    def cases(self, cell: Axes) -> Iterator[Case]:
        context, plain = int(cell["context"]), self.context.tokenizer.plain_ids
        for row in range(int(cell["batch"])):
            id = f"decode/seed={self.context.seed}/context={context}/row={row}"
            drawn = np.random.default_rng(seed_of(id)).integers(
                len(plain), size=context + self.options.new_tokens + 1
            )
            tokens = tuple(plain[index] for index in drawn.tolist())
            yield Case(
                id=id,
                prompt=tokens[:context],
                forced=tokens[context:],
                step_forced=True,
                scored=False,
                axes=dict(cell),
                seed=seed_of(id),
            )

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        """Nothing: random text has no right answer."""
        return {}

    def notes(self) -> dict[str, str]:
        return {"content": "random token ids, forced continuation"}
