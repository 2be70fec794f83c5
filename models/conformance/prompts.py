"""Laws of `prompt_mode`: it is a known word, and "parallel", which excuses from the most, is the truth.

Rows record the word and other laws ask no more than it promises, so a wrong one would excuse a policy from
what it breaks.
"""

from __future__ import annotations

from .held import positions_held
from .law import Broken, law
from .subject import RAGGED, RAGGED_PROMPTS, Subject

#: Every word; what each promises stands in this package's docstring.
PROMPT_MODES = ("parallel", "stepwise", "bulk", "blockwise", "once", "split", "truncate")


@law(shapes=("conv",))
def prompt_mode_is_a_known_word(s: Subject) -> None:
    """prompt_mode is one of parallel, stepwise, bulk, blockwise, once, split, truncate."""
    if (mode := s.model().prompt_mode) not in PROMPT_MODES:
        raise Broken(f"prompt_mode is {mode!r}, not one of {', '.join(PROMPT_MODES)}.")


def _not_parallel(s: Subject) -> str:
    mode = s.model().prompt_mode
    return "" if mode == "parallel" else f"where prompt_mode is '{mode}' tokens may go"


@law(excuse=_not_parallel)
def parallel_drops_nothing(s: Subject) -> None:
    """Where prompt_mode is "parallel", evicted() is 0 and every layer holds every token, or the newest
    within its `reach` in a network trained with that window."""
    model = s.model()
    # Weights trained for full attention know no window: there it is a policy's, whatever it is called.
    trained_so = s.budget is None and "transformer" not in model.weight_names(s.options)
    cache = model.new_cache(4, s.length + 4, seeds=[5, 6, 7, 8], prompts=RAGGED_PROMPTS)
    for before, lengths, *_ in s.ragged(cache, s.ids(4), "right", logits="last"):
        seen = [n + new for n, new in zip(before, lengths, strict=True)]
        setting = {"seen": seen, "lengths": RAGGED}
        if any(cache.evicted()):
            raise Broken(f"prompt_mode is 'parallel', yet evicted() is {cache.evicted()}.", **setting)
        for name, rows in positions_held(cache).items():
            reach = cache.states[name].reach if trained_so else None
            for row, groups in enumerate(rows):
                first = 0 if reach is None else max(0, seen[row] - reach)
                for held in groups:
                    if gone := sorted(set(range(first, seen[row])) - set(held)):
                        where = {"state": name, "row": row, **setting}
                        raise Broken(
                            f"prompt_mode is 'parallel', yet {_few(gone)} of {seen[row]} tokens are gone.",
                            **where,
                        )


def _few(positions: list[int]) -> str:
    return f"{positions[:5]}{' and more' * (len(positions) > 5)}"
