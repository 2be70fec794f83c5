"""An architecture under examination: one spec on one shape, and the ways laws feed it.

    s = Subject("tova:budget=6", "conv")
    cache = s.model().new_cache(2, s.length)
    logits_BTV = s.run(s.ids(2), CUTS["uneven"], cache)

Work that several laws share (networks, rows run alone) is kept on the subject; laws leave it as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import models

from ..architecture import Architecture
from ..cache import Cache
from ..spec import SpecError
from . import networks

#: Tokens of every test.
LENGTH = 41

#: Ways to cut that many tokens into calls; calls of 1 go through `decode`.
CUTS = {
    "whole": [LENGTH],
    "tokens": [1] * LENGTH,
    "uneven": [1, 7, 2, 3, 1, 11, 16],
    "prompt": [LENGTH - 5] + [1] * 5,
}

#: Valid tokens per row (rows of the list) and call (columns); zeros are rows that stand still.
RAGGED = [[0, 12, 0, 9, 1, 14], [0, 3, 15, 0, 1, 9], [0, 0, 9, 8, 0, 15], [0, 20, 5, 1, 1, 11]]
#: The prompt of each of these rows: its first call that has tokens.
RAGGED_PROMPTS = [next(n for n in row if n) for row in RAGGED]


class Subject:
    """`spec` on the kit's shape of that name. `length` is the number of tokens of every test."""

    length = LENGTH

    def __init__(self, spec: str, shape: str = "plain") -> None:
        self.spec, self.shape = spec, shape
        self._alone: dict[Any, Tensor] = {}

    # --- what it is -----------------------------------------------------------------------------

    @functools.lru_cache(maxsize=4)  # noqa: B019 - lives as long as the subject
    def model(self, dtype: torch.dtype = torch.float64) -> Architecture:
        return networks.network(self.spec, networks.SHAPES[self.shape], dtype)

    @property
    def file(self) -> str:
        """Where the architecture is written."""
        return str(models.parse(self.spec)[0].__file__)

    def refusal(self) -> str:
        """Why the architecture refuses this shape, "" if it does not (or fails, which breaks every law)."""
        try:
            self.model()
        except SpecError as error:
            return str(error)
        except Exception:
            return ""
        return ""

    @property
    def options(self) -> Any:
        return self.model().options

    @property
    def budget(self) -> int | None:
        return getattr(self.options, "budget", None)

    @property
    def ample(self) -> bool:
        """Nothing may be lost: there is no budget, or it holds every token of the test."""
        return self.budget is None or self.budget >= self.length

    @property
    def tight(self) -> bool:
        """All that can be lost will be: there is no budget, or it is below the tokens of the test."""
        return self.budget is None or self.budget < self.length

    def setting(self, found: dict[str, Any]) -> dict[str, Any]:
        """What was noted of a counter-example, and what is the same everywhere unless noted."""
        return {"dtype": torch.float64, "tokens": "seed 0", **found}

    # --- how it is fed --------------------------------------------------------------------------

    def ids(self, batch: int, seed: int = 0) -> Tensor:
        return networks.tokens(batch, self.length, seed)

    def run(
        self, tokens_BT: Tensor, cut: list[int], cache: Cache, logits: str = "all", model: Any = None
    ) -> Tensor:
        """Feed in calls of these sizes: (B,T,V) of all positions, or (B,len(cut),V) of each call's last."""
        model = model or self.model()
        outs = []
        for part in tokens_BT.split(cut, 1):
            if part.shape[1] == 1:
                outs.append(model.decode(part[:, 0], cache)[:, None])
            else:
                out = model.extend(part, None, cache, logits)
                outs.append(out if logits == "all" else out[:, None])
        return torch.cat(outs, 1)

    def alone(self, ids_N: Tensor, cut: list[int], seed: int, logits: str = "all") -> Tensor:
        """One row, run without neighbours or padding; calls in which it has no token are left out, and the
        first of the others is its prompt."""
        cut = [n for n in cut if n]
        key = (tuple(ids_N[: sum(cut)].tolist()), tuple(cut), seed, logits)
        if key not in self._alone:
            cache = self.model().new_cache(1, self.length + 4, seeds=[seed], prompts=cut[:1])
            self._alone[key] = self.run(ids_N[None, : sum(cut)], cut, cache, logits)[0]
        return self._alone[key]

    def ragged(
        self, cache: Cache, ids_BT: Tensor, side: str, filler: int = 2, pad_id: int = 0, logits: str = "all"
    ) -> Iterator[tuple[list[int], list[int], Tensor, Tensor]]:
        """Feed RAGGED: per call, tokens seen before, lengths, logits and which of them are valid (B,T)."""
        seen = [0] * len(RAGGED)
        for call in zip(*RAGGED, strict=True):
            tokens_BT, valid_BT = padded(ids_BT, seen, list(call), side, filler, pad_id)
            out = self.model().extend(tokens_BT, valid_BT, cache, logits)
            yield seen, list(call), out, valid_BT
            seen = [s + n for s, n in zip(seen, call, strict=True)]


def padded(
    ids_BT: Tensor, seen: list[int], lengths: list[int], side: str, filler: int = 0, pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """One call for all rows: tokens (B,T), valid (B,T), padding right, left or in the interior."""
    width = max(lengths) + filler
    tokens_BT = torch.full((len(lengths), width), pad_id)
    valid_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, (start, n) in enumerate(zip(seen, lengths, strict=True)):
        if side == "right":
            columns = torch.arange(n)
        elif side == "left":
            columns = torch.arange(width - n, width)
        else:
            generator = torch.Generator().manual_seed(row + width)
            columns = torch.randperm(width, generator=generator)[:n].sort().values
        tokens_BT[row, columns] = ids_BT[row, start : start + n]
        valid_BT[row, columns] = True
    return tokens_BT, valid_BT
