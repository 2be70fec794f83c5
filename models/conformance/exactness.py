"""Laws of exactness: what a cache computes, while nothing has to go and after something went."""

from __future__ import annotations

import torch

import models

from . import networks
from .held import positions_held
from .law import EVERY_SHAPE, Broken, equal, law, same
from .subject import CUTS, Subject

#: Prompt modes in which how tokens are cut into calls cannot matter.
CUT_BLIND = ("parallel", "stepwise", "split")


def _own_weights(s: Subject) -> str:
    names = s.model().weight_names(s.options)
    if "transformer" not in names:
        return f"it runs on weights of its own ({', '.join(names)})"
    return ""


def _cut_matters(s: Subject) -> str:
    mode = s.model().prompt_mode
    return "" if mode in CUT_BLIND else f"the calls decide by definition where prompt_mode is '{mode}'"


def _truncates(s: Subject) -> str:
    truncates = s.model().prompt_mode == "truncate" and not s.ample
    return "a truncated prompt has no logits of what was cut" if truncates else ""


@law(covers="Y4 L8", budget="ample", shapes=EVERY_SHAPE)
def any_segmentation_is_forward(s: Subject) -> None:
    """With capacity and budget >= length, extend in any cut plus decode gives the logits of forward."""
    main = s.shape in ("plain", "conv")
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        thorough = main and dtype == torch.float64
        model, ids = s.model(dtype), s.ids(2)
        expected = model.forward(ids)
        for name in ("whole", "tokens", "uneven") if thorough else ("uneven",):
            got = s.run(ids, CUTS[name], model.new_cache(2, s.length), model=model)
            same(got, expected, limit, "extend and forward", dtype=dtype, batch=2, cuts=CUTS[name])
        for name in ("whole", "uneven", "prompt") if thorough else ("prompt",):
            at = [n - 1 for n in torch.tensor(CUTS[name]).cumsum(0).tolist()]
            got = s.run(ids, CUTS[name], model.new_cache(2, s.length + 3), "last", model)
            same(
                got, expected[:, at], limit, "the last logits of extend, and forward", at=at, dtype=dtype,
                batch=2, cuts=CUTS[name], logits="last",
            )  # fmt: skip


@law(covers="T1 L2 L4", budget="ample", excuse=_own_weights)
def ample_budget_is_the_transformer(s: Subject) -> None:
    """An evictor whose budget holds everything gives the logits of full attention with the same weights."""
    shape, ids = networks.SHAPES[s.shape], s.ids(2)
    for dtype, limit, fresh in ((torch.float32, 1e-5, True), (torch.float64, 1e-11, False)):
        transformer, model = (networks.network(spec, shape, dtype) for spec in ("transformer", s.spec))
        if fresh:  # as initialised: logits small enough for a limit in fp32
            torch.manual_seed(0)
            transformer.load_state_dict(models.build("transformer", shape).state_dict())
        unknown = model.load_state_dict(transformer.state_dict(), strict=False).unexpected_keys
        if unknown:
            raise Broken(f"weights of the Transformer that it does not have: {', '.join(unknown)}.")
        same(model.forward(ids), transformer.forward(ids), limit, "forward and the Transformer", dtype=dtype)
        for cut in (CUTS["uneven"], CUTS["prompt"]):
            expected = s.run(ids, cut, transformer.new_cache(2, s.length), model=transformer)
            cache = model.new_cache(2, s.length)
            got = s.run(ids, cut, cache, model=model)
            same(got, expected, limit, "the cache and the Transformer's", dtype=dtype, batch=2, cuts=cut)
            if any(cache.evicted()):
                raise Broken(f"evicted() is {cache.evicted()} though the budget holds everything.", cuts=cut)


@law(covers="T3", budget="tight", shapes=EVERY_SHAPE, excuse=_cut_matters)
def stepwise_policies_do_not_see_the_cut(s: Subject) -> None:
    """A policy whose prompts run step-wise (or drop nothing) keeps one set and gives one result, however
    tokens are fed."""
    model, ids, seeds = s.model(), s.ids(2), [3, 4]
    one_by_one = model.new_cache(2, s.length, seeds=seeds)
    expected = s.run(ids, CUTS["tokens"], one_by_one)
    for name in ("whole", "uneven"):
        cache = model.new_cache(2, s.length, seeds=seeds)
        got = s.run(ids, CUTS[name], cache)
        setting = {"batch": 2, "cuts": CUTS[name], "seeds": seeds}
        same(got, expected, 1e-11, "calls of several tokens and single ones", **setting)
        for state, kept in positions_held(cache).items():
            equal(kept, positions_held(one_by_one)[state], f"what {state} holds at the end", **setting)


def _calls_decide(s: Subject) -> str:
    return "" if s.model().prompt_mode == "once" else _cut_matters(s)


@law(budget="tight", shapes=("conv",), excuse=_calls_decide)
def declared_prompts_may_be_cut(s: Subject) -> None:
    """A prompt whose length is declared leaves the same behind in one call and in several."""
    model, ids, seeds, prompt = s.model(), s.ids(2), [3, 4], 25
    caches, logits = [], []
    for cut in ([prompt], [1, 7, 2, 15]):
        caches.append(model.new_cache(2, s.length, seeds=seeds, prompts=[prompt] * 2))
        logits.append(s.run(ids, [*cut, 1, 11, 1, 3], caches[-1], "last")[:, len(cut) - 1 :])
    setting = {"batch": 2, "cuts": [*cut, 1, 11, 1, 3], "prompts": [prompt] * 2, "seeds": seeds}
    what = "a prompt in several calls and in one"
    same(logits[1], logits[0], 1e-11, what, at=[24, 25, 36, 37, 40], **setting)
    for state, kept in positions_held(caches[1]).items():
        equal(kept, positions_held(caches[0])[state], f"what {state} holds at the end", **setting)


def _more_than_prompts(s: Subject) -> str:
    return "" if s.model().prompt_mode == "bulk" else _calls_decide(s)


@law(budget="tight", shapes=("conv",), excuse=_more_than_prompts)
def after_a_declared_prompt_calls_do_not_matter(s: Subject) -> None:
    """Text that is scored many tokens per call meets the same policy as text that is generated."""
    model, ids, seeds, prompt = s.model(), s.ids(2), [3, 4], 13
    caches, logits = [], []
    for cut in ([1] * (s.length - prompt), [9, 1, s.length - prompt - 10]):
        caches.append(model.new_cache(2, s.length, seeds=seeds, prompts=[prompt] * 2))
        logits.append(s.run(ids, [prompt, *cut], caches[-1]))
    setting = {"batch": 2, "cuts": [prompt, *cut], "prompts": [prompt] * 2, "seeds": seeds}
    same(logits[1], logits[0], 1e-11, "calls of several tokens and single ones", **setting)
    for state, kept in positions_held(caches[1]).items():
        equal(kept, positions_held(caches[0])[state], f"what {state} holds at the end", **setting)


@law(covers="Y7")
def the_future_is_unknown(s: Subject) -> None:
    """Changing token t changes logits from t on and none before, in forward and through the cache."""
    model, places = s.model(), (0, 19, s.length - 1)
    ids = s.ids(1).repeat(1 + len(places), 1)
    for row, t in enumerate(places, 1):
        ids[row, t] = (ids[row, t] + 1) % model.shape.vocab
    cached = s.run(ids, CUTS["whole"], model.new_cache(len(ids), s.length))
    for how, logits in (("forward", model.forward(ids)), ("extend", cached)):
        for row, t in enumerate(places, 1):
            what = f"{how}, after a change of token {t} and without it"
            same(logits[row : row + 1, :t], logits[:1, :t], 1e-12, what, cuts=CUTS["whole"])
            if not (logits[row, t] - logits[0, t]).abs().max() > 1e-3:
                raise Broken(f"{how}: a change of token {t} leaves its own logits as they are.")


@law(covers="Y3", excuse=_truncates)
def last_logits_are_the_last_row(s: Subject) -> None:
    """logits="last" gives the last row of logits="all", and leaves the same cache behind."""
    model, ids = s.model(), s.ids(2)
    for first in (1, 3, 29):
        cut = [first, 7, s.length - first - 7]
        at = [first - 1, first + 6, s.length - 1]
        every = s.run(ids, cut, model.new_cache(2, s.length))
        last = s.run(ids, cut, model.new_cache(2, s.length), "last")
        same(last, every[:, at], 1e-11, "last logits and the last of all", at=at, batch=2, cuts=cut)
