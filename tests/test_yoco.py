"""YOCO: one K/V pair for the upper half, an exact early exit, and retention in three equal forms."""

from __future__ import annotations

import pytest
import torch
from references import retention, yoco_logits
from torch import nn

import models
from models.architecture import Shape
from models.attention import attention, sliding_window
from models.kernels import gated_retention
from models.layers import rms_normalise
from models.retention import RetentionMixer
from models.shapes import SHAPES

N = 31
mixers = pytest.mark.parametrize("mixer", ["swa", "retention"])


def fed(model, ids, cuts, cache):
    return torch.cat([model.extend(part, None, cache, "all") for part in ids.split(cuts, 1)], 1)


@mixers
@pytest.mark.parametrize("shape", ["plain", "conv"])
@pytest.mark.parametrize("changes", [{}, {"window": 1}, {"conv": 2}, {"num_layers": 2}, {"rope_fraction": 0}])
def test_yoco_is_its_definition(network, tokens, mixer, shape, changes):
    """forward and the cache give the logits of the row-by-row reference."""
    model, ids = network(f"yoco:mixer={mixer}", shape, **changes), tokens(1, N)
    expected = yoco_logits(model, ids[0])
    assert (model.forward(ids)[0] - expected).abs().max() <= 1e-11
    for cuts in ([N], [9, 1, 1, 20], [1] * N):
        assert (fed(model, ids, cuts, model.new_cache(1, N))[0] - expected).abs().max() <= 1e-11


# --- early exit ---------------------------------------------------------------------------------


@mixers
@pytest.mark.parametrize("conv", [0, 2, 4])
@pytest.mark.parametrize("upper", [1, 2, 3])
def test_early_exit_is_the_last_row(network, tokens, mixer, conv, upper):
    """Prompt logits through the exit = last row of forward, in segments of every size, then decoding;
    with early_exit=false the same."""
    for early, sizes in (("true", (1, 2, 3, 4, 5, 6, 7, 21)), ("false", (7, 21))):
        spec = f"yoco:mixer={mixer},early_exit={early}"
        model, ids = network(spec, "conv", conv=conv, num_layers=2 * upper), tokens(2, N)
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


@mixers
@pytest.mark.parametrize("conv", [0, 2, 4])
def test_early_exit_of_ragged_segments(network, tokens, mixer, conv):
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
def test_early_exit_leaves_the_upper_half_alone(network, tokens, mixer):
    """The exit passes exactly the tail that is needed: 1 + 3 * (cross layers above) rows of a prompt."""
    model, ids = network(f"yoco:mixer={mixer}", "conv", num_layers=6), tokens(1, N)
    rows = []
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1]))
    model.extend(ids, None, model.new_cache(1, N))
    assert rows == [N, N, N, 7, 4, 1]
    rows.clear()
    model.extend(ids, None, model.new_cache(1, N), "all")
    assert rows == [N] * 6


# --- one cache ----------------------------------------------------------------------------------


@mixers
def test_all_cross_layers_read_one_cache(network, tokens, mixer):
    """One pair of K/V tensors serves every upper layer (Y10); it alone grows with the context."""
    model, ids = network(f"yoco:mixer={mixer}", num_layers=6), tokens(1, N)
    read = []
    for block in model.blocks[3:]:
        block.mixer.register_forward_pre_hook(lambda module, args: read.append(args[1]))
    cache = model.new_cache(1, N)
    model.decode(ids[:, 0], cache)
    assert len(read) == 3 and all(state is cache.states["shared"] for state in read)
    long = [
        state.tensors for state in cache.states.values() if any(N in s.shape for s in state.specs.values())
    ]
    assert len(long) == 1 and set(long[0]) == {"k", "v"}


@mixers
def test_cross_layers_own_no_kv_weights(network, mixer):
    """An upper layer has a query and an output projection, nothing else but norms and FFN (Y9)."""
    model = network(f"yoco:mixer={mixer}")
    for block in model.blocks[2:]:
        assert {name for name, _ in block.mixer.named_parameters()} == {"q.weight", "out.weight"}
    assert [name for name, _ in model.named_parameters() if name.startswith("kv")] == [
        "kv_norm.weight",
        "kv.weight",
    ]


def test_parameters_of_the_3b_shape():
    """2.829 B without embedding and head, as the paper's 3B model has (13 retention, 13 cross layers)."""
    with torch.device("meta"):
        model = models.build("yoco:mixer=retention", SHAPES["3b"])
    count = sum(p.numel() for p in model.parameters()) - 2 * 100_288 * 3072
    d, norms = 3072, 26 * 2 * 3072 + 2 * 3072
    formula = (
        13 * (5 * d * d + 24 * d + 3 * d * 8192) + 13 * (2 * d * d + 3 * d * 8192) + 2 * d * 1024 + norms
    )
    assert count == formula + 13 * d  # our gain after the per-head norm
    assert abs(count - 2.829e9) < 1e6


def test_window_of_everything_is_full_attention(network, tokens):
    """A window of N or more is full attention, with and without cache (Y6); N - 1 is not."""
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


# --- retention ----------------------------------------------------------------------------------


def retention_inputs(length, dtype=torch.float64, logit=None):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, length, 3, 8, dtype=torch.float64) for _ in range(3))
    gate = (
        torch.randn(2, length, 3, dtype=torch.float64) * 4
        if logit is None
        else torch.full((2, length, 3), logit)
    )
    a = torch.nn.functional.logsigmoid(gate.double()) / 16
    return [x.to(dtype) for x in (q, k / 8**0.5, v, a)]


@pytest.mark.parametrize("length", [1, 5, 64, 100])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_three_forms_of_retention(length, dtype, limit):
    """parallel = chunk of any size = recurrent = the defining sum, fp64 1e-9, fp32 1e-5 of the largest
    output (Y1); states agree too, in segments that are no multiple of the chunk (Y2)."""
    q, k, v, a = retention_inputs(length, dtype)
    exact = retention_inputs(length)
    expected = torch.stack([retention(*(x[b] for x in exact)) for b in range(2)])
    limit *= expected.abs().max()
    empty = torch.zeros(2, 3, 8, 8, dtype=dtype)
    steps, state = gated_retention.recurrent(q, k, v, a, empty)
    assert (steps - expected).abs().max() <= limit
    assert (gated_retention.parallel(q, k, v, a) - expected).abs().max() <= limit
    for chunk in (1, 3, 16, 64, 1000):
        out, last = gated_retention.chunked(q, k, v, a, empty, chunk)
        assert (out - expected).abs().max() <= limit
        assert (last - state).abs().max() <= limit
    cut, held, outs = max(1, length * 2 // 5), empty, []
    for start in range(0, length, cut):
        part = slice(start, start + cut)
        out, held = gated_retention.chunked(q[:, part], k[:, part], v[:, part], a[:, part], held, 7)
        outs.append(out)
    assert (torch.cat(outs, 1) - expected).abs().max() <= limit
    assert (held - state).abs().max() <= limit


def test_gate_extremes():
    """Gate to +inf: plain causal linear attention; gate to -inf: only the token itself (Y5)."""
    forms = (gated_retention.recurrent, gated_retention.chunked)
    for logit, keep in ((1e4, lambda n, m: m <= n), (-1e6, lambda n, m: m == n)):
        q, k, v, a = retention_inputs(50, logit=logit)
        seen = torch.tensor([[float(keep(n, m)) for m in range(50)] for n in range(50)]).double()
        expected = torch.einsum("bthd,bshd,ts,bshe->bthe", q, k, seen, v)
        outs = [form(q, k, v, a, torch.zeros(2, 3, 8, 8).double())[0] for form in forms]
        for out in [*outs, gated_retention.parallel(q, k, v, a)]:
            assert out.isfinite().all() and (out - expected).abs().max() <= 1e-10


def test_one_token_of_retention(network):
    """N = 1: the mixer's output before the norm is (q . k / sqrt(D)) v (Y12)."""
    shape = Shape(name="one", vocab=5, dim=8, num_layers=2, num_heads=1, num_kv_heads=1, ffn_dim=8)
    torch.manual_seed(0)
    mixer = RetentionMixer(shape, nn.Identity()).double()
    mixer.rope.forward = lambda x, positions: x
    x = torch.randn(1, 1, 8).double()
    q, k, v = mixer.qkv(x).chunk(3, -1)
    o = rms_normalise((q * k).sum(-1, keepdim=True) / 8**0.5 * v, shape.norm_eps)
    expected = mixer.out(nn.functional.silu(mixer.gate(x)) * o)
    assert (mixer.parallel(x, torch.zeros(1, 1, dtype=torch.long)) - expected).abs().max() <= 1e-12


def test_retention_state_does_not_forget_to_forget(network, tokens):
    """Under bf16 the state stays fp32, and a slow decay (gate logit 4) still decays."""
    model = network("yoco:mixer=retention", dtype=torch.bfloat16)
    assert model.new_cache(1, 9).states["0.retention"].tensors["s"].dtype == torch.float32
    q, k, v, a = retention_inputs(1, torch.bfloat16, logit=4.0)
    full = torch.ones(2, 3, 8, 8)
    for form in (gated_retention.recurrent, gated_retention.chunked):
        state = full
        for _ in range(400):
            _, state = form(q, k, v * 0, a.float(), state)
        assert state.dtype == torch.float32
        expected = torch.exp(400 * a[0, 0, 0].double()).item()
        assert expected < 0.7 and (state - expected).abs().max() < 1e-3
