"""TOVA beyond the training length: gaps between surviving tokens shrink (arXiv 2401.06104, extrapolation).

A gap g between neighbours in time becomes g up to 10 and ln(ln g) above, so positions are fractional, not
even monotone in g (10 -> 10, 11 -> 0.87, 70,000 -> 2.41), and change whenever a token goes. Hence keys
are held un-rotated and turned anew at every step: exact, and slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import row_lengths

#: Gaps up to here stay as they are.
PLAIN_GAP = 10


def compressed(pos_BPn: Tensor) -> Tensor:
    """Positions (B,P,n) of slots, -1 empty, in any order -> compressed positions in fp64, same order."""
    last = torch.iinfo(torch.int64).max
    order = pos_BPn.long().masked_fill(pos_BPn < 0, last).argsort(-1)
    ordered = pos_BPn.double().gather(-1, order)
    gap = ordered.diff(dim=-1)
    gap = torch.where(gap <= PLAIN_GAP, gap, gap.clamp(min=PLAIN_GAP).log().log())
    placed = torch.cat([ordered[..., :1], ordered[..., :1] + gap.cumsum(-1)], -1)
    return torch.empty_like(placed).scatter_(-1, order, placed)


class CompressedPositions:
    """Mixed into an `Evictor`: token by token, keys un-rotated in the slots, turned when looked at."""

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        outs = []
        for t in range(k_BTGD.shape[1]):
            here, column = None if valid is None else valid.columns(t, t + 1), slice(t, t + 1)
            out = self._step(q_BTHD[:, column], k_BTGD[:, t], v_BTGD[:, t], positions_BT[:, t], here)
            self.count(row_lengths(here, len(out), 1))
            outs.append(out)
        return torch.cat(outs, 1)

    def turned(self, q_B1HD, k_BGSD, pos_BPS):
        if self.heads.rope is None:
            return q_B1HD, k_BGSD
        B, P = pos_BPS.shape[:2]
        place_BPS = compressed(pos_BPS)
        newest = pos_BPS.argmax(-1, keepdim=True)
        # Rows of `at` are (batch row, choice): each has positions of its own.
        k = k_BGSD.unflatten(1, (P, -1)).flatten(0, 1).transpose(1, 2)
        k = self.heads.rope.at(k, place_BPS.flatten(0, 1)).transpose(1, 2).unflatten(0, (B, P)).flatten(1, 2)
        q = q_B1HD.unflatten(2, (P, -1)).transpose(1, 2).flatten(0, 1)
        q = self.heads.rope.at(q, place_BPS.gather(-1, newest).flatten(0, 1))
        return q.unflatten(0, (B, P)).transpose(1, 2).flatten(2, 3), k
