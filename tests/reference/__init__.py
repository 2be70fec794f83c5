"""Naive references of every cache policy: one sequence, one row at a time, in fp64, from the rules alone.

    logits_TV, kept = reference(model, tokens_T, calls=[20, 1, 1], policy="tova", budget=6, prompt="bulk")
    logits_TV, kept = reference_of_spec("tova:budget=6,prompt=bulk", model, tokens_T, calls)

`calls` are the sizes of the calls that feed the sequence (a 1 is a decode step). `kept[layer]` lists the
positions that are held at the end: one sorted list per KV head, or a single one where the policy
chooses for the whole layer. LoCoCo holds mixtures, so its `kept` is None.

Nothing of `models/` is imported: weights are read by name from `model.state_dict()` and plain numbers
from `model.shape`. Slow on purpose. How to read it: `attention.py` (one row of attention),
`keeping.py` (the loop that attends, then evicts), then one small file per family of policies.

| file | policies |
| --- | --- |
| `windows.py` | transformer, window, streaming |
| `tova.py`, `h2o.py`, `snapkv.py`, `scissorhands.py` | scored eviction |
| `lococo.py` | compression by a convolution |
| `chance.py` | the random control |
| `short.py` | full attention on a short context |
| `yoco.py` | YOCO, which is an architecture of its own |

`by_hand.py` has layers for examples small enough to check with a pencil.
"""

from __future__ import annotations

from torch import Tensor

from .chance import chance
from .decoder import decode, weights_of
from .h2o import h2o
from .lococo import lococo
from .scissorhands import scissorhands
from .short import contexts
from .snapkv import snapkv
from .tova import tova
from .windows import streaming, transformer, window

Kept = list[list[list[int]] | None]

#: policy(layer, calls, **options) -> (out_THD, kept of the layer)
POLICIES = {
    "transformer": transformer,
    "window": window,
    "streaming": streaming,
    "tova": tova,
    "h2o": h2o,
    "snapkv": snapkv,
    "scissorhands": scissorhands,
    "lococo": lococo,
    "random": chance,
}


def reference(
    model, tokens_T: Tensor, calls: list[int], policy: str = "transformer", **options
) -> tuple[Tensor, Kept]:
    """Logits (T,V) at every position of one sequence, and what every layer holds at the end.

    `model` needs `.shape` and `.state_dict()` only. Options are those of the policy's function; an
    unknown one raises TypeError. `short` in its mode `truncate` leaves NaN where tokens were cut away.
    """
    if sum(calls) != len(tokens_T):
        raise ValueError(f"calls of {sum(calls)} tokens in all do not feed {len(tokens_T)} tokens.")
    shape, w = model.shape, weights_of(model)
    if policy == "short":
        return _short(shape, w, tokens_T, contexts(calls, **options))
    factor = 1.0
    if policy == "lococo":
        factor = options.pop("rope_factor", 1.0)
        options["weights"] = w

    def attend(layer):
        return POLICIES[policy](layer, calls, **options)

    return decode(shape, w, tokens_T, attend, factor)


def _short(shape, w: dict[str, Tensor], tokens_T: Tensor, pieces: list[range]) -> tuple[Tensor, Kept]:
    """Every context is a sequence of its own: fresh positions, fresh convolutions."""
    logits_TV = w["embed.weight"].new_full((len(tokens_T), shape.vocab), float("nan"))
    kept: Kept = [[[]] for _ in range(shape.num_layers)]
    for piece in pieces:
        part = tokens_T[piece.start : piece.stop]
        logits_TV[piece.start : piece.stop], _ = decode(
            shape, w, part, lambda layer: transformer(layer, [layer.length])
        )
        kept = [[list(piece)] for _ in range(shape.num_layers)]
    return logits_TV, kept


def reference_of_spec(spec: str, model, tokens_T: Tensor, calls: list[int], **more) -> tuple[Tensor, Kept]:
    """The same with options written as in a spec string, `name:key=value,key=value`."""
    name, _, text = spec.partition(":")
    options = dict(item.split("=") for item in text.split(",") if item)
    return reference(model, tokens_T, calls, name, **{k: _value(v) for k, v in options.items()}, **more)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
