"""LoCoCo's options: accumulated scores, deeper convolutions, local slots, LoRA, stretched positions; a
sliding window of the model's own; and one name of weights for each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference import reference_of_spec

import models
from models.architectures.lococo import Options
from models.compressor import Compressor
from models.lora import LoraLinear
from models.rope import RopeScaling
from models.spec import SpecError

N = 60
CALLS = [[N], [20, 1, 1, 1, 7, 30], [30] + [1] * 30]


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize(
    "options",
    [
        "budget=6,scores=accumulated",
        "budget=9,heavy=0.3,scores=accumulated,block=5,kernel=3",
        "budget=6,depth=2,kernel=5",
        "budget=7,depth=3,kernel=3,scores=accumulated",
        "budget=6,rope_factor=2.5",
        "budget=8,heavy=0.7,local=4,block=5,slack=3",
        "budget=9,heavy=0.6,sinks=2,local=2,slack=0,block=4,scores=accumulated",
        "budget=6,alpha=bounded,sinks=1",
    ],
)
def test_options_against_the_naive_reference(network, tokens, options, calls):
    """Each option, alone and together, gives the logits of the independent reference."""
    model, ids = network(f"lococo:{options}"), tokens(1, N)
    expected, _ = reference_of_spec(f"lococo:{options}", model, ids[0], calls)
    cache = model.new_cache(1, N)
    assert (fed(model, ids, calls, cache)[0] - expected).abs().max() <= 1e-10
    assert cache.statistics()["compressions"][0] >= 1


# --- scores -------------------------------------------------------------------------------------


def test_accumulated_scores_are_conserved(network, tokens):
    """Every query gives away a mass of 1: before any fold the scores of a KV head sum to the queries so far,
    those of the last call to its own."""
    for scores, total in (("accumulated", 20), ("last", 4)):
        model, ids = network(f"lococo:budget=3,block=20,scores={scores}"), tokens(2, 20)
        cache = model.new_cache(2, 40)
        fed(model, ids, [10, 6, 4], cache)
        assert cache.statistics()["compressions"] == [0, 0]
        state = cache.states["1.attention"]
        assert (state.tensors["score"][:, :, :20].sum(-1) - total).abs().max() <= 1e-9


def test_accumulated_scores_through_a_fold():
    """Heavy slots keep theirs; a mixed one has the W-weighted sum; slots behind memory start at 0."""
    torch.manual_seed(0)
    options = Options(budget=8, kernel=3, scores="accumulated")
    compressor = Compressor(4, options).double().requires_grad_(False)
    k, v, score = torch.randn(1, 2, 30, 4).double(), torch.randn(1, 2, 30, 4).double(), torch.rand(1, 2, 30)
    score = score.double()
    fold = compressor(k, v, score)
    memory = fold.apply(score[..., None])[..., 0]
    assert torch.equal(memory[..., :4].sort().values, score.topk(4).values.sort().values)
    for g in range(2):
        rest = score[0, g, fold.rest_BGr[0, g]]
        for m in range(4):
            expected = sum(w * s for w, s in zip(fold.weights_BGMr[0, g, m], rest, strict=True))
            assert (memory[0, g, 4 + m] - expected).abs() <= 1e-12


def test_stale_scores_do_not_reach_new_slots(network, tokens):
    """After a fold a slot beyond memory counts from zero, whoever held it before."""
    model, ids = network("lococo:budget=4,block=40,scores=accumulated"), tokens(1, 41)
    cache = model.new_cache(1, 80)
    fed(model, ids, [40, 1], cache)
    state = cache.states["0.attention"]
    assert state.rows["held"] == [5] and state.rows["compressions"] == [1]
    assert (state.tensors["score"][0, :, 5:] == 0).all()
    assert (state.tensors["score"][0, :, 4] <= 1).all()  # one query has seen it


@pytest.mark.parametrize("scores", ["last", "accumulated"])
@pytest.mark.parametrize("window", [{}, {"sliding_window": 4, "sliding_layers": (1, 3)}])
def test_padded_rows_are_as_alone(network, tokens, scores, window):
    """Rows that fold at different times, stand still and are padded: each as if it were by itself."""
    model, ids = network(f"lococo:budget=4,block=7,kernel=3,scores={scores}", **window), tokens(3, 40)
    lengths = [[30, 0, 1, 5, 1], [3, 28, 0, 1, 2], [22, 3, 1, 0, 9]]
    cache, used, outs = model.new_cache(3, 60), [0, 0, 0], [[], [], []]
    for column in range(5):
        wide = max(row[column] for row in lengths)
        part, valid = torch.zeros(3, wide, dtype=torch.long), torch.zeros(3, wide, dtype=torch.bool)
        for row in range(3):
            n = lengths[row][column]
            part[row, :n], valid[row, :n] = ids[row, used[row] : used[row] + n], True
            used[row] += n
        logits = model.extend(part, valid, cache, "all")
        for row in range(3):
            outs[row].append(logits[row, valid[row]])
    for row in range(3):
        calls = [n for n in lengths[row] if n]
        alone = fed(model, ids[row : row + 1, : used[row]], calls, model.new_cache(1, 60))
        assert (torch.cat(outs[row]) - alone[0]).abs().max() <= 1e-11
    assert min(cache.statistics()["compressions"]) >= 1


# --- the compressor -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "depth"), [(1, 1), (3, 1), (21, 2), (5, 3)])
def test_parameters_and_flops_of_a_stack(kernel, depth):
    """First convolution from 2h channels, every further one from Mc (the official width), one alpha."""
    options, h, mixed = Options(budget=32, heavy=0.25, kernel=kernel, depth=depth), 8, 24
    compressor = Compressor(h, options)
    weights = 2 * h * mixed * kernel + (depth - 1) * mixed * mixed * kernel
    assert sum(p.numel() for p in compressor.parameters()) == weights + depth * mixed + 1
    rest = 40 - 8
    assert compressor.flops(40) == 2 * weights * rest + 2 * 2 * mixed * rest * h
    assert {"conv.weight", "conv.bias", "alpha"} <= set(compressor.state_dict())


def test_initial_values():
    """Scaled: N(0, 1/fan_in); official: N(0, 1), at which nearly every row of W is one-hot at once."""
    torch.manual_seed(0)
    compressor = Compressor(64, Options(budget=64, depth=2))
    sharpest = {}
    for init, (first, second) in {
        "scaled": ((128 * 21) ** -0.5, (32 * 21) ** -0.5),
        "official": (1, 1),
    }.items():
        compressor.initialise(init)
        assert compressor.alpha.item() == 0.5
        assert compressor.conv.weight.std().item() == pytest.approx(first, rel=0.05)
        assert compressor.convs["1"].weight.std().item() == pytest.approx(second, rel=0.05)
        shallow = Compressor(64, Options(budget=64))
        shallow.initialise(init)
        with torch.no_grad():
            shallow.alpha.fill_(1.0)
        k, v = torch.randn(2, 1, 2, 100, 64).unbind(0)
        sharpest[init] = shallow.weights(k, v, torch.rand(1, 2, 100)).amax(-1).median().item()
    assert sharpest["official"] > 0.99 > 0.2 > sharpest["scaled"]


def test_local_slots_stay_verbatim():
    """`local` newest slots are heavy whatever their scores; the others compete for the places left."""
    torch.manual_seed(0)
    compressor = Compressor(4, Options(budget=8, kernel=3, local=3)).requires_grad_(False)
    k, v, score = torch.randn(1, 1, 30, 4), torch.randn(1, 1, 30, 4), torch.rand(1, 1, 30)
    score[..., -3:] = 0
    fold = compressor(k, v, score)
    best = score[0, 0, :27].argmax().item()
    assert fold.heavy_BGm.tolist() == [[[best, 27, 28, 29]]]
    assert torch.equal(fold.apply(k)[0, 0, 1:4], k[0, 0, 27:])


# --- the model around it ------------------------------------------------------------------------


def folded_by_hand(cache, q, k, v, compressor, window, cuts):
    """Attention over explicit lists: every slot knows its position, memory has none. One KV head."""
    slots, scores, outs, start = [], [], [], 0  # slots: (position or None, key, value)
    for size in cuts:
        if len(slots) > cache.budget + 16:
            held_k, held_v = (torch.stack([s[i] for s in slots])[None, None] for i in (1, 2))
            fold = compressor(held_k, held_v, torch.tensor(scores, dtype=torch.float64)[None, None])
            slots = [
                (None, a, b) for a, b in zip(fold.apply(held_k)[0, 0], fold.apply(held_v)[0, 0], strict=True)
            ]
        before = len(slots)
        slots += [(t, k[t], v[t]) for t in range(start, start + size)]
        scores = [0.0] * len(slots)
        for t in range(start, start + size):
            seen = [
                n
                for n, (position, _, _) in enumerate(slots[: before + t - start + 1])
                if position is None or t - position < window
            ]
            p = torch.softmax(torch.stack([slots[n][1] for n in seen]) @ q[t] * cache.heads.scale, 0)
            outs.append(p @ torch.stack([slots[n][2] for n in seen]))
            for n, share in zip(seen, p.tolist(), strict=True):
                scores[n] += share
        start += size
    return torch.stack(outs)


def test_a_window_of_the_model_hides_tokens_but_not_memory(network, tokens):
    """Exact tokens of distance >= window are invisible, also behind memory; memory is always visible."""
    ids = tokens(2, N)
    windows = {"sliding_window": 5, "sliding_layers": (0, 2)}
    ample = network("lococo:budget=60", **windows)
    out = fed(ample, ids, [20, 1, 39], ample.new_cache(2, N))
    assert (out - network("transformer", **windows).forward(ids)).abs().max() <= 1e-11

    model = network("lococo:budget=6,kernel=3", num_heads=1, num_kv_heads=1, **windows)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, N, 32, dtype=torch.float64)
    cuts = [20, 1, 1, 1, 7, 30]
    cache = model.new_cache(1, N).states["0.attention"]
    cache.heads = dataclasses.replace(cache.heads, rope=None)  # positions are not what is tested here
    outs, start = [], 0
    for size in cuts:
        part = slice(start, start + size)
        positions = torch.arange(start, start + size)[None]
        outs.append(cache.attend(*(x[part][None, :, None] for x in (q, k, v)), positions, None)[0, :, 0])
        start += size
    blocks = [min(6, size - first) for size in cuts for first in range(0, size, 6)]
    expected = folded_by_hand(cache, q, k, v, model.compressors[0], 5, blocks)
    assert (torch.cat(outs) - expected).abs().max() <= 1e-12
    assert cache.rows["compressions"][0] >= 2


@pytest.mark.parametrize("scaling", [None, RopeScaling("linear", 2.0)])
def test_rope_factor_is_linear_scaling(network, tokens, scaling):
    """While nothing is folded: a Transformer whose shape has the linear factor (times its own)."""
    ids = tokens(2, 40)
    model = network("lococo:budget=40,rope_factor=4", rope_scaling=scaling)
    own = 1.0 if scaling is None else scaling.factor
    baseline = network("transformer", rope_scaling=RopeScaling("linear", 4 * own))
    out = fed(model, ids, [30, 1, 9], model.new_cache(2, 40))
    assert (out - baseline.forward(ids)).abs().max() <= 1e-11
    assert (out - network("transformer", rope_scaling=scaling).forward(ids)).abs().max() > 1e-3


LORA = "lococo:budget=40,trainable=official,lora=3"


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "out_bias": True}])
def test_lora_starts_as_a_no_op(network, tokens, changes):
    """Rank 3 on q, k, v and o of every layer: r(in + out) parameters each, no effect before training; then
    each part follows its own A and B, scaled by 16 / r."""
    base, ids = network("transformer", **changes), tokens(1, 30)
    torch.manual_seed(0)
    model = models.build(LORA, base.shape).double().requires_grad_(False).eval()
    assert not model.load_state_dict(base.state_dict(), strict=False).unexpected_keys
    assert torch.equal(model.forward(ids), base.forward(ids))

    E, H, G, D, r = 32, 4, 2, 8, 3
    added = {name: p for name, p in model.named_parameters() if "lora" in name}
    per_layer = r * ((E + H * D) + 2 * (E + G * D) + (H * D + E))
    assert sum(p.numel() for p in added.values()) == 4 * per_layer

    layer = model.blocks[1].mixer.qkv
    assert isinstance(layer, LoraLinear)
    layer.lora.b.normal_()
    x, parts = torch.randn(5, E, dtype=torch.float64), (H * D, G * D, G * D)
    expected = [
        16 / r * x @ a.T @ b.T for a, b in zip(layer.lora.a.split(r), layer.lora.b.split(parts), strict=True)
    ]
    before = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
    assert (layer(x) - before - torch.cat(expected, -1)).abs().max() <= 1e-12
    assert (model.forward(ids) - base.forward(ids)).abs().max() > 1e-3


def test_costs_follow_the_options(network, tokens):
    """Every token reads and multiplies low-rank matrices; deeper stacks and mixed scores fold dearer."""
    plain, lora = network("lococo:budget=6"), network("lococo:budget=6,trainable=official,lora=3")
    added = sum(p.numel() for name, p in lora.named_parameters() if "lora" in name)
    assert lora.read_bytes(50) - plain.read_bytes(50) == 8 * added
    for n in (10, 100):
        assert lora.decode_flops(n) - plain.decode_flops(n) == 2 * added
        assert lora.prefill_flops(n) - plain.prefill_flops(n) == 2 * added * n
    fold = plain.prefill_flops(30) - network("lococo:budget=30").prefill_flops(30)
    rest, heads = 24 - 3, 4 * 2  # 24 slots fold, 3 of them heavy; layers x KV heads
    for options, dearer in (("depth=2", 2 * 3 * 3 * 21 * rest), ("scores=accumulated", 2 * 3 * rest)):
        model = network(f"lococo:budget=6,{options}")
        other = model.prefill_flops(30) - network("lococo:budget=30").prefill_flops(30)
        assert other - fold == heads * dearer
    for spec in ("lococo:budget=6,scores=accumulated", "lococo:budget=6,trainable=official,lora=3"):
        cache = network(spec).new_cache(3, N)
        assert cache.live_bytes() == plain.cache_bytes(N, 3)


# --- specs and names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lococo:depth=0", "depth from 1 to 64"),
        ("lococo:lora=-1", "lora from 0"),
        ("lococo:lora=8", "LoRA with trainable=official only"),
        ("lococo:budget=8,local=5", "at most its 4 verbatim slots, not 5 and 0"),
        ("lococo:budget=8,local=3,sinks=2", "at most its 4 verbatim slots, not 3 and 2"),
        ("lococo:local=-1", "local and sinks >= 0"),
        ("lococo:sinks=-1", "local and sinks >= 0"),
        ("lococo:slack=-1", "slack >= 0"),
        ("lococo:alpha=half", "one of free, bounded"),
        ("lococo:rope_factor=0", "positive, finite rope_factor"),
        ("lococo:rope_factor=inf", "positive, finite rope_factor"),
        ("lococo:rope_factor=nan", "positive, finite rope_factor"),
        ("lococo:heavy=nan", "heavy"),
        ("lococo:scores=all", "one of last, accumulated"),
        ("lococo:trainable=all", "one of compressor, official"),
    ],
)
def test_wrong_options_are_sentences(spec, message):
    with pytest.raises(SpecError, match=message) as caught:
        models.parse(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("budget=128", "lococo-128"),
        ("budget=128,block=128", "lococo-128"),
        ("budget=128,block=64", "lococo-128-block64"),
        ("kernel=5,depth=2", "lococo-256-kernel5-depth2"),
        ("heavy=0.25,local=2", "lococo-256-heavy0.25-local2"),
        ("scores=accumulated", "lococo-256-accumulated"),
        ("trainable=official,lora=8,rope_factor=8", "lococo-256-official-rope_factor8-lora8"),
        ("alpha=bounded,sinks=4,slack=0,block=16", "lococo-256-block16-bounded-sinks4-slack0"),
        ("alpha=free,slack=16,sinks=0", "lococo-256"),
    ],
)
def test_every_training_has_a_name_of_its_own(options, name):
    """So weights of another training are never loaded by mistake: they are simply not there."""
    module, parsed = models.parse(f"lococo:{options}")
    assert module.Model.weight_names(parsed) == ("transformer", name)
