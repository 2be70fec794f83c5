"""Gated retention: three equal forms, a state that carries everything, and the extremes of its gate."""

from __future__ import annotations

import pytest
import torch
from reference.yoco import retention
from torch import nn

from models.architecture import Shape
from models.kernels import gated_retention
from models.layers import rms_normalise
from models.retention import RetentionMixer, RetentionState

every_dtype = pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
every_length = pytest.mark.parametrize("length", [1, 5, 64, 100])


def retention_inputs(length, dtype=torch.float64, logit=None):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, length, 3, 8, dtype=torch.float64) for _ in range(3))
    gate = (
        torch.randn(2, length, 3, dtype=torch.float64) * 4
        if logit is None
        else torch.full((2, length, 3), logit)
    )
    a = nn.functional.logsigmoid(gate.double()) / 16
    return [x.to(dtype) for x in (q, k / 8**0.5, v, a)]


def empty(dtype=torch.float64):
    return torch.zeros(2, 3, 8, 8, dtype=dtype)


@every_length
@every_dtype
def test_Y1_parallel_chunk_and_recurrent_are_the_sum(length, dtype, limit):
    """parallel = chunk of any size = recurrent = the defining sum, fp64 1e-9, fp32 1e-5 of the largest."""
    inputs, exact = retention_inputs(length, dtype), retention_inputs(length)
    expected = torch.stack([retention(*(x[b] for x in exact)) for b in range(2)])
    limit *= expected.abs().max()
    assert (gated_retention.parallel(*inputs) - expected).abs().max() <= limit
    assert (gated_retention.recurrent(*inputs, empty(dtype))[0] - expected).abs().max() <= limit
    for chunk in (1, 3, 16, 64, 1000):
        out, _ = gated_retention.chunked(*inputs, empty(dtype), chunk)
        assert (out - expected).abs().max() <= limit


def test_Y1_long_sequences_stay_exact():
    """1,024 tokens: chunks and steps in fp32 stay within 1e-5 of fp64, relative to the largest output."""
    expected, _ = gated_retention.recurrent(*retention_inputs(1024), empty())
    inputs = retention_inputs(1024, torch.float32)
    for form in (gated_retention.recurrent, gated_retention.chunked):
        out, _ = form(*inputs, empty(torch.float32))
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@every_length
@every_dtype
def test_Y2_segments_carry_the_state(length, dtype, limit):
    """In segments that are no multiple of the chunk: outputs as in one go, and the recurrent state."""
    q, k, v, a = retention_inputs(length, dtype)
    expected, state = gated_retention.recurrent(q, k, v, a, empty(dtype))
    limit *= expected.abs().max()
    for cut in (1, max(1, length * 2 // 5), length):
        for chunk in (1, 7, 64):
            held, outs = empty(dtype), []
            for start in range(0, length, cut):
                inputs = (x[:, start : start + cut] for x in (q, k, v, a))
                out, held = gated_retention.chunked(*inputs, held, chunk)
                outs.append(out)
            assert (torch.cat(outs, 1) - expected).abs().max() <= limit
            assert (held - state).abs().max() <= limit


@pytest.mark.parametrize("sizes", [[31], [7, 1, 19, 4], [1] * 31])
def test_Y2_the_cache_holds_the_recurrent_state(network, tokens, sizes):
    """After a prompt in any segments, every layer's state is that of feeding token by token."""
    model, ids = network("yoco:mixer=retention"), tokens(2, 31)
    cache, steps = model.new_cache(2, 31), model.new_cache(2, 31)
    for part in ids.split(sizes, 1):
        model.extend(part, None, cache)
    for t in range(31):
        model.decode(ids[:, t], steps)
    for layer in ("0.retention", "1.retention"):
        state, expected = (c.states[layer].tensors["s"] for c in (cache, steps))
        assert expected.abs().max() > 0.1 and (state - expected).abs().max() <= 1e-11


def test_Y5_gate_extremes():
    """Gate to +inf: plain causal linear attention; gate to -inf: only the token itself."""
    forms = (gated_retention.recurrent, gated_retention.chunked)
    for logit, keep in ((1e4, lambda n, m: m <= n), (-1e6, lambda n, m: m == n)):
        q, k, v, a = retention_inputs(50, logit=logit)
        seen = torch.tensor([[float(keep(n, m)) for m in range(50)] for n in range(50)]).double()
        expected = torch.einsum("bthd,bshd,ts,bshe->bthe", q, k, seen, v)
        outs = [form(q, k, v, a, empty())[0] for form in forms]
        for out in [*outs, gated_retention.parallel(q, k, v, a)]:
            assert out.isfinite().all() and (out - expected).abs().max() <= 1e-10


ONE = Shape(name="one", vocab=5, dim=8, num_layers=2, num_heads=1, num_kv_heads=1, ffn_dim=8)


def mixer_without_positions(dtype=torch.float64, **options):
    torch.manual_seed(0)
    mixer = RetentionMixer(ONE, nn.Identity(), **options).to(dtype)
    mixer.rope.forward = lambda x, positions: x
    return mixer


@pytest.mark.parametrize("gain", [True, False])
def test_Y12_one_token(gain):
    """N = 1: the mixer's output before the norm is (q . k / sqrt(D)) v; a new gain is 1, as without one."""
    mixer, x = mixer_without_positions(gain=gain), torch.randn(1, 1, 8).double()
    q, k, v = mixer.qkv(x).chunk(3, -1)
    o = rms_normalise((q * k).sum(-1, keepdim=True) / 8**0.5 * v, ONE.norm_eps)
    expected = mixer.out(nn.functional.silu(mixer.gate(x)) * o)
    assert (mixer.parallel(x, torch.zeros(1, 1, dtype=torch.long)) - expected).abs().max() <= 1e-12
    assert (mixer.norm_gain is not None) == gain


def test_bf16_gates_are_computed_in_fp32():
    """bf16 weights and inputs: the log-decay has fp32's accuracy (in bf16 it would be off by 1e-3)."""

    class Noting(RetentionState):
        def retain(self, q, k, v, log_decay, valid):
            self.log_decay = log_decay
            return super().retain(q, k, v, log_decay, valid)

    mixer, x = mixer_without_positions(torch.bfloat16), torch.randn(1, 40, 8).bfloat16()
    state = Noting(1, 1, 8, torch.bfloat16, "cpu")
    mixer(x, state, None, torch.arange(40)[None], None)
    expected = nn.functional.logsigmoid(x.double() @ mixer.decay.weight.double().T) / 16
    assert ((state.log_decay - expected) / expected).abs().max() < 1e-6


def test_bf16_state_does_not_forget_to_forget(network):
    """Under bf16 the state stays fp32, and a slow decay (gate logit 4) still decays."""
    model = network("yoco:mixer=retention", dtype=torch.bfloat16)
    assert model.new_cache(1, 9).states["0.retention"].tensors["s"].dtype == torch.float32
    q, k, v, a = retention_inputs(1, torch.bfloat16, logit=4.0)
    for form in (gated_retention.recurrent, gated_retention.chunked):
        state = torch.ones(2, 3, 8, 8)
        for _ in range(400):
            _, state = form(q, k, v * 0, a.float(), state)
        assert state.dtype == torch.float32
        expected = torch.exp(400 * a[0, 0, 0].double()).item()
        assert expected < 0.7 and (state - expected).abs().max() < 1e-3
