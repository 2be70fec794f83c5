"""YOCO: one K/V pair for the upper layers, an exact early exit, the official options; `Yn` names a law.

Gated retention by itself (Y1, Y2, Y5, Y12): test_yoco_retention.py. The 3B shape: test_paper_facts.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reference.yoco import yoco_logits
from torch.utils.flop_counter import FlopCounterMode

import models
from models import checkpoint
from models.attention import attention, sliding_window
from models.rope import RopeScaling
from models.shapes import SHAPES
from models.spec import SpecError

N = 31
OFFICIAL = "rope=official,embed_scale=true"
SPECS = [
    "yoco",
    "yoco:mixer=retention",
    f"yoco:{OFFICIAL},self_layers=1",
    f"yoco:mixer=retention,{OFFICIAL},self_layers=3,gain=false",
]
specs = pytest.mark.parametrize("spec", SPECS)
mixers = pytest.mark.parametrize("mixer", ["swa", "retention"])
shapes = pytest.mark.parametrize("shape", ["plain", "conv"])


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


# --- the network --------------------------------------------------------------------------------


@specs
@shapes
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": 1, "conv": 2},
        {"rope_fraction": 0, "tied": True, "ffn_bias": True},
        {"attention_head_dim": 12, "retention_head_dim": 16},
        {"num_layers": 6, "num_kv_heads": 1},
    ],
)
def test_Y4_every_cut_is_the_definition(network, tokens, spec, shape, changes):
    """forward, segments of any size and decoding give the logits of the row-by-row reference."""
    model, ids = network(spec, shape, **changes), tokens(1, N)
    expected = yoco_logits(model, ids[0])
    assert (model.forward(ids)[0] - expected).abs().max() <= 1e-11
    for cuts in ([N], [9, 1, 1, 20], [1] * N):
        assert (fed(model, ids, cuts, model.new_cache(1, N))[0] - expected).abs().max() <= 1e-11


@mixers
def test_scaled_positions_are_the_definition(network, tokens, mixer):
    """A shape's stretched positions reach window, retention (heads of another width) and shared keys."""
    scaling = RopeScaling("yarn", 4.0, 8, amplitude=1.2)
    model, ids = network(f"yoco:mixer={mixer}", rope_scaling=scaling, retention_head_dim=16), tokens(1, N)
    assert (model.forward(ids)[0] - yoco_logits(model, ids[0])).abs().max() <= 1e-11


def test_official_positions(network):
    """Frequencies from 1 to exactly 1/base for heads of every width, in pairs (2i, 2i+1), at every layer."""
    model = network("yoco:mixer=retention,rope=official", "conv", rope_base=640.0)
    mixer = model.blocks[0].mixer
    for rope, width in ((mixer.rope, 16), (model.cross_heads.rope, 8)):
        rope.ensure(5, torch.float64, "cpu")
        x = torch.zeros(1, 1, 1, width, dtype=torch.float64)
        x[..., 0], x[..., -2] = 1, 1
        turned = rope(x, torch.tensor([[3]]))[0, 0, 0]
        for first, angle in ((0, 3.0), (width - 2, 3 / 640)):
            expected = torch.tensor([angle]).double()
            assert torch.allclose(turned[first], expected.cos()) and torch.allclose(
                turned[first + 1], expected.sin()
            )


@pytest.mark.parametrize("option", ["rope=official", "embed_scale=true", "self_layers=1", "gain=false"])
def test_every_option_is_another_network(network, tokens, option):
    """Each changes the logits, is in the canonical spec, and asks for weights other than the shipped ones."""
    spec = f"yoco:mixer=retention,{option}"
    plain, other, ids = network("yoco:mixer=retention"), network(spec), tokens(1, N)
    assert (plain.forward(ids) - other.forward(ids)).abs().max() > 1e-3
    assert models.canonical_spec(spec) == spec
    (name,) = other.weight_names(other.options)
    assert name == f"yoco-retention-{option.replace('=', '-')}"
    with pytest.raises(checkpoint.WeightsError, match=f"^there are no weights '{name}' in"):
        checkpoint.load(name)
    for same in ("yoco:mixer=retention", "yoco:mixer=retention,early_exit=false"):
        module, options = models.parse(same)
        assert module.Model.weight_names(options) == ("yoco-retention",)


def test_embedding_starts_at_unit_scale():
    """embed_scale=true draws N(0, 1/E), so that the scaled embedding begins at 1."""
    torch.manual_seed(0)
    model = models.build("yoco:embed_scale=true", SHAPES["tiny"])
    assert abs((model.embed.weight * 128**0.5).std() - 1) < 0.02


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ("self_layers=4", {}, r"self_layers from 1 to 3 of 4\.$"),
        ("self_layers=-1", {}, r"self_layers >= 0\.$"),
        ("window=-1", {}, r"window >= 0"),
        ("", {"num_layers": 5}, r"self_layers or an even number of layers, not 5\.$"),
        ("mixer=retention,window=5", {}, r"mixer=swa only"),
        ("gain=false", {}, r"mixer=retention only"),
        ("", {"qkv_bias": True}, r"knows no qkv_bias, which shape 'plain' has\.$"),
        ("", {"out_bias": True}, r"no out_bias"),
        ("", {"qk_rms": True}, r"no qk_rms"),
        ("", {"sliding_layers": (1,), "sliding_window": 4}, r"no sliding_layers"),
        ("rope=official", {"rope_scaling": RopeScaling("linear", 2.0)}, r"rope=shape for the rope_scaling"),
    ],
)
def test_what_yoco_refuses_is_a_sentence(network, options, changes, message):
    with pytest.raises(SpecError, match=message):
        network(f"yoco:{options}", **changes)


@specs
def test_Y7_the_future_is_unknown(network, tokens, spec):
    """Changing token t changes no logits before t, and those at t."""
    model, ids = network(spec), tokens(1, N)
    base = model.forward(ids), fed(model, ids, [N], model.new_cache(1, N))
    for t in (0, 12, N - 1):
        other = ids.clone()
        other[0, t] = (other[0, t] + 1) % 61
        after = model.forward(other), fed(model, other, [20, 11], model.new_cache(1, N))
        for a, b in zip(base, after, strict=True):
            assert t == 0 or (a - b)[:, :t].abs().max() <= 1e-12
            assert (a - b)[:, t].abs().max() > 1e-3


@specs
@shapes
def test_Y11_right_padding_changes_nothing(network, tokens, spec, shape):
    """Rows of 20, 5 and 11 tokens padded to 23, then four decode steps: each row as if alone."""
    model, ids, lengths = network(spec, shape), tokens(3, N), [20, 5, 11]
    expected, valid = model.forward(ids), torch.arange(23) < torch.tensor(lengths)[:, None]
    for logits in ("all", "last"):
        cache = model.new_cache(3, N)
        out = model.extend(ids[:, :23].masked_fill(~valid, 60), valid, cache, logits)
        for b, n in enumerate(lengths):
            got, want = (out[b, :n], expected[b, :n]) if logits == "all" else (out[b], expected[b, n - 1])
            assert (got - want).abs().max() <= 1e-11
        for step in range(4):
            out = model.decode(torch.stack([ids[b, n + step] for b, n in enumerate(lengths)]), cache)
            want = torch.stack([expected[b, n + step] for b, n in enumerate(lengths)])
            assert (out - want).abs().max() <= 1e-11


# --- early exit and segments --------------------------------------------------------------------


@mixers
@pytest.mark.parametrize("conv", [0, 2, 4])
@pytest.mark.parametrize(("lower", "layers"), [(1, 2), (2, 4), (2, 5), (4, 5)])
def test_Y3_early_exit_is_the_last_row(network, tokens, mixer, conv, lower, layers):
    """Prompt logits through the exit = last row of forward, in segments of every size, then decoding;
    with early_exit=false the same."""
    for early, sizes in (("true", (1, 2, 3, 4, 5, 6, 7, 21)), ("false", (7, 21))):
        spec = f"yoco:mixer={mixer},early_exit={early},self_layers={lower}"
        model, ids = network(spec, "conv", conv=conv, num_layers=layers), tokens(2, N)
        expected = model.forward(ids)
        for size in sizes:
            cache, seen = model.new_cache(2, N), 0
            for part in ids[:, :21].split(size, 1):
                out = model.extend(part, None, cache)
                seen += part.shape[1]
                assert (out - expected[:, seen - 1]).abs().max() <= 1e-11, (early, size, seen)
            for t in range(21, 26):
                out = model.decode(ids[:, t], cache)
                assert (out - expected[:, t]).abs().max() <= 1e-11, (early, size, t)


@specs
@pytest.mark.parametrize("size", [560, 300, 256, 64])
def test_Y3_long_segments(network, tokens, spec, size):
    """Segments around the blocks of attention (256) and retention (64), below and above the window of 100."""
    model, ids = network(spec, window=100), tokens(1, 561)
    expected, cache = model.forward(ids)[0], model.new_cache(1, 561)
    for part in ids[:, :560].split(size, 1):
        out = model.extend(part, None, cache)
    assert (out[0] - expected[559]).abs().max() <= 1e-11
    assert (model.decode(ids[:, 560], cache)[0] - expected[560]).abs().max() <= 1e-11


@mixers
@pytest.mark.parametrize("conv", [0, 2, 4])
def test_Y3_early_exit_of_ragged_segments(network, tokens, mixer, conv):
    """Rows of 0 to 7 tokens per call, mixed with scored calls, each row as in its own forward."""
    model, ids = network(f"yoco:mixer={mixer}", "conv", conv=conv, num_layers=6), tokens(5, N)
    expected, generator = model.forward(ids), torch.Generator().manual_seed(0)
    for trial in range(3):
        cache, seen = model.new_cache(5, N), [0] * 5
        for call in range(7):
            lengths = torch.randint(0, 5 if trial else 4, (5,), generator=generator).tolist()
            valid_BT = torch.arange(6) < torch.tensor(lengths)[:, None]
            tokens_BT = torch.zeros(5, 6, dtype=torch.long)
            for b, n in enumerate(lengths):
                tokens_BT[b, :n] = ids[b, seen[b] : seen[b] + n]
            logits = "all" if call == 3 else "last"
            out = model.extend(tokens_BT, valid_BT, cache, logits)
            seen = [s + n for s, n in zip(seen, lengths, strict=True)]
            for b, n in enumerate(lengths):
                if n:
                    last = out[b, n - 1] if logits == "all" else out[b]
                    assert (last - expected[b, seen[b] - 1]).abs().max() <= 1e-11, (trial, call, b)


@mixers
@pytest.mark.parametrize(("conv", "tail"), [(0, [1, 1, 1, 1]), (4, [10, 7, 4, 1])])
def test_segments_leave_the_upper_layers_alone(network, tokens, mixer, conv, tail):
    """A segment's own logits need 1 + (conv-1) * (cross layers above) rows, and no more pass."""
    model, ids = network(f"yoco:mixer={mixer},self_layers=2", "conv", conv=conv, num_layers=6), tokens(1, N)
    rows, cache = [], model.new_cache(1, 2 * N)
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1]))
    for size in (17, 3, 11):
        model.extend(ids[:, :size], None, cache)
        assert rows == [size] * 2 + [min(n, size) for n in tail]
        rows.clear()
    model.extend(ids, None, cache, "all")
    assert rows == [N] * 6


# --- one cache ----------------------------------------------------------------------------------


@specs
def test_Y10_all_cross_layers_read_one_cache(network, tokens, spec):
    """One pair of K/V tensors serves every upper layer; it alone grows with the context."""
    model, ids = network(spec, num_layers=6), tokens(1, N)
    read = []
    upper = model.blocks[model.self_layers :]
    for block in upper:
        block.mixer.register_forward_pre_hook(lambda module, args: read.append(args[1]))
    cache = model.new_cache(1, N)
    model.decode(ids[:, 0], cache)
    assert len(read) == len(upper) and all(state is cache.states["shared"] for state in read)
    long = [
        state.tensors for state in cache.states.values() if any(N in s.shape for s in state.specs.values())
    ]
    assert len(long) == 1 and set(long[0]) == {"k", "v"}


@specs
def test_Y9_cross_layers_own_no_kv_weights(network, spec):
    """An upper layer has a query and an output projection, nothing else but norms and FFN."""
    model = network(spec)
    for block in model.blocks[model.self_layers :]:
        assert {name for name, _ in block.mixer.named_parameters()} == {"q.weight", "out.weight"}
    shared = [name for name, _ in model.named_parameters() if name.startswith("kv")]
    assert shared == ["kv_norm.weight", "kv.weight"]


@pytest.mark.parametrize("self_layers", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "b"), [(torch.bfloat16, 2), (torch.float32, 4), (torch.float64, 8)])
def test_Y8_cache_bytes_by_formula(network, self_layers, dtype, b):
    """B b (2 N G h + self layers x (H h^2 in fp32 or more | 2 min(N,C) H h)); below, constant in N."""
    H, G, D, C = 4, 2, 8, 7
    for length in (3, C, 100):
        for batch in (1, 3):
            window = network(f"yoco:self_layers={self_layers}", dtype=dtype)
            state = network(f"yoco:mixer=retention,self_layers={self_layers}", dtype=dtype)
            payload = 2 * length * G * D * b
            held = window.cache_bytes(length, batch)
            assert held.payload == batch * (payload + self_layers * 2 * min(length, C) * H * D * b)
            assert (held.metadata, held.state) == (batch * self_layers * min(length, C) * 4, 0)
            expected = batch * payload, 0, batch * self_layers * H * D * D * max(b, 4)
            assert dataclasses.astuple(state.cache_bytes(length, batch)) == expected
            assert state.new_cache(batch, length).live_bytes() == state.cache_bytes(length, batch)


@mixers
@pytest.mark.parametrize("lower", [1, 2, 4])
def test_cost_follows_the_layout(network, tokens, mixer, lower):
    """Predicted FLOPs = linear layers as counted + 4 H D per (query, key) pair + 5 per state element."""
    H, D, C, upper = 4, 8, 7, 5 - lower
    windows, states = (lower, 0) if mixer == "swa" else (0, 5 * lower * H * D * D)
    spec = f"yoco:mixer={mixer},self_layers={lower}"
    model, ids = network(spec, dtype=torch.float32, num_layers=5), tokens(1, N)
    cache, linear = model.new_cache(1, N + 1), []
    for call in (lambda: model.extend(ids, None, cache), lambda: model.decode(ids[:, 0], cache)):
        with FlopCounterMode(display=False) as counter:
            call()
        linear.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    pairs = windows * sum(min(i, C) for i in range(1, N + 1)) + upper * N
    assert model.prefill_flops(N) == linear[0] + 4 * H * D * pairs + N * states
    assert model.decode_flops(N) == linear[1] + 4 * H * D * (windows * C + upper * (N + 1)) + states


def test_Y6_window_of_everything_is_full_attention(network, tokens):
    """A window of N or more is full attention, with and without cache; N - 1 is not."""
    ids = tokens(1, N)
    wide, exact, narrow = (network(f"yoco:window={w}") for w in (500, N, N - 1))
    assert (wide.forward(ids) - exact.forward(ids)).abs().max() <= 1e-12
    assert (wide.forward(ids) - narrow.forward(ids))[:, :-1].abs().max() <= 1e-12
    assert (wide.forward(ids) - narrow.forward(ids))[:, -1].abs().max() > 1e-4
    torch.manual_seed(0)
    q = torch.randn(2, 300, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(2, 4, 300, 8, dtype=torch.float64) for _ in range(2))
    assert torch.equal(sliding_window(q, k, v, 0.3, 300), attention(q, k, v, 0.3, causal=True))
    near = torch.arange(300)[:, None] - torch.arange(300)
    for window in (1, 7, 64, 256, 257, 299):
        banded = attention(q, k, v, 0.3, ((near >= 0) & (near < window))[None])
        assert (sliding_window(q, k, v, 0.3, window) - banded).abs().max() <= 1e-12
