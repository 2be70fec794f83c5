"""No tensor of queries by keys: what one operation makes grows with the prompt, and in chunks with the chunk.

Every tensor that an operation returns is weighed while a prompt is read. (The inside of a fused attention
kernel is not seen; it works in tiles.) Resident memory of real processes: `tests/peers/bench_memory.py`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models
from models.conformance.options import with_budget
from models.spec import canonical

SHORT, LONG, CHUNK, BUDGET = 1024, 2048, 256, 32
#: What is kept of a prompt, or until it ends, grows with it.
GROWS = ("transformer", "yoco", "snapkv")
FURTHER = ["tova:prompt=bulk", "h2o:prompt=stepwise", "scissorhands:prompt=bulk", "yoco:mixer=retention"]
FURTHER += ["lococo:scores=accumulated"]
#: Policies that step through a prompt token by token take half a minute each: the slow tier has them.
LENGTHY = ("random:budget=32", "scissorhands:budget=32", "h2o:budget=32,prompt=stepwise")


def specs() -> list:
    found = []
    for spec in (*models.names(), *FURTHER):
        _, options = models.parse(spec)
        has_budget = any(field.name == "budget" for field in dataclasses.fields(options))
        found.append(canonical(spec.split(":")[0], with_budget(options, BUDGET) if has_budget else options))
    assert set(LENGTHY) <= set(found)
    return [
        pytest.param(spec, marks=pytest.mark.slow if spec in LENGTHY else pytest.mark.full) for spec in found
    ]


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returned; views weigh what they show."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            # `expand` shows much and holds nothing.
            if isinstance(tensor, torch.Tensor) and 0 not in tensor.stride():
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.fixture
def largest(network, tokens):
    def weigh(spec: str, length: int, chunk: int) -> int:
        model, ids = network(spec, num_layers=2, dtype=torch.float32), tokens(1, length)
        model.extend(tokens(1, LONG), None, model.new_cache(1, LONG + 1))  # tables of angles grow once
        cache = model.new_cache(1, length + 1, prompts=[length])
        with torch.inference_mode(), Largest() as seen:
            for part in ids.split(chunk, 1):
                model.extend(part, None, cache)
        return seen.elements

    return weigh


@pytest.mark.parametrize("spec", specs())
def test_one_call_needs_no_square(largest, spec):
    """Twice the prompt, at most twice the largest tensor."""
    assert largest(spec, LONG, LONG) <= 2.01 * largest(spec, SHORT, SHORT)


@pytest.mark.parametrize("spec", specs())
def test_the_peak_of_a_chunked_prompt_is_bounded_by_the_chunk(largest, spec):
    short, long = (largest(spec, length, CHUNK) for length in (SHORT, LONG))
    assert long <= (2.01 if spec.split(":")[0] in GROWS else 1) * short
