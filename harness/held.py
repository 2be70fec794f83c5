"""Was it still there? Which keys of a span of the prompt the cache holds at a given moment.

A case may watch spans of its prompt (`Case.watched`), for example its needles. They are looked for when
the prompt has been read, and again when the answer has been given; a miss with the span held everywhere
was kept and not used, one without it was evicted. In a layer whose KV heads keep different tokens the share
is the mean over the heads. States without positions (mixtures, recurrent states) say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.cache import Cache


@dataclass(frozen=True)
class Held:
    """The share of one watched span that one layer holds; None is a state that belongs to no layer."""

    phase: str  # "prefill": when the prompt ended; else the phase of the continuation, when it ended
    layer: int | None
    span: int
    share: float


def held_spans(phase: str, cache: Cache, row: int, spans: Sequence[tuple[int, int]]) -> list[Held]:
    """What row `row` of the cache holds of each span [start, stop), state by state."""
    if not spans:
        return []
    found = []
    for state, positions_BPS in cache.kept_positions().items():
        number = state.partition(".")[0]
        layer = int(number) if number.isdigit() else None
        position_PS = positions_BPS[row].cpu()
        for index, (start, stop) in enumerate(spans):
            count_P = ((position_PS >= start) & (position_PS < stop)).sum(-1)
            found.append(Held(phase, layer, index, count_P.double().mean().item() / (stop - start)))
    return found
