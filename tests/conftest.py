"""What every test shares: one thread, and the conformance kit's small networks and token ids."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import pytest
import torch

from models.conformance import SHAPES, networks

torch.set_num_threads(1)
if not torch.cuda.is_available():  # kernels run in Python then, in the processes that tests start, too
    os.environ["TRITON_INTERPRET"] = "1"
#: Data that a developer once fetched is none of the tests' business, nor of the processes that they start.
os.environ["KVMARK_CACHE"] = os.path.join(tempfile.gettempdir(), "kvmark-tests-have-no-cache")
#: What this machine can do takes seconds to measure; test_ceilings asks for it by itself.
os.environ["KVMARK_CEILINGS"] = "0"
#: Files that take longest: begun first, no process waits long for another at the end of a tier. One process
#: has a whole file (`--dist loadfile`), and makes what its tests share once.
LONG = (
    "test_failures", "test_ray", "test_replay", "test_laws", "test_kills", "test_faults", "test_report_data",
    "test_report", "test_train_family", "test_lm_eval_resume", "test_run", "test_overhead", "test_peaks",
    "test_frontier", "test_gate_real", "test_docs", "test_train_command", "test_train_refusals",
)  # fmt: skip
pytest.register_assert_rewrite("command_help", "model_help", "fuzz_help")


def pytest_collection_modifyitems(items):
    order = {stem: place for place, stem in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True, scope="session")
def figures_are_drawn_here():
    """As on a machine with one core: Matplotlib is imported once, and not for each page. test_report_pool and
    every run of a command draw in other processes."""
    from harness.report import pool

    pool.usable_cores = lambda: {0}


@pytest.fixture
def network():
    """network(spec, shape="plain", dtype=torch.float64, **changes) -> a model in eval mode, no gradients."""

    def build(spec: str, shape: str = "plain", dtype: torch.dtype = torch.float64, **changes):
        return networks.network(spec, replace(SHAPES[shape], **changes), dtype)

    return build


@pytest.fixture
def tokens():
    """tokens(batch, length, seed=0) -> random token ids (batch, length)."""
    return networks.tokens
