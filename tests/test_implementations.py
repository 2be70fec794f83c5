"""An architecture is the same whoever computes: fused kernels against torch, through the one loop.

Small networks of two layers, since kernels run in Triton's interpreter here (on a GPU: compiled, `-m gpu`).
"""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
from command_help import ask
from suite_help import TOKENIZER

from harness.execute import execute
from models.conformance import networks
from suites.suite import Case

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

#: The function of each op that architectures call.
KERNELS = {
    "gated_retention": "chunked", "decode_attention": "attend", "window_attention": "attend",
    "column_sums": "column_sums", "lococo_mix": "mix",
}  # fmt: skip
STEP, CAUSAL = "decode_attention", "window_attention"
#: Which of them an architecture needs for one prompt and a few steps; rows are in step.
NEEDS = {
    "transformer": {STEP, CAUSAL},
    "window:budget=8,sinks=2": {STEP, CAUSAL},
    "window:budget=8,sinks=0": {STEP, CAUSAL},
    "yoco:window=5": {STEP, CAUSAL},
    "yoco:mixer=retention": {STEP, "gated_retention"},
    "tova:budget=8": {STEP, CAUSAL},  # while nothing has to go yet
    "tova:budget=8,prompt=bulk": {STEP, CAUSAL},
    "tova:budget=8,select=head": {STEP, CAUSAL},
    "random:budget=8": {STEP, CAUSAL},
    "h2o:budget=8": {STEP, CAUSAL, "column_sums"},
    "scissorhands:budget=8,recent=4": {STEP},
    "lococo:budget=8,kernel=3,slack=2": {STEP, CAUSAL, "column_sums", "lococo_mix"},
    "lococo:budget=8,kernel=3,slack=2,scores=accumulated": {STEP, CAUSAL, "column_sums", "lococo_mix"},
}


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    cuda = torch.cuda.is_available()
    if (request.param == "cuda") != cuda:
        pytest.skip("needs a CUDA GPU" if not cuda else "interpreted where there is no GPU")
    return "cuda" if cuda else "cpu"


def counting(op: str, real, seen: set[str]):
    def counted(*arguments, **options):
        seen.add(op)
        return real(*arguments, **options)

    return counted


@pytest.fixture
def called(monkeypatch) -> set[str]:
    """Which ops' kernels were called."""
    seen: set[str] = set()
    for op, name in KERNELS.items():
        module = importlib.import_module(f"models.kernels.{op}.fused")

        monkeypatch.setattr(module, name, counting(op, getattr(module, name), seen))
    return seen


def model(network, spec: str, implementation: str, device: str):
    made = network(spec, dtype=torch.float32, num_layers=2, vocab=TOKENIZER.vocab_size).to(device)
    made.use(implementation)
    return made


def case(prompt: int, forced: int, seed: int, step: bool = True) -> Case:
    ids = tuple(networks.tokens(1, prompt + forced, seed)[0].tolist())
    return Case(f"c{seed}", ids[:prompt], forced=ids[prompt:], step_forced=step, seed=seed)


def logprobs(model, cases: list[Case], device: str, chunk: int | None = None) -> torch.Tensor:
    answers, _ = execute(model, cases, TOKENIZER, device, prefill_chunk=chunk)
    return torch.tensor([answer.logprobs for answer in answers])


@pytest.mark.parametrize("spec", NEEDS)
def test_fused_is_torch_through_the_loop_and_its_kernels_run(network, called, device, spec):
    """A prompt in two segments of odd lengths, then steps past the budget."""
    cases = [case(23, 6, 0), case(23, 6, 1)]
    expected = logprobs(model(network, spec, "torch", device), cases, device, chunk=19)
    assert not called
    found = logprobs(model(network, spec, "fused", device), cases, device, chunk=19)
    assert called == NEEDS[spec]
    assert (found - expected).abs().max() < 5e-5


@pytest.mark.parametrize(
    "spec", ["transformer", "yoco:mixer=retention", "tova:budget=8", "lococo:budget=8,kernel=3"]
)
def test_rows_of_unequal_length_are_the_same_too(network, device, spec):
    cases = [case(9, 5, 0), case(14, 5, 1)]
    expected = logprobs(model(network, spec, "torch", device), cases, device)
    found = logprobs(model(network, spec, "fused", device), cases, device)
    assert (found - expected).abs().max() < 5e-5


def test_all_kernels_are_reached():
    assert set().union(*NEEDS.values()) == set(KERNELS)


@pytest.mark.parametrize(
    ("spec", "dtype", "says"),
    [
        ("streaming:budget=8", torch.float32, "no fused implementation, only torch"),
        ("tova:positions=compressed", torch.float32, "no fused implementation"),
        ("lococo:budget=8,depth=2", torch.float32, "no fused implementation"),
        ("tova:budget=8", torch.float64, "fp32 and bf16"),
    ],
)
def test_what_has_no_kernels_refuses_them(network, spec, dtype, says):
    with pytest.raises(ValueError, match=says):
        network(spec, dtype=dtype).use("fused", "cuda")


def test_a_cpu_without_interpreter_refuses_them(network, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="run on CUDA"):
        network("transformer", dtype=torch.float32).use("fused")


def test_the_command_refuses_them_in_one_sentence(monkeypatch):
    asked = ("plan", "--arch", "streaming", "--suite", "decode", "--shape", "tiny", "--implementation")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name, says in (
        ("fused", "streaming:budget=256: it has no fused"),
        ("fast", "Unknown implementation 'fast'"),
    ):
        done = ask(*asked, name)
        assert done.code == 2 and says in done.err and "Traceback" not in done.err


def test_a_network_trains_through_the_fused_retention(network, device, monkeypatch):
    """Gradients of all parameters, through the kernel's own backward."""
    module, seen, grads = importlib.import_module("models.kernels.gated_retention.fused"), set(), []
    monkeypatch.setattr(module._Chunked, "backward", counting("backward", module._Chunked.backward, seen))
    for implementation in ("torch", "fused"):
        model = network("yoco:mixer=retention", dtype=torch.float32, num_layers=2).to(device)
        model.use(implementation)
        model.requires_grad_(True)
        tokens = networks.tokens(1, 21).to(device)
        model(tokens).logsumexp(-1).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert seen == ({"backward"} if implementation == "fused" else set())
    plain, fused = grads
    assert plain.keys() == fused.keys() and any("decay" in name for name in plain)
    for name, grad in plain.items():
        assert (fused[name] - grad).abs().max() <= 2e-4 * grad.abs().max(), name
