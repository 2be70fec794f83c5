"""Laws that every architecture obeys; a file dropped into `models/architectures/` is held to them at once.

Each architecture runs with its default options, a `budget` (if it has one) shrunk to the test's
length ("ample": nothing may be lost) or far below it ("tight": eviction or folding at work), and
with the further option sets of VARIANTS.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import models

N = 41
#: Budget of `tight`: every policy evicts within N tokens (LoCoCo folds from TIGHT + 17 slots on).
TIGHT = 6

#: Further options per architecture; "{b}" is the budget.
VARIANTS = {
    "lococo": ["budget={b},heavy=0.25,kernel=3,block=5", "budget={b},heavy=0,block=3"],
    "tova": ["budget={b},prompt=bulk"],
    "window": ["budget={b},sinks=0"],
    "yoco": ["mixer=retention", "window=50", "early_exit=false"],
}


def specs(budget: int) -> list[str]:
    found = []
    for name in models.names():
        fields = dataclasses.fields(models.parse(name)[1])
        found.append(f"{name}:budget={budget}" if any(f.name == "budget" for f in fields) else name)
        found += [f"{name}:{text.format(b=budget)}" for text in VARIANTS.get(name, [])]
    return found


def needs_transformer(spec: str) -> bool:
    """Whether this architecture runs on the Transformer's weights."""
    module, options = models.parse(spec)
    return "transformer" in module.Model.weight_names(options)


AMPLE, SMALL = specs(N), specs(TIGHT)
every_shape = pytest.mark.parametrize("shape", ["plain", "conv"])
conv_shape = pytest.mark.parametrize("shape", ["conv"])
ample = pytest.mark.parametrize("spec", AMPLE)
tight = pytest.mark.parametrize("spec", SMALL)
ample_and_tight = pytest.mark.parametrize("spec", [*AMPLE, *(s for s in SMALL if s not in AMPLE)])

#: Ways to cut N tokens into calls; calls of 1 go through `decode`.
CUTS = {"whole": [N], "tokens": [1] * N, "uneven": [1, 7, 2, 3, 1, 11, 16], "prompt": [N - 5] + [1] * 5}


def run(model, tokens_BT, cuts, cache, logits="all"):
    """Feed in calls of the given sizes: (B,T,V) of all positions, or (B,len(cuts),V) of each call's last."""
    outs = []
    for part in tokens_BT.split(cuts, 1):
        if part.shape[1] == 1:
            outs.append(model.decode(part[:, 0], cache)[:, None])
        else:
            out = model.extend(part, None, cache, logits)
            outs.append(out if logits == "all" else out[:, None])
    return torch.cat(outs, 1)


def gap(a, b) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# --- exactness while nothing has to go ----------------------------------------------------------


@every_shape
@ample
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_any_segmentation_is_forward(network, tokens, spec, shape, dtype, limit):
    """With capacity and budget >= length, extend in any cut plus decode gives the logits of forward."""
    model, ids = network(spec, shape, dtype), tokens(2, N)
    expected = model.forward(ids)
    for name, cut in CUTS.items():
        if name != "prompt":
            assert gap(run(model, ids, cut, model.new_cache(2, N)), expected) <= limit, name
        if name != "tokens":
            ends = torch.tensor(cut).cumsum(0) - 1
            got = run(model, ids, cut, model.new_cache(2, N + 3), "last")
            assert gap(got, expected[:, ends]) <= limit, name


@every_shape
@pytest.mark.parametrize("spec", [s for s in AMPLE if needs_transformer(s)])
def test_ample_budget_is_the_transformer(network, tokens, spec, shape):
    """An evictor whose budget holds everything is the Transformer with the same weights.

    Within 1e-5 in fp32 with freshly initialised weights, 1e-11 in fp64 with sharp ones.
    """
    ids = tokens(2, N)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        transformer, model = network("transformer", shape, dtype), network(spec, shape, dtype)
        if dtype == torch.float32:
            torch.manual_seed(0)
            transformer.load_state_dict(models.build("transformer", transformer.shape).state_dict())
        assert model.load_state_dict(transformer.state_dict(), strict=False).unexpected_keys == []
        assert gap(model.forward(ids), transformer.forward(ids)) <= limit
        for cut in (CUTS["uneven"], CUTS["prompt"]):
            expected = run(transformer, ids, cut, transformer.new_cache(2, N))
            cache = model.new_cache(2, N)
            assert gap(run(model, ids, cut, cache), expected) <= limit
            assert cache.evicted() == [0, 0]


@every_shape
@tight
def test_stepwise_policies_do_not_see_the_cut(network, tokens, spec, shape):
    """A policy whose prompts run step-wise (or drop nothing) gives one result, however tokens are fed."""
    model, ids = network(spec, shape), tokens(2, N)
    if model.prompt_mode not in ("stepwise", "parallel"):
        return  # bulk and blockwise rules depend on the calls by definition
    expected = run(model, ids, [1] * N, model.new_cache(2, N, seeds=[3, 4]))
    for name in ("whole", "uneven"):
        got = run(model, ids, CUTS[name], model.new_cache(2, N, seeds=[3, 4]))
        assert gap(got, expected) <= 1e-11, name


@every_shape
@ample_and_tight
def test_the_future_is_unknown(network, tokens, spec, shape):
    """Changing token t changes logits from t on and none before, in forward and through the cache."""
    model, ids = network(spec, shape), tokens(1, N)
    base = model.forward(ids)
    cached = run(model, ids, [N], model.new_cache(1, N))
    for t in (0, 19, N - 1):
        other = ids.clone()
        other[0, t] = (other[0, t] + 1) % model.shape.vocab
        for before, after in (
            (base, model.forward(other)),
            (cached, run(model, other, [N], model.new_cache(1, N))),
        ):
            assert gap(before[:, t], after[:, t]) > 1e-3
            assert t == 0 or gap(before[:, :t], after[:, :t]) <= 1e-12


# --- rows, padding, copies ----------------------------------------------------------------------

#: Valid tokens per row (rows of the list) and call (columns); zeros are rows that stand still.
RAGGED = [[0, 12, 0, 9, 1, 14], [0, 3, 15, 0, 1, 9], [0, 0, 9, 8, 0, 15], [0, 20, 5, 1, 1, 11]]


def row_alone(model, ids_N, lengths, seed):
    """One row without padding; calls in which it has no token are left out. All its logits."""
    cache = model.new_cache(1, N + 4, seeds=[seed])
    lengths = [n for n in lengths if n]
    return run(model, ids_N[None, : sum(lengths)], lengths, cache)[0]


def padded_call(ids_BT, seen, lengths, side, filler, pad_id):
    """One call for all rows: tokens (B,T), valid (B,T), padding on the named side."""
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


@every_shape
@ample_and_tight
@pytest.mark.parametrize("side", ["right", "left", "interior"])
def test_padding_is_inert(network, tokens, spec, shape, side):
    """Rows of different lengths in one batch, with padding anywhere, are the rows run alone."""
    model, ids, seeds = network(spec, shape), tokens(4, N), [5, 6, 7, 8]
    expected = [row_alone(model, ids[b], RAGGED[b], seeds[b]) for b in range(4)]
    for logits, pad_id in (("all", 0), ("last", 33)):
        cache, seen = model.new_cache(4, N + 4, seeds=seeds), [0] * 4
        for call in zip(*RAGGED, strict=True):
            tokens_BT, valid_BT = padded_call(ids, seen, call, side, filler=2, pad_id=pad_id)
            out = model.extend(tokens_BT, valid_BT, cache, logits)
            for b, n in enumerate(call):
                want = expected[b][seen[b] : seen[b] + n]
                got = out[b][valid_BT[b]] if logits == "all" else out[b][None]
                if n:
                    assert gap(got, want if logits == "all" else want[-1:]) <= 1e-11
            seen = [s + n for s, n in zip(seen, call, strict=True)]
            assert cache.seen == seen
        assert cache.live_bytes() == model.cache_bytes(N + 4, 4)


@every_shape
@ample_and_tight
def test_decode_of_some_rows(network, tokens, spec, shape):
    """decode with valid_B: rows that are not valid stand still, the others are as if alone."""
    model, ids, seeds = network(spec, shape), tokens(3, N), [1, 2, 3]
    moves = [[True, (step % 3) != 0, step % 2 == 0] for step in range(14)]
    starts = [20, 3, 15]
    alone = []
    for b in range(3):
        lengths = [starts[b]] + [1] * sum(move[b] for move in moves)
        alone.append(row_alone(model, ids[b], lengths, seeds[b]))
    cache = model.new_cache(3, N + 4, seeds=seeds)
    tokens_BT, valid_BT = padded_call(ids, [0] * 3, starts, "left", 0, 0)
    model.extend(tokens_BT, valid_BT, cache)
    seen = list(starts)
    for move in moves:
        token_B = torch.stack([ids[b, seen[b]] if move[b] else torch.tensor(17) for b in range(3)])
        out = model.decode(token_B, cache, None if all(move) else torch.tensor(move))
        for b in range(3):
            if move[b]:
                assert gap(out[b], alone[b][seen[b]]) <= 1e-11
                seen[b] += 1


@conv_shape
@ample_and_tight
def test_rows_are_independent(network, tokens, spec, shape):
    """Permuting rows permutes results; a row does not depend on its neighbours or the batch size."""
    model, ids, seeds = network(spec, shape), tokens(3, N), [11, 12, 13]
    cuts = CUTS["uneven"]
    whole = run(model, ids, cuts, model.new_cache(3, N, seeds=seeds))
    for rows in ([2, 0, 1], [1], [0, 2]):
        part = run(model, ids[rows], cuts, model.new_cache(len(rows), N, seeds=[seeds[r] for r in rows]))
        assert gap(part, whole[rows]) <= 1e-11
    assert gap(model.forward(ids)[1:2], model.forward(ids[1:2])) <= 1e-11


@conv_shape
@ample_and_tight
def test_fork_is_independent(network, tokens, spec, shape):
    """Two continuations of one context do not meet, and neither changes what the other sees."""
    model, ids = network(spec, shape), tokens(2, N)
    other = tokens(2, N, seed=9)
    cache = model.new_cache(2, N, seeds=[1, 2])
    model.extend(ids[:, :25], None, cache)
    copy = cache.fork()
    first = run(model, ids[:, 25:], [4, 1, 11], cache)
    second = run(model, other[:, 25:], [4, 1, 11], copy)
    assert copy.seen == cache.seen == [N, N]
    for continuation, got in ((ids, first), (other, second)):
        fresh = model.new_cache(2, N, seeds=[1, 2])
        model.extend(ids[:, :25], None, fresh)
        assert gap(run(model, continuation[:, 25:], [4, 1, 11], fresh), got) <= 1e-12


@every_shape
@ample_and_tight
def test_select_is_running_those_rows(network, tokens, spec, shape):
    """select with repeats, from a ragged batch: each new row goes on as its source row would alone."""
    model, ids, seeds = network(spec, shape), tokens(3, N), [4, 5, 6]
    lengths, rows = [24, 4, 17], [2, 0, 2, 1, 0]
    tokens_BT, valid_BT = padded_call(ids, [0] * 3, lengths, "right", 0, 0)
    cache = model.new_cache(3, N + 4, seeds=seeds)
    model.extend(tokens_BT, valid_BT, cache)
    chosen, more = cache.select(rows), tokens(5, 12, seed=2)
    got = run(model, more, [6, 1, 5], chosen)
    assert cache.seen == lengths and chosen.seen == [lengths[r] + 12 for r in rows]
    for i, r in enumerate(rows):
        alone = torch.cat([ids[r, : lengths[r]], more[i]])
        assert gap(got[i], row_alone(model, alone, [lengths[r], 6, 1, 5], seeds[r])[-12:]) <= 1e-11


# --- bytes, limits, precision -------------------------------------------------------------------


@every_shape
@ample_and_tight
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_bytes_are_live_bytes(network, tokens, spec, shape, dtype):
    """cache_bytes is what the storages hold, by kind, before, during and after use, and after a copy."""
    model, ids = network(spec, shape, dtype), tokens(3, N)
    predicted = model.cache_bytes(N, 3)
    assert predicted == model.cache_bytes(N, 3, dtype)
    cache = model.new_cache(3, N)
    assert cache.live_bytes() == predicted
    for part in ids.split(CUTS["uneven"], 1):
        model.extend(part, None, cache)
        assert cache.live_bytes() == predicted
    assert cache.fork().live_bytes() == predicted
    assert cache.select([0, 0, 2, 1, 1]).live_bytes() == model.cache_bytes(N, 5)
    assert predicted.total == 3 * model.cache_bytes(N, 1).total


@conv_shape
@ample_and_tight
def test_capacity_is_a_sentence(network, tokens, spec, shape):
    """Beyond the capacity: ValueError of one sentence, and the cache goes on as if nothing had been."""
    model, ids = network(spec, shape), tokens(2, N)
    cache, other = model.new_cache(2, 20), model.new_cache(2, 20)
    for held in (cache, other):
        model.extend(ids[:, :18], None, held)
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[0, 2:] = False
    for mask in (None, valid):
        with pytest.raises(ValueError, match=r"^[^\n]*capacity of 20 [^\n]*\.$"):
            model.extend(ids[:, 18:22], mask, cache)
    assert gap(run(model, ids[:, 18:20], [1, 1], cache), run(model, ids[:, 18:20], [1, 1], other)) == 0
    with pytest.raises(ValueError):
        model.decode(ids[:, 20], cache)
    with pytest.raises(ValueError, match="2 seeds, not 1"):
        model.new_cache(2, 5, seeds=[1])
    for batch, capacity in ((0, 5), (1, 0), (1, -3)):
        with pytest.raises(ValueError, match="at least 1"):
            model.new_cache(batch, capacity)


@conv_shape
@ample
def test_bf16_is_close(network, tokens, spec, shape):
    """bf16 through the cache: finite, and its next-token distribution near that of fp32."""
    ids = tokens(2, N)
    model = network(spec, shape, torch.bfloat16)
    got = run(model, ids, CUTS["uneven"], model.new_cache(2, N))
    model = model.float()  # the same rounded weights, computed in fp32
    expected = run(model, ids, CUTS["uneven"], model.new_cache(2, N))
    assert got.dtype == torch.bfloat16 and got.isfinite().all()
    assert ((got.float() - expected).square().mean() / expected.square().mean()).sqrt() < 0.05


@conv_shape
@tight
def test_bf16_below_the_budget_is_finite(network, tokens, spec, shape):
    """bf16 with eviction at work: finite logits of the size of fp32's (ties may choose other victims)."""
    model, ids = network(spec, shape, torch.bfloat16), tokens(2, N)
    got = run(model, ids, CUTS["uneven"], model.new_cache(2, N))
    assert got.isfinite().all() and 0.5 < got.float().std() < 5


@conv_shape
@ample_and_tight
def test_inference_mode(network, tokens, spec, shape):
    """A cache made and used under torch.inference_mode works and counts the same."""
    model, ids = network(spec, shape), tokens(2, N)
    expected = run(model, ids, CUTS["uneven"], model.new_cache(2, N))
    with torch.inference_mode():
        cache = model.new_cache(2, N)
        assert gap(run(model, ids, CUTS["uneven"], cache), expected) <= 1e-12
        assert cache.live_bytes() == model.cache_bytes(N, 2)
