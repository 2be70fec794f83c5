"""What tests of training share: invented books, and a recipe file of tiny networks, what cards must say."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np

from harness.train import Order, Plan
from harness.train_recipe import plan_of, read_recipe

RECIPE = """
device = "cpu"
threads = 1
batch_workers = 0

[training]
shape = { vocab = 260, dim = 32, num_layers = 2, num_heads = 2, num_kv_heads = 2, ffn_dim = 48, window = 32,
          rope_fraction = 0.5, rope_upper = false, conv = 4, qk_norm = true }
lengths = [128, 256]
length_probabilities = [0.5, 0.5]
shares = { prose = 0.65, needle = 0.25, recall = 0.10 }
mix_seed_offset = 0
tokens_per_step = 256
warmup_steps = 2
decay_share = 0.4
final_lr_share = 0.02
muon_lr = 0.02
adamw_lr = 3e-3
betas = [0.9, 0.98]
weight_decay = 0.01
clip = 1.0
autocast_bf16 = true

[[group]]
name = "final"
folder = "."
train = ["transformer"]
seeds = [0]
tokens = 5120
induction_heads = 1

[[group]]
name = "others"
folder = "others/{seed}"
train = ["transformer", "yoco"]
seeds = [0, 1]
tokens = 1024
induction_heads = 0

[[group]]
name = "compressors"
folder = "."
base = "transformer"
train = ["lococo:budget=32"]
seeds = [0]
tokens = 1024
induction_heads = 0
mix_seed_offset = 1
"""
SHAPE = RECIPE[RECIPE.index("shape = ") : RECIPE.index("lengths")].replace("\n", " ")
RECIPE = RECIPE.replace(RECIPE[RECIPE.index("shape = ") : RECIPE.index("lengths")], f"{SHAPE}\n")


def write_books(folder: Path, count: int = 4) -> Path:
    """Small invented books with enough distinct words for keys."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 5))) for _ in range(3500)]
    share = len(words) // count
    for n in range(count):
        picked = [words[i] for i in rng.integers(len(words), size=2500)]
        text = " ".join([*words[n * share : (n + 1) * share], *picked])
        (folder / f"book-{n}.txt").write_text(text, encoding="utf-8")
    return folder


def write_recipe(path: Path, *changes: tuple[str, str]) -> Path:
    """The tiny recipe with parts of its text replaced; each must be there."""
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def plan_of_command(command: str) -> Plan:
    """What the command of a card would train now."""
    words = shlex.split(command)
    assert words[:2] == ["kvmark", "train"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    if words[2] == "family":
        members = read_recipe(given["--recipe"]).members
        return next(member.plan for member in members if member.label == given["--only"])
    numbers = {name.lstrip("-").replace("-", "_"): value for name, value in given.items() if name != "--data"}
    order = Order(**{name: int(value) for name, value in numbers.items()})
    return plan_of(words[2], order)


def assert_trained_by(card: dict, plan: Plan) -> None:
    """The card says what `plan` decides: network, recipe, and the mix of sequences."""
    mix = card["data"]
    assert card["architecture"] == plan.spec and card["shape"]["name"] == plan.shape.name
    assert card["shape"] == json.loads(json.dumps(dataclasses.asdict(plan.shape)))
    assert card["recipe"] == json.loads(json.dumps(dataclasses.asdict(plan.steps)))
    assert (tuple(mix["lengths"]), tuple(mix["length_probabilities"])) == (
        plan.lengths, plan.length_probabilities,
    )  # fmt: skip
    assert tuple(mix["shares"][source] for source in ("prose", "needle", "recall")) == plan.shares
    assert mix["tokens_per_step"] == plan.steps.tokens_per_step
    assert mix["seed"] == plan.steps.seed + plan.mix_seed_offset
    assert card["tokens"] == plan.steps.steps * plan.steps.tokens_per_step
