"""What an architecture says it costs, against formulas written out here and against a FLOP counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from models.shapes import SHAPES

L, E, H, G, D = 4, 32, 4, 2, 8  # of the "plain" shape; window 7
N = 40

dtypes = pytest.mark.parametrize(
    ("dtype", "b"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8)]
)


def kinds(cost) -> tuple[int, int, int]:
    return cost.payload, cost.metadata, cost.state


# --- cache bytes --------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("batch", [1, 3])
def test_cache_bytes_by_formula(network, dtype, b, batch):
    """Section 2.7 of the notes and each policy's own bookkeeping, to the byte; the cache holds just that."""
    wide = max(b, 4)
    expected = {
        "transformer": (2 * L * N * G * D * b, 0, 0),
        "window:budget=9,sinks=2": (2 * L * 10 * G * D * b, L * 10 * 4, 0),
        "tova:budget=9": (2 * L * 10 * G * D * b, L * (10 * 4 + 8), 0),
        "tova:budget=9,prompt=bulk": (2 * L * 10 * G * D * b, L * (10 * 4 + 8), 0),
        "random:budget=9": (2 * L * 10 * G * D * b, L * (10 * 4 + 8 + 8), 0),
        "tova:budget=500": (2 * L * N * G * D * b, L * (N * 4 + 8), 0),
        "lococo:budget=6": (2 * L * 28 * G * D * b, L * 28 * G * wide, 0),
        "lococo:budget=6,block=3": (2 * L * 25 * G * D * b, L * 25 * G * wide, 0),
        "yoco:mixer=retention": (2 * N * G * D * b, 0, L // 2 * H * D * D * wide),
        "yoco": (2 * N * G * D * b + L // 2 * 2 * 7 * H * D * b, L // 2 * 7 * 4, 0),
        "yoco:window=99": (2 * N * G * D * b + L // 2 * 2 * N * H * D * b, L // 2 * N * 4, 0),
    }
    for spec, row in expected.items():
        model = network(spec, dtype=dtype)
        assert kinds(model.cache_bytes(N, batch)) == tuple(batch * value for value in row), spec
        assert model.new_cache(batch, N).live_bytes() == model.cache_bytes(N, batch), spec
        assert model.cache_bytes(N, batch).total == batch * sum(row)


def test_convolution_tails_are_state(network):
    """conv = 4 keeps three inputs of q, k and v per layer (YOCO: also of the shared K/V)."""
    tail = 3 * 4  # rows of fp32
    for spec, channels in (
        ("transformer", L * (H + 2 * G) * D),
        ("yoco", 2 * 3 * H * D + 2 * H * D + 2 * G * D),
    ):
        assert network(spec, dtype=torch.float32, conv=4).cache_bytes(N, 2).state == 2 * tail * channels
    wide = network("yoco:mixer=retention", dtype=torch.float32, conv=4, retention_head_dim=16)
    states = 2 * 2 * 16 * 16 * 4
    assert wide.cache_bytes(N).state == states + tail * (2 * 3 * E + 2 * H * D + 2 * G * D)


def test_cache_of_the_3b_shape():
    """YOCO-3B in bf16: 4,096 B per token, plus 163.6 MB of window or fp32 retention states; the
    Transformer 104 KiB per token, 26 times as much (section 2.7)."""
    with torch.device("meta"):
        yoco, window, full = (
            models.build(spec, SHAPES["3b"]) for spec in ("yoco:mixer=retention", "yoco", "transformer")
        )
    cost = yoco.cache_bytes(2**20, 1, torch.bfloat16)
    assert kinds(cost) == (4096 * 2**20, 0, 13 * 24 * 128 * 128 * 4)
    assert full.cache_bytes(2**20, 1, torch.bfloat16).total == 104 * 1024 * 2**20
    assert window.cache_bytes(2**20, 1, torch.bfloat16).payload - cost.payload == 13 * 2 * 1024 * 24 * 128 * 2


def test_live_bytes_sees_what_was_not_declared(network):
    """live_bytes counts storages: a hidden tensor counts, a view does not, a slice keeps its parent."""
    cache = network("transformer", dtype=torch.float32).new_cache(1, N)
    before = cache.live_bytes()
    state = cache.states["0.attention"]
    state.view = state.tensors["k"][:, :3]
    assert cache.live_bytes() == before
    state.hidden = [{"deep": torch.zeros(100)[:1]}]
    assert cache.live_bytes().total == before.total + 400


# --- read bytes ---------------------------------------------------------------------------------


@dtypes
def test_read_bytes_by_formula(network, dtype, b):
    """One decode step reads every matrix but the embedding, and what its queries attend to."""
    token = 2 * G * D * b
    cases = {
        "transformer": L * (N + 1) * token,
        "window:budget=9,sinks=2": L * 10 * token + L * 10 * 4,
        "tova:budget=9": L * 10 * token + L * (10 * 4 + 8),
        "yoco": L // 2 * (N + 1) * token + L // 2 * (7 * 2 * H * D * b + 7 * 4),
        "yoco:mixer=retention": L // 2 * (N + 1) * token + L // 2 * H * D * D * max(b, 4),
        "lococo:budget=6": L * (6 + 9) * token + L * 28 * G * max(b, 4),
    }
    for spec, cached in cases.items():
        model = network(spec, dtype=dtype)
        matrices = (
            sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2) - model.embed.weight.numel()
        )
        for batch in (1, 3):
            assert model.read_bytes(N, batch) == matrices * b + batch * cached, spec
        assert model.read_bytes(N, 1, dtype) == model.read_bytes(N, 1)


# --- FLOPs --------------------------------------------------------------------------------------


def counted(call) -> tuple[int, int]:
    """FLOPs of the linear layers, and of all matrix products, as PyTorch counts them."""
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        call()
    counts = counter.get_flop_counts()["Global"]
    return counts.get(torch.ops.aten.mm, 0), sum(counts.values())


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def grown(n: int, reach: int) -> int:
    return sum(min(i, reach) for i in range(1, n + 1))


PER_PAIR = 4 * H * D
#: spec -> (query, key) pairs of a prompt of N tokens over all layers, by each rule's definition.
PAIRS = {
    "transformer": L * triangle(N),
    "window:budget=9,sinks=2": L * grown(N, 10),
    "tova:budget=9": L * grown(N, 10),
    "random:budget=9": L * grown(N, 10),
    "tova:budget=9,prompt=bulk": L * (triangle(N) + N),  # the last row once more, for the scores
    "yoco": L // 2 * grown(N, 7) + L // 2 * N,
    "yoco:early_exit=false": L // 2 * grown(N, 7) + L // 2 * triangle(N),
    "yoco:window=99": L // 2 * triangle(N) + L // 2 * N,
}


@pytest.mark.parametrize("spec", PAIRS)
def test_prefill_flops(network, tokens, spec):
    """Predicted = what the counter sees in linear layers + 4 H D per (query, key) pair of the rule."""
    model, ids = network(spec, dtype=torch.float32), tokens(1, N)
    linear, everything = counted(lambda: model.extend(ids, None, model.new_cache(1, N)))
    assert model.prefill_flops(N) == linear + PER_PAIR * PAIRS[spec]
    assert model.prefill_flops(N) <= everything
    assert model.prefill_flops(N, 3) == 3 * model.prefill_flops(N)


def test_prefill_flops_of_retention(network, tokens):
    """Five operations per state element and token, with and without the early exit."""
    states = L // 2 * 5 * H * D * D * N
    for early, cross in (("true", N), ("false", triangle(N))):
        model = network(f"yoco:mixer=retention,early_exit={early}", dtype=torch.float32)
        linear, _ = counted(lambda m=model: m.extend(tokens(1, N), None, m.new_cache(1, N)))
        assert model.prefill_flops(N) == linear + PER_PAIR * L // 2 * cross + states


def test_early_exit_is_cheaper(network):
    """At any length above the tail, leaving early costs less, by the upper half's share."""
    for mixer in ("swa", "retention"):
        for shape in ("plain", "conv"):
            early, late = (network(f"yoco:mixer={mixer},early_exit={e}", shape) for e in ("true", "false"))
            assert all(early.prefill_flops(n) < late.prefill_flops(n) for n in (10, 100, 10_000))
            assert early.prefill_flops(10_000) < 0.6 * late.prefill_flops(10_000)
            assert early.decode_flops(100) == late.decode_flops(100)


@pytest.mark.parametrize("spec", [*PAIRS, "yoco:mixer=retention", "lococo:budget=6"])
def test_convolved_prefill_flops(network, tokens, spec):
    """With convolution and QK-norm, within 2 % of the linear layers counted, 2 per tap and channel, and
    the pairs; the exit's first upper layer takes 4 rows."""
    plain, model = (
        network(spec, dtype=torch.float32),
        network(spec, dtype=torch.float32, conv=4, qk_norm=True),
    )
    base, linear = (
        counted(lambda m=m: m.extend(tokens(1, N), None, m.new_cache(1, N)))[0] for m in (plain, model)
    )
    exits = spec.startswith("yoco") and "early" not in spec
    passed = [p.numel() for n, p in model.named_parameters() if "conv.weight" in n and "compressor" not in n]
    taps = sum(passed[:2]) + passed[-1] if exits else sum(passed)
    attended = plain.prefill_flops(N) - base + (PER_PAIR * 3 * N if exits else 0)
    assert model.prefill_flops(N) == pytest.approx(linear + attended + 2 * N * taps, rel=0.02)


@pytest.mark.parametrize("spec", PAIRS)
def test_decode_flops(network, tokens, spec):
    """Predicted = every matrix product that the counter sees in one step, exactly."""
    model, ids = network(spec, dtype=torch.float32), tokens(1, N)
    cache = model.new_cache(1, N + 9)
    model.extend(ids, None, cache)
    for n in (N, N + 1, N + 2):
        _, everything = counted(lambda: model.decode(ids[:, 0], cache))
        assert model.decode_flops(n) == everything
        assert model.decode_flops(n, 5) == 5 * everything


@pytest.mark.parametrize("options", ["budget=6", "budget=6,block=19", "budget=8,heavy=0.25,kernel=3,block=5"])
def test_lococo_flops(network, tokens, options):
    """Prefill: linear layers + pairs of [memory, block] + folds, and near what the counter sees; decode:
    the mean over a cycle of 17 steps, within 0.5 %."""
    model, ids = network(f"lococo:{options}", dtype=torch.float32), tokens(1, 200)
    o = model.options
    block, memory = o.block or o.budget, o.budget
    mixed = int(memory * (1 - o.heavy))
    pairs, held, folds = 0, 0, 0
    for start in range(0, 200, block):
        new = min(block, 200 - start)
        if held > memory + 16:
            rest, held = held - (memory - mixed), memory
            folds += G * (2 * 2 * D * mixed * o.kernel * rest + 2 * 2 * D * mixed * rest)
        pairs += sum(held + i for i in range(1, new + 1))
        held += new
    cache = model.new_cache(1, 300)
    linear, everything = counted(lambda: model.extend(ids, None, cache))
    assert model.prefill_flops(200) == linear + PER_PAIR * L * pairs + L * folds
    assert model.prefill_flops(200) <= everything <= 1.12 * model.prefill_flops(200)
    for _ in range(20):
        model.decode(ids[:, 0], cache)
    mean = sum(counted(lambda: model.decode(ids[:, 0], cache))[1] for _ in range(17)) / 17
    assert model.decode_flops(220) == pytest.approx(mean, rel=0.005)
