"""Muon's geometry, induction heads that match from step 0, and a resume that nobody can tell."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from models.architecture import Shape
from models.architectures import transformer, yoco
from models.initialisation import induction_heads, initialise
from models.layers import unit_heads
from models.muon import Muon, newton_schulz, parameter_groups
from models.recipe import Recipe
from models.training import fit, prepare
from models.training_log import summarise
from models.training_run import sources_of

SHAPE = Shape(
    name="test",
    vocab=260,
    dim=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    ffn_dim=96,
    window=16,
    rope_fraction=0.5,
    rope_upper=False,
    conv=4,
    qk_norm=True,
)
LAYOUTS = {"transformer": ({}, transformer), "swa": ({"mixer": "swa"}, yoco)}
LAYOUTS["retention"] = ({"mixer": "retention"}, yoco)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def network(layout: str = "transformer", **shape) -> nn.Module:
    options, module = LAYOUTS[layout]
    torch.manual_seed(0)
    return module.Model(replace(SHAPE, **shape), module.Options(**options))


@dataclass
class Batch:
    tokens_BT1: np.ndarray
    loss_weight_BT: np.ndarray
    answer_mask_BT: np.ndarray
    dense_mask_BT: np.ndarray


def batch(step: int) -> Batch:
    """Two random sequences whose last quarter repeats the first: the repeat counts as answers."""
    tokens = np.random.default_rng(step).integers(0, 256, (2, 33))
    tokens[:, 24:] = tokens[:, :9]
    answers = np.zeros((2, 32), bool)
    answers[:, 26:] = True
    weight = np.full((2, 32), 1 / 64, np.float32) + answers * np.float32(0.5 / answers.sum())
    return Batch(tokens, weight, answers, np.zeros_like(answers))


RECIPE = Recipe(total_tokens=8 * 64, tokens_per_step=64, warmup_steps=2, log_every_s=0, autocast_bf16=False)


def prepared(layout: str = "transformer") -> nn.Module:
    model = network(layout)
    prepare(model, RECIPE)
    return model


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def step_with_gradient(matrix, gradient, rows, steps=1):
    """The change that Muon makes to `matrix` (lr 1, no decay)."""
    parameter = nn.Parameter(matrix.clone())
    optimiser = Muon({parameter: rows}, lr=1.0, weight_decay=0.0)
    for _ in range(steps):
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach() - matrix


def matrix_with_singular_values(rows: int, low: float, high: float, cols: int = 64) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(torch.randn(rows, cols), full_matrices=False)
    return (u * torch.linspace(low, high, min(rows, cols))) @ vh


@pytest.mark.parametrize("rows", [(64, 64, 64), (96, 96), (32, 17)])
def test_muon_updates_are_orthogonal_in_every_part(rows):
    torch.manual_seed(0)
    gradient = torch.cat([matrix_with_singular_values(rows_of_part, 0.05, 1.0) for rows_of_part in rows])
    update = step_with_gradient(torch.zeros_like(gradient), gradient, rows)
    for part in update.split(rows):
        values = torch.linalg.svdvals(part) / max(1, part.shape[0] / 64) ** 0.5
        # The quintic overshoots by design: about [.7, 1.2] is where it leaves singular values.
        assert values.min() > 0.6 and values.max() < 1.25


def test_newton_schulz_keeps_zero_and_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(1, 16, 24)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    assert torch.allclose(newton_schulz(matrix)[0], u @ vh, atol=0.3)
    assert not newton_schulz(torch.zeros(1, 16, 24)).any()


def test_fused_matrix_is_optimised_like_its_parts():
    torch.manual_seed(0)
    rows, weight, gradient = (64, 32, 96), torch.randn(192, 64), torch.randn(192, 64)
    fused = step_with_gradient(weight, gradient, rows, steps=3)
    parts = [
        step_with_gradient(w, g, (len(w),), steps=3)
        for w, g in zip(weight.split(rows), gradient.split(rows), strict=True)
    ]
    assert torch.allclose(fused, torch.cat(parts), atol=1e-5)
    assert not torch.allclose(fused, step_with_gradient(weight, gradient, (192,), steps=3), atol=1e-1)


def test_muon_follows_its_formula():
    """Two steps written out: momentum, look-ahead, decoupled decay, sqrt(rows / cols)."""
    torch.manual_seed(0)
    weight, g1, g2 = torch.randn(3, 48, 16)
    parameter = nn.Parameter(weight.clone())
    optimiser = Muon({parameter: (48,)}, lr=0.02, weight_decay=0.01)
    expected, momentum = weight.double(), torch.zeros(48, 16)
    for gradient in (g1, g2):
        parameter.grad = gradient
        optimiser.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = newton_schulz((0.05 * gradient + 0.95 * momentum).T[None])[0].T
        expected = (1 - 0.02 * 0.01) * expected - 0.02 * 3**0.5 * direction
    assert torch.allclose(parameter.detach().double(), expected, atol=1e-5)


def test_muon_refuses_row_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match="cannot split"):
        Muon({nn.Parameter(torch.zeros(10, 4)): (4, 4)})


@every_layout
def test_parameter_groups_hold_every_trainable_parameter_once(layout):
    model = network(layout)
    model.blocks[0].ffn.down.weight.requires_grad_(False)
    groups = parameter_groups(model)
    grouped = [*groups.muon, *groups.decay, *groups.no_decay]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, trainable))
    assert {id(p) for p in groups.decay} == {id(model.embed.weight), id(model.head.weight)}
    assert groups.muon[model.blocks[0].mixer.qkv.weight] == (64,) * 3
    assert groups.muon[model.blocks[1].mixer.out.weight] == (64,)
    assert model.blocks[0].mixer.conv.weight not in groups.muon
    if layout != "transformer":
        assert groups.muon[model.kv.weight] == (64, 64)


@every_layout
def test_initial_values(layout):
    model = network(layout)
    assert initialise(model, seed=3) == []
    mixer, ffn = model.blocks[0].mixer, model.blocks[0].ffn
    assert not mixer.out.weight.any() and not ffn.down.weight.any()
    assert mixer.qkv.weight.std().item() == pytest.approx(0.7 / 64**0.5, rel=0.05)
    assert model.embed.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert mixer.conv.weight[:, 0].mean().item() == pytest.approx(1, abs=0.05)
    assert mixer.conv.weight[:, 1:].std().item() == pytest.approx(0.1, rel=0.15)
    assert (model.blocks[1].mixer.q_scale == 10**0.5).all() and (model.norm.weight == 1).all()
    again = network(layout)
    initialise(again, seed=3)
    assert torch.equal(parameters(model), parameters(again))
    initialise(again, seed=4)
    assert not torch.equal(parameters(model), parameters(again))


@every_layout
def test_induction_head_attends_to_what_followed_the_same_three_bytes(layout):
    model = prepared(layout)
    rng = np.random.default_rng(0)
    for _ in range(5):
        tokens = torch.as_tensor(rng.permutation(256)[:200])[None]
        earlier, now = int(rng.integers(3, 90)), int(rng.integers(100, 200))
        tokens[0, now - 2 : now + 1] = tokens[0, earlier - 2 : earlier + 1]
        # `out` and `down` are zero at the start: every layer sees the embedding.
        x_BTE = model.blocks[-1].norm1(model.embed(tokens))
        mixer = model.blocks[-1].mixer
        if layout == "transformer":
            q, k, _ = mixer.conv.parallel(mixer.qkv(x_BTE)).chunk(3, -1)
            k_scale = mixer.k_scale
        else:
            q = mixer.conv.parallel(mixer.q(x_BTE))
            k, k_scale = model.kv_conv.parallel(model.kv(x_BTE)).chunk(2, -1)[0], model.k_scale
        q, k = (unit_heads(x[0].unflatten(-1, (2, 32)), s) for x, s in ((q, mixer.q_scale), (k, k_scale)))
        logits_HS = torch.einsum("hd,shd->hs", q[now], k[: now + 1])
        assert (logits_HS.argmax(-1) == earlier + 1).all()
        assert torch.allclose(logits_HS[:, earlier + 1], torch.tensor(10.0), atol=1e-3)


@pytest.mark.parametrize(
    ("layout_and_shape", "heads_wanted", "message"),
    [
        ({"conv": 3}, 2, "at least 4 taps; layer 2 has 3"),
        ({"conv": 0}, 2, "layer 2 has 0"),
        ({"layout": "swa", "conv": 2}, 2, "the shared key has 2"),
        ({"num_kv_heads": 1}, 2, "GQA"),
        ({}, 3, "0 to 2 heads, not 3"),
    ],
)
def test_induction_heads_say_what_a_layout_lacks(layout_and_shape, heads_wanted, message):
    with pytest.raises(ValueError, match=message):
        induction_heads(network(**layout_and_shape), heads_wanted)


def test_schedule_and_budget():
    recipe = Recipe()
    assert recipe.steps == 2930
    assert recipe.lr_share(0) == pytest.approx(1 / 60)
    assert recipe.lr_share(59) == recipe.lr_share(1757) == 1
    assert recipe.lr_share(2344) == pytest.approx(0.51, abs=1e-3)
    assert recipe.lr_share(2929) == pytest.approx(0.02, abs=1e-3)


def test_steps_are_as_long_as_the_schedule_says():
    """A quarter of the learning rates goes a quarter as far, by Muon (`out`, which starts at 0) and AdamW."""
    moved = []
    for warmup_steps in (1, 4):
        model = prepared()
        before = model.norm.weight.clone()
        fit(model, batch, replace(RECIPE, total_tokens=64, warmup_steps=warmup_steps))
        moved.append((model.blocks[1].mixer.out.weight, model.norm.weight - before))
    for whole, quarter in zip(*moved, strict=True):
        assert whole.abs().max() > 1e-3 and torch.allclose(quarter, whole / 4, rtol=1e-3, atol=1e-6)


@every_layout
def test_resumed_training_equals_an_uninterrupted_one(layout, tmp_path):
    whole, halves = prepared(layout), prepared(layout)
    log = fit(whole, batch, RECIPE)
    path = tmp_path / "run" / "checkpoint.pt"

    def interrupting(step: int) -> Batch:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit(halves, interrupting, RECIPE, checkpoint_path=path, source="first")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    asked = []
    fresh = network(layout)
    drawn = lambda step: asked.append(step) or batch(step)  # noqa: E731
    resumed_log = fit(fresh, drawn, RECIPE, checkpoint_path=path, source="second")
    assert asked == [5, 6, 7] and sources_of(path) == ["first", "second"]
    assert torch.equal(parameters(whole), parameters(fresh))
    facts = [(e.step, e.tokens, e.loss, e.bits_per_byte, e.digit_accuracy_by_length) for e in log]
    assert facts == [
        (e.step, e.tokens, e.loss, e.bits_per_byte, e.digit_accuracy_by_length) for e in resumed_log
    ]
    assert [path.name for path in path.parent.iterdir()] == ["checkpoint.pt"]
    # A finished run is loaded, not trained.
    loaded = network(layout)
    assert len(fit(loaded, None, RECIPE, checkpoint_path=path)) == 8
    assert torch.equal(parameters(whole), parameters(loaded))


def test_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    short = replace(RECIPE, total_tokens=64)
    fit(prepared(), batch, short, checkpoint_path=path)
    with pytest.raises(ValueError, match="total_tokens=64, not 512"):
        fit(prepared(), batch, RECIPE, checkpoint_path=path)
    with pytest.raises(ValueError, match="another network"):
        fit(prepared("swa"), batch, short, checkpoint_path=path)
    with pytest.raises(ValueError, match="another network"):
        fit(network(ffn_dim=64), batch, short, checkpoint_path=path)
    fit(prepared(), batch, replace(short, log_every_s=9), checkpoint_path=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable training checkpoint"):
        fit(prepared(), batch, short, checkpoint_path=path)


def test_checkpoint_of_another_origin_is_refused(tmp_path):
    """What else decides the result must agree, both ways; the sentence names the first difference."""
    path, origin = tmp_path / "checkpoint.pt", {"base": "b1", "data": "d1"}
    fit(prepared(), batch, RECIPE, checkpoint_path=path, origin=origin)
    assert len(fit(prepared(), None, RECIPE, checkpoint_path=path, origin=origin)) == RECIPE.steps
    for changed, message in (
        (origin | {"base": "b2"}, "trained with base=b1, not b2"),
        (origin | {"data": "d2"}, "trained with data=d1, not d2"),
        ({"data": "d1"}, "trained with base=b1, not None"),
        (origin | {"more": "m"}, "trained with more=None, not m"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            fit(prepared(), None, RECIPE, checkpoint_path=path, origin=changed)
        assert str(caught.value).endswith("delete it or give another path.")


def test_training_learns_in_bf16_and_its_log_adds_up():
    recipe = replace(RECIPE, total_tokens=30 * 64, autocast_bf16=True)
    entries = []
    log = fit(prepared(), lambda step: batch(0), recipe, on_log=entries.append)
    assert entries == log and log[-1].tokens == 1920
    assert log[0].bits_per_byte == pytest.approx(8, abs=0.3)
    assert log[-1].bits_per_byte < log[0].bits_per_byte - 1
    assert log[-1].digit_accuracy == log[-1].digit_accuracy_by_length[32] > 0
    losses = summarise(log, points=4)
    assert losses["final"] == losses["curve"][-1] and len(losses["curve"]) == 4


def test_frozen_parameters_stay_and_wrong_batches_are_refused(tmp_path):
    model, path = prepared(), tmp_path / "checkpoint.pt"
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    fit(model, batch, replace(RECIPE, total_tokens=128), checkpoint_path=path)
    assert torch.equal(before, model.embed.weight)
    saved = torch.load(path, weights_only=True)["model"]
    assert "head.weight" in saved and "embed.weight" not in saved
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit(model, batch, RECIPE)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="batch 0 has 64 tokens, the recipe 128"):
        fit(model, batch, replace(RECIPE, tokens_per_step=128))


def test_divergence_is_an_error_that_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"

    def poisoned(step: int) -> Batch:
        drawn = batch(step)
        return drawn if step < 3 else replace(drawn, loss_weight_BT=drawn.loss_weight_BT * np.nan)

    with pytest.raises(FloatingPointError, match="nan"):
        fit(prepared(), poisoned, RECIPE, checkpoint_path=path, checkpoint_every_s=0)
    assert torch.load(path, weights_only=True)["step"] == 3
