"""The references by hand: examples small enough to follow with a pencil, so that they need no trust.

Here attention, the decoder, windows and TOVA; the other policies in `test_reference_selfcheck_scores.py`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from reference import reference
from reference.attention import Layer, angles_per_position
from reference.by_hand import Given, kept, layer_of_cosines, run
from reference.decoder import convolved, feed_forward, rms_norm, unit
from reference.tova import compressed

E = math.e

# --- attention and decoder -----------------------------------------------------------------------


def test_one_row_of_attention():
    """Probabilities of exp(cos(distance)), the output their mean of the values, amplitude squared inside."""
    layer = layer_of_cosines(3)
    out, (row,) = layer.attend(2, [[0, 2]], [{0: 0, 2: 2}])
    far, near = math.exp(math.cos(2)), math.exp(1)
    assert row == pytest.approx({0: far / (far + near), 2: near / (far + near)})
    assert out[0].tolist() == pytest.approx([2 * near / (far + near)] * 2)
    stronger = layer_of_cosines(3, amplitude=1.5).attend(2, [[0, 2]], [{0: 0, 2: 2}])[1][0]
    assert stronger[0] / stronger[2] == pytest.approx((far / near) ** 2.25)


def test_only_distances_and_given_places_matter():
    layer = layer_of_cosines(6)
    near = layer.attend(5, [[3, 5]], [{3: 0, 5: 1.5}])[1][0]
    assert near[3] / near[5] == pytest.approx(math.exp(math.cos(1.5) - 1))


def test_a_layers_own_window_hides_keys():
    assert list(
        layer_of_cosines(6, window=2).attend(5, [[0, 3, 4, 5]], [{j: j for j in range(6)}])[1][0]
    ) == [
        4,
        5,
    ]


def test_query_heads_read_their_groups_kv_head():
    v = torch.tensor([[[7.0], [9.0]]], dtype=torch.float64)
    layer = Layer(0, torch.ones(1, 4, 1, dtype=torch.float64), torch.ones_like(v), v, scale=1.0)
    assert layer.attend(0, [[0], [0]], [{0: 0}, {0: 0}])[0].tolist() == [[7], [7], [9], [9]]


def test_every_query_head_asks_with_its_own_query():
    """Queries 0, 1, 2, 3 at two KV heads with keys 0 and 1: the odds of key 1 are e^0 ... e^3."""
    q = torch.arange(4.0, dtype=torch.float64)[None, :, None].expand(2, 4, 1)
    k = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, 2, 1)
    layer = Layer(0, q, k, k, scale=1.0)
    _, rows = layer.attend(1, [[0, 1], [0, 1]], [{0: 0, 1: 1}] * 2)
    assert [row[1] / row[0] for row in rows] == pytest.approx([math.exp(h) for h in range(4)])


def plain_shape(**more):
    values = dict(dim=8, num_heads=1, num_kv_heads=1, head_dim=8, rope_base=10000.0, rope_fraction=1.0)
    return SimpleNamespace(**values | more)


def test_angles():
    """base^(-2i/D); a factor divides all; the checkpoints' scalings by their definitions."""
    assert angles_per_position(plain_shape()) == pytest.approx([1, 0.1, 0.01, 0.001])
    assert angles_per_position(plain_shape(rope_fraction=0.5), 2.0) == pytest.approx([0.5, 0.005, 0, 0])
    linear = SimpleNamespace(kind="linear", factor=4.0)
    assert angles_per_position(plain_shape(rope_scaling=linear)) == pytest.approx(
        [0.25, 0.025, 0.0025, 0.00025]
    )
    # wavelengths 6.3, 63, 628, 6283; 400/4 = 100 and less keep, 400/1 and more stretch, none between
    llama3 = SimpleNamespace(
        kind="llama3", factor=8.0, original_positions=400, low_frequency_factor=1.0, high_frequency_factor=4.0
    )
    assert angles_per_position(plain_shape(rope_scaling=llama3)) == pytest.approx(
        [1, 0.1, 0.01 / 8, 0.001 / 8]
    )
    # 1200 positions are 1.91 turns of the third pair: (1.91 - 1) / 3 of the way to keeping
    llama3.original_positions = 1200
    smooth = (1200 * 0.01 / (2 * math.pi) - 1) / 3
    assert angles_per_position(plain_shape(rope_scaling=llama3))[2] == pytest.approx(
        0.01 * (smooth + (1 - smooth) / 8)
    )
    # pairs that turn 32 times (1.27) and once (2.77) in 3686 positions, whole: ramp from pair 1 to pair 3
    yarn = SimpleNamespace(
        kind="yarn", factor=4.0, original_positions=3686, beta_fast=32.0, beta_slow=1.0, truncate=True
    )
    assert angles_per_position(plain_shape(rope_scaling=yarn)) == pytest.approx(
        [1, 0.1, 0.01 * (0.5 + 0.5 / 4), 0.001 / 4]
    )


def test_bricks_of_the_decoder():
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    assert convolved(x, torch.tensor([[0.5, 0.25]])).flatten().tolist() == [0.5, 1.25, 2.0]
    assert rms_norm(torch.tensor([3.0, 4.0]), 0.0, torch.tensor([1.0, 2.0])).tolist() == pytest.approx(
        [3 / 12.5**0.5, 8 / 12.5**0.5]
    )
    w = {"f.gate_up.weight": torch.tensor([[1.0], [5.0]]), "f.down.weight": torch.tensor([[2.0]])}
    silu = 1 / (1 + math.exp(-1))
    assert feed_forward(w, "f.", torch.ones(1, 1)).item() == pytest.approx(2 * silu * 5)
    w["f.gate_up.bias"], w["f.down.bias"] = torch.tensor([-1.0, 1.0]), torch.tensor([0.25])
    assert feed_forward(w, "f.", torch.ones(1, 1)).item() == 0.25  # SiLU(0) * 6 * 2 + 0.25
    assert unit(torch.tensor([[[3.0, 4.0]]]), torch.tensor([10.0])).flatten().tolist() == [6.0, 8.0]


def test_a_decoder_of_silent_blocks_is_embedding_norm_head():
    """With `out` and `down` at zero the residual stream is the embedding; tied: it is the head as well."""
    shape = plain_shape(dim=2, head_dim=2, num_layers=1, norm_eps=0.0, conv=0, qk_norm=False, rope_upper=True)
    w = {
        "embed.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0]]),
        "norm.weight": torch.tensor([1.0, 3.0]),
        "blocks.0.norm1.weight": torch.ones(2),
        "blocks.0.norm2.weight": torch.ones(2),
        "blocks.0.mixer.qkv.weight": torch.ones(6, 2),
        "blocks.0.mixer.out.weight": torch.zeros(2, 2),
        "blocks.0.ffn.gate_up.weight": torch.ones(2, 2),
        "blocks.0.ffn.down.weight": torch.zeros(2, 1),
    }
    model = SimpleNamespace(shape=shape, state_dict=lambda: w)
    logits, held = reference(model, torch.tensor([0, 1]), [2])
    assert logits.tolist() == [[4, -2], [-2, 4]] and held == [[[0, 1]]]
    w["head.weight"] = torch.tensor([[0.0, 1.0]])
    shape.vocab = 1
    assert reference(model, torch.tensor([0, 1]), [1, 1])[0].tolist() == [[3], [-3]]


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [[6], [2, 1, 3]])
def test_window_and_streaming(calls):
    """Both keep 1 sink and the 2 newest; the last row sees 0, 3, 4, 5: in streaming at 0, 1, 2, 3."""
    layer = layer_of_cosines(6)
    for policy, distances in (("window", (5, 2, 1, 0)), ("streaming", (3, 2, 1, 0))):
        out, held = run(policy, layer, calls, budget=3, sinks=1)
        assert held == [[0, 4, 5]]
        weights = [math.exp(math.cos(d)) for d in distances]
        expected = sum(p * j for p, j in zip(weights, (0, 3, 4, 5), strict=True)) / sum(weights)
        assert out[5, 0, 0].item() == pytest.approx(expected)


# --- TOVA ----------------------------------------------------------------------------------------

#: Four keys, two heads: head A likes key 0 least, head B key 1, their mean key 2 (.30 .30 .12 .28).
HEAD_A = [[1], [0.5, 0.5], [0.3, 0.3, 0.4], [0.10, 0.50, 0.12, 0.28]]
HEAD_B = [[1], [0.5, 0.5], [0.3, 0.3, 0.4], [0.50, 0.10, 0.12, 0.28]]


@pytest.mark.parametrize("prompt", ["stepwise", "bulk"])
def test_tova_head_mean_against_per_head(prompt):
    """The mean drops a key that neither head ranks last; each head for itself drops its own (T10)."""
    layer = Given(HEAD_A, HEAD_B)
    assert kept("tova", layer, budget=3, prompt=prompt) == [[0, 1, 3]]
    assert kept("tova", layer, budget=3, prompt=prompt, select="head") == [[1, 2, 3], [0, 2, 3]]


def test_tova_of_grouped_queries_averages_over_query_heads():
    """One KV head read by both query heads: per head and per layer are then the same mean."""
    layer = Given(HEAD_A, HEAD_B, kv_heads=1)
    assert kept("tova", layer, budget=3) == kept("tova", layer, budget=3, select="head") == [[0, 1, 3]]


def test_tova_per_head_of_two_groups():
    """Query heads 0 and 1 read KV head 0, 2 and 3 KV head 1: A and A drop key 0, B and B key 1."""
    layer = Given(HEAD_A, HEAD_A, HEAD_B, HEAD_B, kv_heads=2)
    assert kept("tova", layer, budget=3, select="head") == [[1, 2, 3], [0, 2, 3]]


STEPS = [[1], [0.5, 0.5], [0.2, 0.5, 0.3], [0.6, 0.05, 0.15, 0.2]]


def test_tova_stepwise_against_bulk():
    """Step by step key 0 is gone (.2 was least) before row 3 would like it best; bulk asks row 3 alone."""
    out, held = run("tova", Given(STEPS), budget=2)
    assert held == [[2, 3]]
    assert out[3, 0].tolist() == pytest.approx([0, 0.125, 0.375, 0.5])  # .05 .15 .2 of .4: three keys seen
    out, held = run("tova", Given(STEPS), budget=2, prompt="bulk")
    assert held == [[0, 3]]
    assert out[3, 0].tolist() == pytest.approx(STEPS[3])
    assert kept("tova", Given(STEPS), [3, 1], budget=2, prompt="bulk") == [[2, 3]]  # chunks: [1, 2] first


def test_tova_protect_and_ties():
    assert kept("tova", Given(STEPS), budget=2, protect=1) == [[0, 3]]  # then .05 goes before it is tried
    level = [[0.5] * (t + 1) for t in range(5)]
    assert kept("tova", Given(level), budget=2) == [[3, 4]]  # of equals the oldest goes
    assert kept("tova", Given(level), budget=2, prompt="bulk") == [[3, 4]]
    assert kept("tova", Given(level), budget=3, protect=2) == [[0, 1, 4]]


def test_tova_compressed_positions():
    """Gaps up to 10 as they are, 11 -> ln ln 11 = 0.87, 70000 -> 2.41; the first keeps its index."""
    places = compressed([3, 13, 24, 25, 70025])
    assert list(places) == [3, 13, 24, 25, 70025]
    assert list(places.values()) == pytest.approx([3, 13, 13.8746, 14.8746, 17.2865], abs=1e-4)


def test_tova_attends_at_compressed_positions():
    """Row 12 sees keys 0 (protected) and 12 at a distance of ln ln 12, not 12."""
    out, held = run("tova", layer_of_cosines(13), budget=1, protect=1, positions="compressed")
    assert held == [[0]]
    far = math.exp(math.cos(math.log(math.log(12))))
    assert out[12, 0, 0].item() == pytest.approx(12 * E / (far + E))


def test_what_a_layers_window_hides_is_dropped_first():
    layer = Given([[0.5] * (t + 1) for t in range(4)], window=2)
    out, held = run("tova", layer, budget=3)
    assert held == [[1, 2, 3]] and out[3, 0].tolist() == [0, 0, 0.5, 0.5]
