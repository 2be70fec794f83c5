"""Every kernel against its definition, at ugly sizes, with memory that nobody wrote full of NaN.

Where there is no GPU they run in Triton's interpreter; `pytest -m gpu` compiles them. The definition is made
in fp32, from the same numbers. Tolerances, relative to its largest number: fp32 4e-6 (another order of sums);
bf16 1.6e-2, two units of its last place, for what is rounded before a second product and at the end.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp32", "bf16"])


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if request.param == "interpreted" and torch.cuda.is_available():
        pytest.skip("interpreted where there is no GPU")
    torch.manual_seed(0)
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """New memory is NaN: what a kernel forgets to write is seen."""

    def filled(make):
        def of(*arguments, **options):
            x = make(*arguments, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return of

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, filled(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


def close(found: torch.Tensor | None, expected: torch.Tensor | None, dtype: torch.dtype) -> None:
    if found is None or expected is None:
        assert found is expected
        return
    assert found.shape == expected.shape and found.isfinite().all()
    worst = (found.double() - expected.double()).abs().max().item()
    assert worst <= TOLERANCE[dtype] * expected.double().abs().max().item()


def ops(name: str):
    module = importlib.import_module(f"models.kernels.{name}.naive")
    return module, importlib.import_module(f"models.kernels.{name}.fused")


# --- gated retention -----------------------------------------------------------------------------

#: B, T, H, D, tokens per chunk.
RETENTION = {"chunks": (2, 70, 2, 24, 32), "one": (1, 1, 3, 16, 16), "wide": (1, 33, 1, 80, 16)}


def retention_inputs(B, T, H, D, dtype, device):
    q, k, v = (torch.randn(B, T, H, D, dtype=dtype, device=device) for _ in range(3))
    decay = F.logsigmoid(torch.randn(B, T, H, device=device)) / 4
    decay[:, T // 2] -= 40 * (T > 1)  # all but forgets: products of single exponentials would overflow
    return q, k, v, decay, torch.randn(B, H, D, D, device=device)


@DTYPES
@pytest.mark.parametrize("size", RETENTION.values(), ids=RETENTION)
def test_retention_forward(device, dtype, size):
    *shape, chunk = size
    naive, fused = ops("gated_retention")
    inputs = retention_inputs(*shape, dtype, device)
    wide = naive.chunked(*(x.float() for x in inputs))
    for found, expected in zip(fused.chunked(*inputs, chunk=chunk), wide, strict=True):
        close(found, expected, dtype)


@pytest.mark.parametrize("size", RETENTION.values(), ids=RETENTION)
def test_retention_backward(device, size):
    *shape, chunk = size
    naive, fused = ops("gated_retention")
    inputs = [x.requires_grad_() for x in retention_inputs(*shape, torch.float32, device)]
    grads = []
    for form, own in ((naive.chunked, {}), (fused.chunked, {"chunk": chunk})):
        torch.manual_seed(1)
        loss = sum((x * torch.randn(x.shape, device=device)).sum() for x in form(*inputs, **own))
        grads.append(torch.autograd.grad(loss, inputs))
    for found, expected in zip(*reversed(grads), strict=True):
        close(found, expected, torch.float32)


def test_retention_refuses_a_state_that_would_round(device):
    _, fused = ops("gated_retention")
    *inputs, state = retention_inputs(1, 4, 1, 16, torch.bfloat16, device)
    with pytest.raises(ValueError, match="fp32 state"):
        fused.chunked(*inputs, state.bfloat16())
    with pytest.raises(ValueError, match="fp32 or bf16"):
        fused.chunked(*(x.double() for x in inputs), state)


# --- attention -----------------------------------------------------------------------------------

#: B, H, G, S, D.
DECODE = {"groups": (2, 6, 2, 203, 20), "heads": (1, 3, 3, 64, 16), "one key": (1, 2, 1, 1, 40)}


@DTYPES
@pytest.mark.parametrize("choices", [None, "layer", "head"])
@pytest.mark.parametrize("hidden", ["none", "length", "mask", "both"])
@pytest.mark.parametrize("size", DECODE.values(), ids=DECODE)
def test_decode_attention(device, dtype, size, hidden, choices):
    B, H, G, S, D = size
    naive, fused = ops("decode_attention")
    q = torch.randn(B, H, D, dtype=dtype, device=device)
    # A slice of a larger cache: strides are not those of a tensor of its own.
    k, v = torch.randn(2, B, G, S + 5, D, dtype=dtype, device=device)[..., :S, :]
    length = torch.randint(1, S + 1, (B,), device=device) if hidden in ("length", "both") else None
    mask = None
    if hidden in ("mask", "both"):
        mask = torch.rand(B, G if choices == "head" else 1, S, device=device) > 0.3
        mask[..., 0] = True
    asked = {None: None, "layer": 1, "head": G}[choices]
    found = fused.attend(q, k, v, D**-0.5, length, mask, asked)
    wide = (x.float() for x in (q, k, v))
    for one, other in zip(found, naive.attend(*wide, D**-0.5, length, mask, asked), strict=True):
        close(one, other, dtype)


def test_a_row_that_sees_nothing_gives_zeros(device):
    _, fused = ops("decode_attention")
    q, k = torch.randn(2, 2, 16, device=device), torch.randn(2, 1, 9, 16, device=device)
    out, scores = fused.attend(q, k, k, 1.0, torch.tensor([0, 9], device=device), None, 1)
    assert out[0].eq(0).all() and scores[0].eq(0).all() and out[1].ne(0).all()


#: B, H, G, T, S, D, window, sinks.
CAUSAL = {
    "prompt": (2, 4, 2, 75, 75, 20, None, 0), "segment": (1, 2, 1, 70, 200, 16, None, 0),
    "window": (1, 2, 2, 75, 130, 24, 40, 0), "itself": (1, 2, 1, 66, 66, 16, 1, 0),
    "sinks": (1, 2, 1, 70, 300, 16, 9, 3), "many sinks": (1, 2, 1, 70, 300, 16, 30, 70),
    "one": (2, 2, 1, 1, 131, 16, 7, 2),
}  # fmt: skip


@DTYPES
@pytest.mark.parametrize("size", CAUSAL.values(), ids=CAUSAL)
def test_window_attention_and_column_sums(device, dtype, size):
    B, H, G, T, S, D, window, sinks = size
    naive, fused = ops("window_attention")
    q = torch.randn(B, T, H, D, dtype=dtype, device=device)
    k, v = torch.randn(2, B, G, S + 3, D, dtype=dtype, device=device)[..., :S, :]
    scale = D**-0.5
    out, lse = fused.attend(q, k, v, scale, window, sinks)
    wide = [x.float() for x in (q, k, v)]
    expected, expected_lse = naive.attend(*wide, scale, window, sinks)
    close(out, expected, dtype)
    close(lse, expected_lse, torch.float32)
    if sinks:
        return
    naive, fused = ops("column_sums")
    for counts in (None, torch.rand(B, T, device=device) > 0.4):
        found = fused.column_sums(q, k, lse, scale, window, counts)
        close(found, naive.column_sums(*wide[:2], expected_lse, scale, window, counts), torch.float32)


# --- LoCoCo's mixtures ---------------------------------------------------------------------------

#: B, G, r, D, M, taps.
MIX = {"taps": (2, 2, 77, 20, 37, 5), "one tap": (1, 1, 64, 16, 32, 1), "few": (1, 2, 3, 16, 2, 7)}


@DTYPES
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("size", MIX.values(), ids=MIX)
def test_lococo_mix(device, dtype, size, scored):
    B, G, r, D, M, taps = size
    naive, fused = ops("lococo_mix")
    k, v = torch.randn(2, B, G, r, D, dtype=dtype, device=device)
    weight = (torch.randn(M, 2 * D, taps, device=device) * 3 / (2 * D * taps) ** 0.5).to(dtype)
    bias, chosen = torch.randn(M, device=device).to(dtype), torch.randint(0, r, (B, G, M), device=device)
    score = torch.rand(B, G, r, device=device) if scored else None
    alpha = torch.tensor(0.4, device=device)
    found = fused.mix(k, v, weight, bias, alpha, chosen, score)
    wide = [x.float() for x in (k, v, weight, bias)]
    for one, other in zip(found, naive.mix(*wide, alpha, chosen, score), strict=True):
        close(one, other, dtype)
