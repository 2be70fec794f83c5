"""The engine of eviction: what a policy may remember of keys and values, and rows that stand still."""

from __future__ import annotations

import pytest
import torch

from models.cache import Request, TensorSpec
from models.eviction import Evictor

N, BUDGET = 20, 5


class SmallestKeys(Evictor):
    """Keeps the keys of smallest norm: per KV head, by two numbers that come with every key."""

    scores = False

    def remembered(self, wide):
        return {"norm": TensorSpec((self.choices, 2, self.slots), wide, "metadata", fill=-1.0)}

    def arriving(self, k_BTGD, v_BTGD):
        norm_BGT = k_BTGD.norm(dim=3).transpose(1, 2)
        return {"norm": torch.stack([norm_BGT, norm_BGT * 2], 2)}

    def rate(self, meta, row_BPn, pos_BPn, newest_B):
        return meta["norm"][:, :, 0] - meta["norm"][:, :, 1]


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("calls", [[N], [1] * N, [9, 1, 1, 2, 1, 6]])
def test_what_a_policy_remembers_of_keys(network, bulk, calls):
    """In a step, a step-wise block and a bulk call alike: the numbers stay with their key."""
    torch.manual_seed(0)
    heads = network("transformer").blocks[0].mixer.heads
    q, k, v = torch.randn(1, N, 4, 8), torch.randn(1, N, 2, 8), torch.randn(1, N, 2, 8)
    cache = SmallestKeys(heads, Request(1, N, k.dtype, k.device, [0]), BUDGET, per_head=True, bulk=bulk)
    heads.rope.ensure(N, k.dtype, k.device)
    start = 0
    for size in calls:
        part, positions = slice(start, start + size), torch.arange(start, start + size)[None]
        cache.attend(q[:, part], k[:, part], v[:, part], positions, None)
        start += size
    for g in range(2):
        norms = k[0, :, g].norm(dim=-1)
        pos = cache.kept_positions()[0, g]
        # Whoever is among the smallest of all never goes before a larger one: the order of calls is nothing.
        assert sorted(pos[pos >= 0].tolist()) == sorted(norms.argsort()[:BUDGET].tolist())
        held = cache.tensors["norm"][0, g, :, pos >= 0]
        assert torch.allclose(held, torch.stack([norms, norms * 2])[:, pos[pos >= 0].long()], atol=1e-5)


def test_a_full_row_stands_still(network, tokens):
    """A row that holds as many tokens as there are slots keeps its last one while others go on."""
    model, ids = network("tova:budget=40"), tokens(2, N)
    cache, alone = model.new_cache(2, N), model.new_cache(1, N)
    model.extend(ids, torch.tensor([[True] * N, [True] * (N - 2) + [False] * 2]), cache)
    for t in (N - 2, N - 1):
        model.decode(ids[:, t], cache, torch.tensor([False, True]))
    model.extend(ids[:1], None, alone)
    for name in ("k", "v", "pos"):
        mine, expected = (c.states["3.attention"].tensors[name][0] for c in (cache, alone))
        assert torch.allclose(mine, expected, atol=1e-12), name
