"""Which tokens a policy kept: the analysis of the TOVA paper (arXiv 2401.06104, section 6), for any policy.

Of one request that has seen N tokens, in a layer and KV head that holds n of them:

    retained_recent_share   share of the n kept tokens that are among the n newest; 1 is a window
    retained_first_share    1 if token 0 is held
    retained_age_share      share of the n kept tokens in each of ten bins of age (N - 1 - position) / N,
                            bin 0 the newest tenth of the sequence, bin 9 the oldest

A cell has one row per layer (and bin): the mean over its requests, and before that over the heads where
these hold different tokens. Requests that nothing was taken from in a layer do not count, and where no
token was evicted nothing is looked at: a full cache has no such rows, whatever windows its layers have.
Nor has a cache whose slots have no positions (LoCoCo's mixtures).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BINS = 10


@dataclass(frozen=True)
class Retained:
    """One request in one layer; None is a state that belongs to no layer."""

    layer: int | None
    recent: float
    first: float
    ages: tuple[float, ...]


def retained(positions: Mapping[str, Tensor], seen: Sequence[int]) -> list[Retained]:
    """`Cache.kept_positions()`, tokens seen per row -> rows and layers from which something was taken."""
    found = []
    for state, positions_BPS in positions.items():
        number = state.partition(".")[0]
        layer = int(number) if number.isdigit() else None
        # Counting is cheap beside what was measured, and on the CPU it needs no memory of a GPU.
        for position_PS, length in zip(positions_BPS.cpu(), seen, strict=True):
            held_P = (position_PS >= 0).sum(-1)
            if 0 < held_P.min() and held_P.min() < length:
                found.append(_of(layer, position_PS.long(), held_P, length))
    return found


def _of(layer: int | None, position_PS: Tensor, held_P: Tensor, length: int) -> Retained:
    there_PS = position_PS >= 0
    newest_P = (there_PS & (position_PS >= length - held_P[:, None])).sum(-1)
    first_P = (position_PS == 0).any(-1)
    bin_PS = (length - 1 - position_PS) * BINS // length
    ages = [((bin_PS == bin) & there_PS).sum(-1).double() / held_P for bin in range(BINS)]
    return Retained(
        layer,
        (newest_P.double() / held_P).mean().item(),
        first_P.double().mean().item(),
        tuple(share_P.mean().item() for share_P in ages),
    )


def averaged(requests: Iterable[Retained]) -> Iterator[tuple[str, float, int | None, int | None]]:
    """(metric, mean over the requests, layer, bin), layer by layer."""
    layers: dict[int | None, list[Retained]] = {}
    for request in requests:
        layers.setdefault(request.layer, []).append(request)
    for layer, there in layers.items():
        yield "retained_recent_share", _mean(r.recent for r in there), layer, None
        yield "retained_first_share", _mean(r.first for r in there), layer, None
        for bin in range(BINS):
            yield "retained_age_share", _mean(r.ages[bin] for r in there), layer, bin


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
