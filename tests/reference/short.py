"""The TOVA paper's "Baseline": full attention, but on a short context. Here: which tokens share a context."""

from __future__ import annotations


def contexts(
    calls: list[int], budget: int = 256, mode: str = "split", scored: tuple[int, ...] = ()
) -> list[range]:
    """Runs of tokens that see each other; each begins with fresh positions and fresh convolutions.

    split: a new context begins when the last one holds `budget` tokens.
    truncate: a prompt of more than `budget` tokens is a context of its last `budget` ones. Whatever comes
    after is added, up to `budget` tokens on top; then a new context begins, of the same size. What was cut
    away is in no context. A call is a prompt unless its index is among the `scored`, of which nothing is cut.
    """
    assert mode in ("split", "truncate"), mode
    full = budget if mode == "split" else 2 * budget
    pieces: list[range] = []
    end = 0
    for index, size in enumerate(calls):
        if mode == "truncate" and size > budget and index not in scored:
            pieces.append(range(end + size - budget, end + size))
        else:
            for t in range(end, end + size):
                if pieces and len(pieces[-1]) < full:
                    pieces[-1] = range(pieces[-1].start, t + 1)
                else:
                    pieces.append(range(t, t + 1))
        end += size
    return pieces
