"""Networks without memory are the networks, and cost no process torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import models
from models.conformance.networks import SHAPES
from models.skeleton import without_memory

ALONE = """
import sys
import models
from models.shapes import load_shape
from models.skeleton import without_memory
shape = load_shape("tiny")
for spec in models.names():
    with without_memory():
        assert all(t.is_meta for t in models.build(spec, shape).state_dict().values()), spec
compilers = {"torch._dynamo", "torch._inductor"} & {*sys.modules}
assert not compilers, compilers
"""


@pytest.mark.parametrize("spec", models.names())
def test_a_network_without_memory_has_the_names_shapes_and_types_of_the_real_one(spec):
    with without_memory():
        bare = models.build(spec, SHAPES["conv"]).state_dict()
    real = models.build(spec, SHAPES["conv"]).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in bare.items()} == {
        name: (t.shape, t.dtype) for name, t in real.items()
    }
    assert all(t.is_meta for t in bare.values()) and not any(t.is_meta for t in real.values())


def test_what_is_built_afterwards_has_its_initial_values():
    with pytest.raises(ZeroDivisionError), without_memory():
        _ = 1 / 0
    assert torch.nn.Embedding(8, 4).weight.std() > 0.1


def test_building_every_network_imports_no_compiler():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
