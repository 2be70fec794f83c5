"""LoCoCo's training on plain text: block-wise truncated gradients, official groups and steps, both losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import models
from models.checkpoint import assign
from models.compressor_training import blocks_of, freeze, fresh_state, group_of
from models.text_training import TextRecipe, by_text_blocks, fit_text
from models.training_run import trained_state
from suites.tokenizer import ByteTokenizer
from suites.training.text import TrainingText

SPEC = "lococo:budget=6,block=12,kernel=3"
B, T, BLOCK = 3, 60, 12
RECIPE = TextRecipe(total_tokens=B * T, tokens_per_step=B * T, sequence_tokens=T, log_every_s=0)


@dataclass
class Batch:
    tokens_BT1: np.ndarray
    bytes_per_token: float = 2.5


def batch(step: int = 0) -> Batch:
    return Batch(np.random.default_rng(step).integers(0, 61, (B, T + 1)))


def trainable(network, options: str = "", **changes):
    """A network with sharp weights, of which what `options` says is trainable."""
    model = network(f"{SPEC}{options}", dtype=torch.float32, **changes)
    freeze(model)
    return model


# --- what is trained ----------------------------------------------------------------------------


def test_groups_follow_the_official_rule(network):
    """Compressors; with trainable=official all that is called embed or norm, and LoRA; never the output."""
    model = trainable(network)
    assert {name.split(".")[0] for name in trained_state(model)} == {"compressors"}
    model = trainable(network, ",trainable=official,lora=2", qk_rms=True)
    trained = set(trained_state(model))
    assert {"embed.weight", "norm.weight", "blocks.3.norm2.weight", "blocks.0.mixer.k_norm.weight"} <= trained
    assert {"blocks.1.mixer.qkv.lora.a", "blocks.1.mixer.out.lora.b", "compressors.2.alpha"} <= trained
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert {"head.weight", "blocks.0.mixer.qkv.weight", "blocks.2.ffn.down.weight"} <= frozen
    assert all(group_of(name) is None for name in frozen)


@pytest.mark.parametrize("options", ["", ",trainable=official,lora=2"])
def test_fresh_parts_complete_base_weights_on_meta(network, options):
    """Built without memory, then base weights and initial values: complete, and the Transformer at first."""
    base = network("transformer", dtype=torch.float32)
    with torch.device("meta"):
        model = models.build(f"lococo:budget=60,kernel=3,depth=2{options}", base.shape)
    torch.manual_seed(0)
    fresh = fresh_state(model, "official")
    assert not set(fresh) & set(base.state_dict())
    assert fresh["compressors.0.conv.weight"].std().item() == pytest.approx(1, rel=0.1)
    assign(model, base.state_dict() | fresh, "test")
    ids = torch.arange(20)[None]
    assert torch.equal(model.forward(ids), base.forward(ids))
    torch.manual_seed(0)
    assert all(torch.equal(fresh[name], value) for name, value in fresh_state(model, "official").items())


# --- gradients ----------------------------------------------------------------------------------


def naive_gradients(model, tokens_BT1, carry: bool) -> dict[str, torch.Tensor]:
    """Each block by itself: what came before is recomputed without gradient, then cut off."""
    ids, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    sums = {}
    for start in range(0, T, BLOCK):
        cache = model.new_cache(B, T)
        with torch.no_grad():
            for before in range(0, start, BLOCK):
                model.extend(ids[:, before : before + BLOCK], None, cache)
        part = slice(start, start + BLOCK)
        logits, target = model.extend(ids[:, part], None, cache, "all"), targets[:, part]
        if not carry:
            logits, target = logits[:, :-1], target[:, :-1]
        count = B * T if carry else B * (T - T // BLOCK)
        loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / count
        for name, p in model.named_parameters():
            if p.requires_grad and loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True)
                sums[name] = sums.get(name, 0) + (0 if gradient is None else gradient)
    return sums


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("options", ["", ",trainable=official,lora=2"])
def test_gradient_is_that_of_each_block_alone(network, options, carry):
    """One step's gradient: the sum over blocks of each block's own, nothing across; a mean over targets.
    Rows pass a few at a time, which changes nothing."""
    model = trainable(network, options)
    one = batch()
    sums = by_text_blocks(model, one, torch.device("cpu"), replace(RECIPE, carry=carry))
    expected = naive_gradients(model, torch.as_tensor(one.tokens_BT1), carry)
    assert expected.keys() == trained_state(model).keys()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert (p.grad - expected[name]).abs().max() <= 1e-4 * expected[name].abs().max() + 1e-7, name
    assert model.compressors[0].alpha.grad.abs() > 0 and sums[0].isfinite()


def test_compressors_learn_from_the_blocks_that_fold(network):
    """Slots before each block: 0 12 24 18 30; above M + 16 = 22 it folds, and only then a gradient returns:
    memory that an earlier block made is cut off."""
    model = trainable(network)
    ids = torch.as_tensor(batch().tokens_BT1)[:, :-1]
    learns = [logits.requires_grad for _, logits in blocks_of(model, ids)]
    assert learns == [False, False, True, False, True]


# --- steps --------------------------------------------------------------------------------------


def test_first_step_moves_each_group_by_its_rate(network):
    """AdamW's first step is the learning rate, whatever the gradient: 5e-2, 2.5e-4 and 5e-5; no decay."""
    model = trainable(network, ",trainable=official,lora=2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit_text(model, batch, RECIPE)
    rates = {"compressor": 5e-2, "embed_norm": 2.5e-4, "lora": 5e-5, None: 0.0}
    seen = set()
    for name, p in model.named_parameters():
        moved, rate = (p.detach() - before[name]).abs(), rates[group_of(name)]
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        assert moved.max() <= rate * 1.001 + 1e-6, name
        if rate:
            large = gradient.abs() > 1e-5
            # fp32 cannot add 5e-5 to a weight of 4 more precisely than 5e-7.
            assert torch.allclose(moved[large], torch.tensor(rate), rtol=0.02, atol=1e-6), name
            seen |= {group_of(name)} if large.any() else set()
    assert seen == {"compressor", "embed_norm", "lora"}


def test_schedule_is_linear_to_zero_without_warm_up():
    recipe = replace(RECIPE, total_tokens=5 * B * T)
    assert [recipe.lr_share(step) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert recipe.weight_decay == recipe.clip == 0


def test_the_log_has_both_losses(network):
    """`loss`: mean over targets inside blocks; bits per byte: every token, block borders carried."""
    model = trainable(network)
    tokens_BT1 = torch.as_tensor(batch().tokens_BT1)
    with torch.no_grad():
        logits = torch.cat([logits for _, logits in blocks_of(model, tokens_BT1[:, :-1])], 1)
        nats_BT = cross_entropy(logits.mT, tokens_BT1[:, 1:], reduction="none")
    inside = torch.ones(T, dtype=torch.bool)
    inside[BLOCK - 1 :: BLOCK] = False
    (entry,) = fit_text(model, batch, RECIPE)
    assert entry.loss == pytest.approx(nats_BT[:, inside].mean().item(), rel=1e-5)
    assert entry.bits_per_byte == pytest.approx(nats_BT.mean().item() / math.log(2) / 2.5, rel=1e-5)
    assert entry.digit_accuracy is None and entry.dense_accuracy is None


def test_training_lowers_the_loss(network):
    """A few official steps on a repeated batch: memory of other tokens than at first."""
    model = trainable(network, ",trainable=official")
    entries = fit_text(model, lambda step: batch(0), replace(RECIPE, total_tokens=20 * B * T))
    assert entries[-1].loss < entries[0].loss - 0.05


def test_an_interrupted_training_ends_the_same(network, tmp_path):
    """Resumed at any step: equal parameters; its file holds what is trained and nothing else."""
    recipe, path = replace(RECIPE, total_tokens=4 * B * T), tmp_path / "half.pt"
    whole, half = trainable(network), trainable(network)
    fit_text(whole, batch, recipe)

    def until_the_third(step):
        if step == 2:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit_text(half, until_the_third, recipe, checkpoint_path=path, checkpoint_every_s=0)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 2
    trained = sum(p.numel() for p in half.compressors.parameters())
    assert sum(tensor.numel() for tensor in saved["model"].values()) == trained
    again = trainable(network)
    fit_text(again, batch, recipe, checkpoint_path=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="trained with carry=False, not True"):
        fit_text(again, batch, replace(recipe, carry=True), checkpoint_path=path)


# --- data ---------------------------------------------------------------------------------------


def test_text_is_cut_into_sequences():
    """BOS before every document, end to end; every sequence once per epoch, with its last target."""
    texts = ["abc", "defgh", "é" * 4]
    ids = [256, *b"abc", 256, *b"defgh", 256, *"éééé".encode()]
    text = TrainingText(texts, ByteTokenizer(), length=4, sequences=2, seed=3)
    assert text.available == 4 and text.bytes_per_token == 16 / 19
    rows = [tuple(row) for step in range(4) for row in text.batch(step).tokens_BT1]
    every = {tuple(ids[start : start + 5]) for start in range(0, 16, 4)}
    assert set(rows[:4]) == set(rows[4:]) == every and len(every) == 4
    assert rows[:4] != rows[4:]  # another order in the second epoch
    assert np.array_equal(text.batch(1).tokens_BT1, text.batch(1).tokens_BT1)
    other = TrainingText(texts, ByteTokenizer(), length=4, sequences=2, seed=4)
    assert rows != [tuple(row) for step in range(4) for row in other.batch(step).tokens_BT1]
    with pytest.raises(ValueError, match="has 19 tokens, a sequence 19"):
        TrainingText(texts, ByteTokenizer(), length=19, sequences=1)
