"""Laws of what is held: which tokens a policy keeps after each call, and how it counts those that went.

All read `kept_positions()` after every call of a ragged batch, which rows enter at different times.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cache import Cache
from .law import Broken, law
from .subject import RAGGED, RAGGED_PROMPTS, Subject


@dataclass(frozen=True)
class Held:
    """One layer and row after one call: positions held, per group of KV heads that agree."""

    state: str
    row: int
    seen: int
    new: int
    groups: list[list[int]]
    evicted: int

    @property
    def where(self) -> dict:
        return {"state": self.state, "row": self.row, "seen": self.seen, "lengths": RAGGED}


def _trace(s: Subject) -> list[Held]:
    """Every layer and row after every call, in order; kept on the subject."""
    if not hasattr(s, "_trace"):
        model, trace = s.model(), []
        cache = model.new_cache(4, s.length + 4, seeds=[5, 6, 7, 8], prompts=RAGGED_PROMPTS)
        for seen, lengths, *_ in s.ragged(cache, s.ids(4), "right", logits="last"):
            for name, rows in positions_held(cache).items():
                evicted = cache.states[name].evicted()
                for b, n in enumerate(lengths):
                    trace.append(Held(name, b, seen[b] + n, n, rows[b], evicted[b]))
        s._trace = trace
    return s._trace


def positions_held(cache: Cache) -> dict[str, list[list[list[int]]]]:
    """Per state that knows them: for each row and group of KV heads, the positions held, ascending."""
    found = {}
    for name, kept_BPS in cache.kept_positions().items():
        if kept_BPS.ndim != 3 or len(kept_BPS) != cache.batch or kept_BPS.dtype.is_floating_point:
            what = f"{kept_BPS.dtype} {tuple(kept_BPS.shape)}"
            raise Broken(f"kept_positions() of {name} is {what}, not integers (B,P,S).", batch=cache.batch)
        found[name] = [[sorted(p for p in group if p >= 0) for group in row] for row in kept_BPS.tolist()]
    return found


def _unknown(s: Subject) -> str:
    known = s.model().new_cache(1, s.length).kept_positions()
    return "" if known else "its slots have no positions (kept_positions() is None)"


def _without_budget(s: Subject) -> str:
    return "it has no option 'budget'" if s.budget is None else _unknown(s)


def _not_filled(s: Subject) -> str:
    mode = s.model().prompt_mode
    if s.budget is not None and mode not in ("stepwise", "bulk"):
        return f"where prompt_mode is '{mode}' other numbers of tokens are held"
    return _without_budget(s)


@law(covers="T6", excuse=_unknown)
def kept_positions_are_tokens(s: Subject) -> None:
    """Positions held are those of tokens seen, each at most once per KV head."""
    for h in _trace(s):
        for held in h.groups:
            if len(set(held)) != len(held):
                twice = sorted({p for p in held if held.count(p) > 1})
                raise Broken(f"positions {twice} are held twice.", **h.where)
            if held and max(held) >= h.seen:
                raise Broken(f"position {max(held)} is held after {h.seen} tokens.", **h.where)


@law(covers="T2", excuse=_not_filled)
def budget_is_filled_and_kept(s: Subject) -> None:
    """After every call each layer holds min(tokens seen, budget) tokens of each row."""
    for h in _trace(s):
        for held in h.groups:
            if len(held) != min(h.seen, s.budget or 0):
                raise Broken(
                    f"{len(held)} tokens are held, not min({h.seen}, {s.budget}): {held}.", **h.where
                )


@law(covers="T5", excuse=_unknown)
def kept_sets_are_nested(s: Subject) -> None:
    """What is held after a call was held before it or is new in it: nothing comes back."""
    before: dict[tuple[str, int], list[list[int]]] = {}
    for h in _trace(s):
        new = set(range(h.seen - h.new, h.seen))
        for group, held in enumerate(h.groups):
            allowed = set(before.get((h.state, h.row), [[]] * len(h.groups))[group]) | new
            if not set(held) <= allowed:
                raise Broken(f"positions {sorted(set(held) - allowed)} came back.", **h.where)
        before[h.state, h.row] = h.groups


@law(excuse=_without_budget)
def evicted_counts_what_went(s: Subject) -> None:
    """In each layer of a budgeted policy, evicted() and the tokens held add up to the tokens seen."""
    for h in _trace(s):
        for held in h.groups:
            if h.evicted + len(held) != h.seen:
                raise Broken(
                    f"evicted() is {h.evicted} and {len(held)} tokens are held, of {h.seen} seen.", **h.where
                )
