"""The references by hand, continued: H2O, SnapKV, Scissorhands, LoCoCo, short contexts."""

from __future__ import annotations

import math

import pytest
import torch
from reference.by_hand import Given, kept, layer_of_cosines, run
from reference.lococo import Compressor, Slot, blocks, compress, convolved
from reference.short import contexts
from reference.snapkv import pooled

E = math.e

# --- H2O -----------------------------------------------------------------------------------------

SUMS = [[1], [0.1, 0.9], [0.3, 0.1, 0.6], [0.0, 0.8, 0.1, 0.1]]


def test_h2o_by_hand():
    """budget 2: one heavy hitter, one recent.

    Step by step, after row 2 the sums are 1.4 and 1.0 (key 2 is recent): key 1 goes; row 3 sees 0, 2, 3
    as 0, .5, .5, so key 0 stays with 1.4 against .6 + .5 = 1.1. In bulk the sums after row 3 are
    1.4, 1.8, .7: key 1 is the heavy hitter.
    """
    out, held = run("h2o", Given(SUMS), budget=2, prompt="stepwise")
    assert held == [[0, 3]] and out[3, 0].tolist() == pytest.approx([0, 0, 0.5, 0.5])
    assert kept("h2o", Given(SUMS), budget=2) == [[1, 3]]
    # chunks 2 + 2: nothing goes at first; carried sums 1.1 and .9, then as in bulk
    assert kept("h2o", Given(SUMS), [2, 2], budget=2) == [[1, 3]]
    # 3 + 1: bulk over three rows drops key 1, too
    assert kept("h2o", Given(SUMS), [3, 1], budget=2) == [[0, 3]]


def test_h2o_shares_of_the_budget():
    """heavy=0 is a window; heavy=1 protects nothing, so the newest key, with .1, is the one to go."""
    assert kept("h2o", Given(SUMS), budget=2, heavy=0.0) == [[2, 3]]
    assert kept("h2o", Given(SUMS), budget=3, heavy=1.0) == [[0, 1, 2]]


def test_h2o_head_and_layer():
    """Sums of rows over keys 0..2: A 1.9 .7 .4, B 1.2 1.6 .2; means 1.55 1.15 .3. Key 2 is recent."""
    head_a = [[1], [0.5, 0.5], [0.4, 0.2, 0.4]]
    head_b = [[1], [0.1, 0.9], [0.1, 0.7, 0.2]]
    layer = Given(head_a, head_b)
    assert kept("h2o", layer, budget=2) == [[0, 2], [1, 2]]
    assert kept("h2o", layer, budget=2, select="layer") == [[0, 2]]
    assert kept("h2o", Given(head_a, head_b, kv_heads=1), budget=2) == [[0, 2]]


# --- SnapKV --------------------------------------------------------------------------------------

PROMPT = [
    *([1] * (t + 1) for t in range(4)),
    [0.1, 0.5, 0.1, 0.1, 0.2],
    [0.3, 0.1, 0.1, 0.2, 0.1, 0.2],
    [1] * 7,
]


def test_snapkv_pooling():
    """Mean of three neighbours; zeros beyond the ends are counted."""
    assert pooled([1, 0, 0, 5, 0], 3) == pytest.approx([1 / 3, 1 / 3, 5 / 3, 5 / 3, 5 / 3])
    assert pooled([3, 1], 5) == pytest.approx([0.8, 0.8])
    assert pooled([3, 1], 1) == [3, 1]


def test_snapkv_by_hand():
    """Rows 4 and 5 give keys 0..3 .4 .6 .2 .3; pooled by three: 1.0 1.2 1.1 .5 (thirds)."""
    layer = Given(PROMPT)
    for calls in ([6, 1], [2, 4, 1], [1] * 7):
        assert kept("snapkv", layer, calls, budget=4, window=2, kernel=1, prompt_length=6) == [
            [0, 1, 4, 5, 6]
        ]
        assert kept("snapkv", layer, calls, budget=4, window=2, kernel=3, prompt_length=6) == [
            [1, 2, 4, 5, 6]
        ]
        out, _ = run("snapkv", layer, calls, budget=4, window=2, kernel=3, prompt_length=6)
        assert out[6, 0].tolist() == pytest.approx([0, 0.2, 0.2, 0, 0.2, 0.2, 0.2])
    assert kept("snapkv", layer, [6, 1], budget=4, window=2, kernel=3) == [[1, 2, 4, 5, 6]]
    assert kept("snapkv", layer, [6, 1], budget=6, window=2) == [list(range(7))]  # the prompt fits


# --- Scissorhands --------------------------------------------------------------------------------

LATELY = [
    [1],
    [0.5, 0.5],
    [0.2, 0.5, 0.3],  # below 1/3: keys 0 and 2
    [0.4, 0.1, 0.3, 0.2],  # below 1/4: keys 1 and 3
    [9, 0.1, 0.4, 0.3, 0.2],  # without key 0, below 1/4: keys 1 and 4
]


def test_scissorhands_by_hand():
    """budget 3, one recent. After row 3 keys 0, 1, 2 were unimportant once each within two rows: the oldest
    goes. Within one row only key 1 was. After row 4, within rows 3 and 4: key 1 twice, 2 never, 3 once."""
    first = Given(LATELY[:4])
    assert kept("scissorhands", first, budget=3, history=2, recent=1) == [[1, 2, 3]]
    assert kept("scissorhands", first, budget=3, history=1, recent=1) == [[0, 2, 3]]
    assert kept("scissorhands", Given(LATELY), budget=3, history=2, recent=1) == [[2, 3, 4]]
    assert kept("scissorhands", Given(LATELY), budget=3, history=2, recent=3) == [[2, 3, 4]]


def test_scissorhands_bulk():
    """One call, three rows of history: row 4 sees key 0, too (below 1/5: all but key 0). Counts of keys 0..3
    1 2 2 2; key 0 stays, and of the equal three the newest; with the second chunk at row 3 it is the same."""
    for calls in ([5], [3, 2]):
        assert kept("scissorhands", Given(LATELY), calls, budget=3, history=3, recent=1, prompt="bulk") == [
            [0, 3, 4]
        ]
    assert kept("scissorhands", Given(LATELY), [4, 1], budget=3, history=3, recent=1, prompt="bulk") == [
        [2, 3, 4]
    ]


def test_scissorhands_averages_the_group_before_it_compares():
    """Keys 0 and 1 get .1 and .4 from one head, .6 and .2 from the other: means .35 and .30, n = 3."""
    head_a, head_b = [[1], [1, 1], [0.1, 0.4, 0.5]], [[1], [1, 1], [0.6, 0.2, 0.2]]
    options = dict(budget=2, history=9, recent=1)
    assert kept("scissorhands", Given(head_a, head_b, kv_heads=1), **options) == [[0, 2]]
    assert kept("scissorhands", Given(head_a, head_b), **options) == [[1, 2], [0, 2]]


# --- LoCoCo --------------------------------------------------------------------------------------


def test_lococo_convolution():
    """Taps 10, 1, .1 on 1, 2, 3: before, at and after the token; bias -2, then ReLU."""
    rows = [torch.tensor([x]) for x in (1.0, 2.0, 3.0)]
    out = convolved(rows, torch.tensor([[[10.0, 1.0, 0.1]]]), torch.tensor([-2.0]))
    assert [x.item() for x in out] == pytest.approx([0, 10.3, 21])


def slot(key: float, value: float, score: float) -> Slot:
    return Slot(torch.tensor([float(key)]), torch.tensor([float(value)]), score)


@pytest.mark.parametrize("depth", [1, 2])
def test_lococo_compresses_by_hand(depth):
    """Slot 1 is the heavy hitter; z of the rest is its key (1, 2), so W = (1-a) (0, 1) + a (1, e)/(1+e).

    With depth 2 the first convolution hands key and value on, and the second reads the key.
    """
    slots = [slot(1, 10, 0.1), slot(5, 50, 0.9), slot(2, 20, 0.3)]
    read_key = (torch.tensor([[[1.0], [0.0]]]), torch.zeros(1))
    hand_on = (torch.eye(2)[:, :, None], torch.zeros(2))
    convolutions = [hand_on, read_key][-depth:]
    heavy, mixed = compress(slots, 2, 0.5, Compressor(convolutions, 0.25))
    assert (heavy.key_D.item(), heavy.value_D.item(), heavy.score) == (5, 50, 0.9)
    first = 0.25 / (1 + E)
    assert mixed.key_D.item() == pytest.approx(first * 1 + (1 - first) * 2)
    assert mixed.value_D.item() == pytest.approx(first * 10 + (1 - first) * 20)
    assert mixed.score == pytest.approx(first * 0.1 + (1 - first) * 0.3)


def test_lococo_heavy_share():
    """heavy=.75 of 4: one mixture; heavy=0: four, each starting from one of the best four."""
    slots = [slot(n, n, score) for n, score in enumerate((0.5, 0.1, 0.4, 0.2, 0.3))]
    zero = Compressor([(torch.zeros(4, 2, 1), torch.zeros(4))], 0.0)
    values = [s.value_D.item() for s in compress(slots, 4, 0.75, zero)]
    assert values == [0, 2, 4, 3]  # heavy in order, then the best of the rest
    assert [s.value_D.item() for s in compress(slots, 4, 0.0, zero)] == [0, 2, 3, 4]
    slots.append(slot(5, 5, 0.0))  # the newest, without any attention, kept by local=1 in place of key 4
    values = [s.value_D.item() for s in compress(slots, 4, 0.75, zero, local=1)]
    assert values == [0, 2, 5, 4]


def test_a_window_does_not_hide_memory():
    """After the compression of 19 slots to 2 the 20th token sees both, though the layer sees 1 token only."""
    layer = layer_of_cosines(20, window=1)
    layer.q_THD = torch.zeros_like(layer.q_THD)
    weights = {
        "compressors.0.conv.weight": torch.zeros(1, 4, 3, dtype=torch.float64),
        "compressors.0.conv.bias": torch.zeros(1, dtype=torch.float64),
        "compressors.0.alpha": torch.tensor(0.0),
    }
    out, _ = run("lococo", layer, [1] * 20, budget=2, weights=weights)
    assert out[18, 0, 0].item() == 18  # exact tokens are hidden: it sees itself
    assert out[19, 0, 0].item() == pytest.approx((17 + 18 + 19) / 3)


def test_lococo_is_lazy_and_cuts_calls_into_blocks():
    """budget 2, alpha 0, equal attention. The 19th token still sees 19 slots; the 20th sees 2 and itself.

    By the last call all scores are equal, so the newest two stay; accumulated, the oldest have most. Blocks
    of one token of a long call do as calls of one do; one block of 20 compresses nothing.
    """
    assert blocks([7, 1, 3], 3) == [3, 3, 1, 1, 3]
    layer = layer_of_cosines(20)
    layer.q_THD = torch.zeros_like(layer.q_THD)
    weights = {
        "compressors.0.conv.weight": torch.zeros(1, 4, 3, dtype=torch.float64),
        "compressors.0.conv.bias": torch.zeros(1, dtype=torch.float64),
        "compressors.0.alpha": torch.tensor(0.0),
    }
    for calls, block in (([1] * 20, 0), ([20], 1)):
        for scores, survivors in (("last", 17 + 18), ("accumulated", 0 + 1)):
            out, held = run("lococo", layer, calls, budget=2, weights=weights, block=block, scores=scores)
            assert held is None and out[18, 0, 0].item() == pytest.approx(9)
            assert out[19, 0, 0].item() == pytest.approx((survivors + 19) / 3)
    out, _ = run("lococo", layer, [20], budget=2, weights=weights, block=20)
    assert out[19, 0, 0].item() == pytest.approx(9.5)


# --- short context -------------------------------------------------------------------------------


def test_short_contexts():
    """split: every three tokens. truncate: prompts cut to their last three, three more on top, then anew."""
    for calls in ([7], [1] * 7, [2, 5]):
        assert contexts(calls, 3) == [range(0, 3), range(3, 6), range(6, 7)]
    assert contexts([7, 1, 1], 3, "truncate") == [range(4, 9)]
    assert contexts([7] + [1] * 4, 3, "truncate") == [range(4, 10), range(10, 11)]
    assert contexts([7, 4, 1], 3, "truncate") == [range(4, 7), range(8, 12)]  # a second prompt
    assert contexts([7, 4, 1], 3, "truncate", scored=(1,)) == [range(4, 10), range(10, 12)]
    assert contexts([7], 3, "truncate", scored=(0,)) == [range(0, 6), range(6, 7)]
