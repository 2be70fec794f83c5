"""Detours taken for speed give the numbers of the straight way, at ugly sizes, and only when they may."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models import attention as attention_module
from models import layers
from models.attention import attention, sliding_window
from models.layers import linear
from models.rope import Rope, llama_frequencies

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def detours(monkeypatch):
    """As where MKL is slow, and from the first multiplication on; counts what oneDNN is asked for."""
    operation, calls = torch.ops.mkldnn._linear_pointwise, []

    class Counted:
        @staticmethod
        def default(*arguments):
            calls.append(arguments[0].shape)
            return operation.default(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Counted)
    monkeypatch.setattr(layers, "ONEDNN", True)
    monkeypatch.setattr(layers, "ONEDNN_FROM", 0)
    return calls


def normal(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@onednn
@pytest.mark.parametrize("shape", [(1, 1, 33), (3, 1, 64), (2, 37, 17), (129, 65)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_a_product_whichever_library_makes_it(detours, shape, bias):
    x, weight = normal(*shape), normal(51, shape[-1], seed=1)
    b = normal(51, seed=2) if bias else None
    exact = x.double() @ weight.double().T + (0 if b is None else b.double())
    with torch.inference_mode():
        assert (linear(x, weight, b) - exact).abs().max() < 1e-5
        # Operands as attention has them: slices of a longer cache, transposed.
        part, long = normal(2, 70)[:, 3:], normal(90, 64)[5:72]
        assert (linear(part, long.T) - part.double() @ long.double()).abs().max() < 1e-4
    assert len(detours) == 2


@onednn
@pytest.mark.parametrize("why", ["training", "no_grad", "bf16", "fp64", "small", "intel"])
def test_linear_takes_no_detour_where_it_may_not(detours, monkeypatch, why):
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(why, torch.float32)
    x, weight = normal(4, 8, dtype=dtype), normal(16, 8, seed=1, dtype=dtype)
    if why == "small":
        monkeypatch.setattr(layers, "ONEDNN_FROM", 4 * 8 * 16 + 1)
    if why == "intel":
        monkeypatch.setattr(layers, "ONEDNN", False)
    mode = {"training": torch.enable_grad, "no_grad": torch.no_grad}.get(why, torch.inference_mode)
    with mode():
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not detours


def test_gradients_flow_through_linear(detours):
    weight = normal(16, 8).requires_grad_()
    linear(normal(4, 8), weight).sum().backward()
    assert torch.equal(weight.grad, normal(4, 8).sum(0).expand(16, 8))


@onednn
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("num_keys", [20, 23, 19])
def test_a_long_step_is_attention(detours, monkeypatch, num_heads, num_kv_heads, num_keys):
    """The decode step over many keys, with and without a rest, in a cache that has room for more."""
    monkeypatch.setattr(attention_module, "LONG_STEP", 20)
    monkeypatch.setattr(attention_module, "STEP_UNIT", 10)
    q = normal(3, 1, num_heads, 12)
    k, v = (normal(3, num_kv_heads, 64, 12, seed=s)[:, :, :num_keys] for s in (1, 2))
    wide_k, wide_v = (x.double().repeat_interleave(num_heads // num_kv_heads, 1) for x in (k, v))
    probs = (q.double().transpose(1, 2) @ wide_k.mT * 0.3).softmax(-1)
    with torch.inference_mode():
        out = attention(q, k, v, 0.3)
    assert (out - (probs @ wide_v).transpose(1, 2)).abs().max() < 1e-5
    assert detours == [(num_heads // num_kv_heads, 20)] * (3 * num_kv_heads if num_keys >= 20 else 0)


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("window", [1, 5, 31])
def test_sliding_window_does_not_depend_on_its_blocks(monkeypatch, block, window):
    monkeypatch.setitem(attention_module.WINDOW_BLOCK, "cpu", block)
    q, k, v = normal(2, 33, 4, 8), normal(2, 2, 33, 8, seed=1), normal(2, 2, 33, 8, seed=2)
    i, j = torch.arange(33)[:, None], torch.arange(33)
    mask = ((j <= i) & (i - j < window)).expand(2, 33, 33)
    assert torch.allclose(sliding_window(q, k, v, 0.3, window), attention(q, k, v, 0.3, mask), atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_every_pair_by_its_angle(interleaved):
    """cos and sin of complex numbers, and the answer kept from the last positions never serves others."""
    rope = Rope(llama_frequencies(8, 100.0, 0.5), 1.5, interleaved)
    rope.ensure(50, torch.float64, "cpu")
    x = normal(2, 3, 5, 8, dtype=torch.float64)
    for positions in (torch.tensor([[0, 1, 2], [7, 8, 9]]), torch.tensor([[40, 3, 3], [-1, 8, 49]])):
        angle = positions.clamp(min=0)[:, :, None, None] * torch.tensor([1.0, 100**-0.5, 0, 0]).double()
        pairs = x.unflatten(-1, (4, 2)) if interleaved else x.unflatten(-1, (2, 4)).mT
        turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.tensor(1.5).double(), angle)
        back = torch.view_as_real(turned)
        expected = (back if interleaved else back.mT).flatten(-2)
        for _ in range(2):  # looked up, then remembered
            assert torch.allclose(rope(x, positions), expected)


def test_rope_begins_every_call_anew():
    """`ensure` forgets the last call, so that a buffer of positions may be refilled between calls."""
    rope = Rope(llama_frequencies(8, 100.0))
    x, positions = normal(1, 1, 2, 8), torch.tensor([[3]])
    rope.ensure(10, torch.float32, "cpu")
    at_three = rope(x, positions)
    positions.fill_(4)
    rope.ensure(10, torch.float32, "cpu")
    assert not torch.allclose(rope(x, positions), at_three)
