"""Recipe files: the packaged ones say what the single command does, and a wrong one is one sentence."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from train_help import write_books, write_recipe
from typer.testing import CliRunner

import models
from harness.cli import app
from harness.train import Order, network
from harness.train_data import training_books
from harness.train_keys import RecipeError
from harness.train_recipe import FOLDER, plan_of, read_recipe
from harness.training import origin
from models.shapes import SHAPES

CPU = read_recipe("cpu").members
GPU = read_recipe("gpu").members
NETWORKS = ("transformer", "yoco:mixer=swa", "yoco:mixer=retention")


# --- the packaged recipes -------------------------------------------------------------------------


def test_the_cpu_recipe_lists_what_is_to_be_trained():
    groups: dict[str, list] = {}
    for member in CPU:
        groups.setdefault(member.group, []).append(member)
    names = ["transformer", "yoco-swa", "yoco-retention"]
    assert [m.label for m in groups["final"]] == names
    assert [m.label for m in groups["no-start"]] == [f"no-start/{name}" for name in names]
    spread = [f"spread/seed-{seed}/{name}" for seed in (0, 1, 2) for name in names]
    assert [m.label for m in groups["spread"]] == spread
    assert [m.plan.steps.seed for m in groups["spread"]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [(m.plan.steps.total_tokens, m.plan.steps.induction_heads) for m in CPU[:7:3]] == [
        (20_000_000, 2), (6_000_000, 0), (2_000_000, 2),
    ]  # fmt: skip
    folded = [*groups["compressors"], *groups["summaries"]]
    assert {m.base for m in folded} == {"transformer"}
    assert [m.plan.spec.split(",")[0] for m in folded] == [
        f"lococo:budget={budget}" for budget in (128, 128, 256, 512)
    ]


@pytest.mark.parametrize("member", [m for m in CPU if m.base is None], ids=lambda m: m.label)
def test_a_network_of_the_cpu_recipe_is_that_of_its_own_command(member):
    steps = member.plan.steps
    order = Order(tokens=steps.total_tokens, seed=steps.seed, induction_heads=steps.induction_heads)
    assert member.plan == plan_of(models.canonical_spec(member.plan.spec), order)


@pytest.mark.parametrize("member", [m for m in CPU if m.base is not None], ids=lambda m: m.label)
def test_compressors_of_the_cpu_recipe_are_those_of_their_own_command(member):
    assert member.plan == plan_of(member.plan.spec, Order())


@pytest.mark.parametrize(
    ("spec", "like"), [("lococo:budget=64", "lococo-128"), ("yoco:mixer=swa,window=64", "transformer")]
)
def test_what_the_recipe_does_not_list_is_trained_like_the_first_of_its_kind(spec, like):
    spec, (listed,) = models.canonical_spec(spec), (m.plan for m in CPU if m.label == like)
    asked = plan_of(spec, Order(tokens=8192, seed=3))
    assert asked.spec == spec and (asked.steps.total_tokens, asked.steps.seed) == (8192, 3)
    steps = dataclasses.replace(listed.steps, total_tokens=8192, seed=3)
    assert asked == dataclasses.replace(listed, spec=spec, steps=steps)


def test_equal_plans_make_equal_cards_and_checkpoints(tmp_path):
    """The mix's card and what a checkpoint is known by, of a recipe's member and of the single command."""
    books, hashes = training_books(write_books(tmp_path / "books"))
    member = next(m for m in CPU if m.label == "no-start/yoco-retention")
    order = Order(tokens=6_000_000, induction_heads=0)
    ours = network(member.plan, books, hashes, "cpu", "")
    single = network(plan_of("yoco:mixer=retention", order), books, hashes, "cpu", "")
    assert ours.data == single.data and origin(ours) == origin(single) and ours.name == single.name
    assert dataclasses.asdict(ours.recipe) == dataclasses.asdict(single.recipe)
    pairs = zip(ours.model.state_dict().items(), single.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("members", [CPU, GPU], ids=["cpu", "gpu"])
def test_layouts_have_equal_parameters(members):
    counts = {}
    for spec in NETWORKS:
        (member, *_) = (m for m in members if models.canonical_spec(spec) == m.plan.spec)
        with torch.device("meta"):
            model = models.build(spec, member.plan.shape)
        counts[spec] = sum(p.numel() for p in model.parameters())
    assert max(counts.values()) <= 1.02 * min(counts.values()), counts


def test_the_gpu_recipe_is_larger_and_says_that_nobody_ran_it():
    file = read_recipe("gpu")
    plans = [member.plan for member in file.members if member.group == "final"]
    assert file.device == "cuda" and file.batch_workers > 0 and max(plans[0].lengths) == 4096
    assert {plan.shape for plan in plans} == {SHAPES["family-gpu"]} and len(plans) == 3
    assert plans[0].steps.tokens_per_step == 65_536
    assert "NEVER RUN" in (FOLDER / "gpu.toml").read_text(encoding="utf-8")


# --- strict reading -------------------------------------------------------------------------------

WRONG = [
    (("clip = 1.0", "clip = 1.0\nclipp = 2.0"), "Unknown key 'clipp' in [training]; valid keys: shape,"),
    (("threads = 1", "threads = 1\nspeed = 9"), "Unknown key 'speed' in recipe"),
    (('name = "final"', 'name = "final"\nmodel = 3'), "Unknown key 'model' in group 'final'"),
    (("clip = 1.0", ""), "Key 'clip' is missing in group 'final' and in [training]: a number"),
    (("tokens = 5120", ""), "Key 'tokens' is missing in group 'final': a positive whole number"),
    (("threads = 1", ""), "Key 'threads' is missing"),
    (("[training]", "[trained]"), "Unknown key 'trained'"),
    (("clip = 1.0", 'clip = "1"'), "Key 'clip' in [training] must be a number of at least 0, not '1'"),
    (("clip = 1.0", "clip = nan"), "Key 'clip' in [training] must be a number"),
    (("adamw_lr = 3e-3", "adamw_lr = -1.0"), "Key 'adamw_lr'"),
    (("tokens = 5120", "tokens = 0"), "Key 'tokens' in group 'final' must be a positive whole number, not 0"),
    (("tokens = 5120", "tokens = -5"), "positive whole number, not -5"),
    (("tokens = 5120", "tokens = 5.5"), "positive whole number, not 5.5"),
    (("tokens = 5120", "tokens = true"), "positive whole number, not True"),
    (("seeds = [0]", "seeds = []"), "Key 'seeds' in group 'final' must be a list of whole numbers"),
    (("seeds = [0]", "seeds = [-1]"), "Key 'seeds'"),
    (("autocast_bf16 = true", "autocast_bf16 = 1"), "must be true or false, not 1"),
    (("betas = [0.9, 0.98]", "betas = [0.9]"), "Key 'betas' in [training] must be two numbers"),
    (("probabilities = [0.5, 0.5]", "probabilities = [1.0]"), "2 lengths in group 'final' need"),
    (("probabilities = [0.5, 0.5]", "probabilities = [0.5, 0.6]"), "must be shares above 0 that sum to 1"),
    (("probabilities = [0.5, 0.5]", "probabilities = [1.0, 0.0]"), "must be shares above 0 that sum to 1"),
    (("recall = 0.10", "recall = 0.20"), "prose, needle and recall that sum to 1"),
    (("recall = 0.10", "recoil = 0.10"), "prose, needle and recall that sum to 1"),
    (("lengths = [128, 256]", "lengths = [128, 192]"), "multiple of every length, and 256 is none of 192"),
    (("dim = 32", "dim = 33"), "dim divisible by num_heads"),
    (("dim = 32", "dimension = 32"), "Unknown key 'dimension' in shape"),
    (("num_layers = 2", "num_layers = 3"), "yoco needs self_layers or an even number of layers, not 3"),
    (("dim = 32", "dim = 3_200_000"), "means about 8.2e+13 parameters; at most 2e+09"),
    (("budget=32", "budget=99999999999"), "means about 6.7e+13 parameters"),
    (("vocab = 260", "vocab = 256"), "needs a vocab of at least 257, not 256"),
    (("conv = 4", "conv = 2"), "at least 4 taps"),
    (("induction_heads = 1", "induction_heads = 9"), "0 to 2 heads, not 9"),
    (('train = ["transformer"]', 'train = ["tova"]'), "'tova' in group 'final' has no weights of its own"),
    (('train = ["transformer"]', 'train = ["no-such"]'), "Unknown architecture 'no-such'"),
    (('train = ["transformer"]', "train = [7]"), "Key 'train' in group 'final' must be a list"),
    (('base = "transformer"', ""), "Key 'base' in group 'compressors' is for lococo, which needs it"),
    (('base = "transformer"', 'base = "yoco-swa"'), "no Transformer of the recipe; those are: transformer,"),
    (("others/{seed}", "others"), "must hold {seed}, since there are several seeds"),
    (("others/{seed}", "../{seed}"), "must be a folder below --out"),
    (("others/{seed}", "/tmp/{seed}"), "must be a folder below --out"),
    (('"transformer", "yoco"', '"transformer", "transformer"'), "called 'others/0/transformer'"),
    (("budget=32", "budget=200"), "never compressed to 200 slots; some must be longer than 400 tokens"),
    (("budget=32", "budget=32,trainable=official"), "A recipe trains compressors alone"),
    (("[[group]]", "[group]"), "cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_recipe_is_one_sentence(tmp_path, change, message):
    path = write_recipe(tmp_path / "mine.toml", change)
    with pytest.raises(RecipeError) as caught:
        read_recipe(str(path))
    text = str(caught.value)
    assert message in text and "\n" not in text and text.endswith("."), text


def test_the_tiny_recipe_itself_is_right(tmp_path):
    members = read_recipe(str(write_recipe(tmp_path / "mine.toml"))).members
    assert [m.label for m in members] == [
        *("transformer", "others/0/transformer", "others/0/yoco-swa"),
        *("others/1/transformer", "others/1/yoco-swa", "lococo-32"),
    ]
    assert members[-1].base == "transformer"


ORDERS = [
    (["--recipe", "no-such"], 2, "Unknown recipe 'no-such'; known: cpu, gpu, or a TOML file."),
    (["--recipe", "no-such.toml"], 2, "cannot be read"),
    (["--only", "yoco"], 2, "Recipe 'mine.toml' has no 'yoco'; it has final, transformer, others,"),
    (["--only", "lococo-32"], 2, "'lococo-32' needs 'transformer', which is not finished in weights"),
    (["--tokens", "5"], 2, "--tokens is for training one network"),
    (["--seed", "0"], 2, "--seed is for training one network"),
    (["--device", "cuda"], 3, "torch sees no CUDA GPU"),
    (["--device", "cuda:x"], 2, "Unknown device 'cuda:x'; known: cpu, cuda, cuda:N."),
    (["--data", "no-such-folder"], 2, "no-such-folder"),
    (["--data", "damaged"], 2, "damaged.txt is not UTF-8"),
    (["--data", "short"], 2, "No training text is as long as the longest length"),
    (["--out", "file"], 2, "file"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), ORDERS, ids=[" ".join(a) for a, _, _ in ORDERS])
def test_a_wrong_order_is_one_sentence_and_trains_nothing(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    if "--device" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    write_recipe(tmp_path / "mine.toml")
    (tmp_path / "file").write_text("")
    for name, text in (("damaged", b"\xff\xfe"), ("short", b"a b c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_bytes(text)
    given = {"--recipe": "mine.toml", "--out": "weights", "--data": str(write_books(tmp_path / "books"))}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = CliRunner().invoke(app, ["train", "family", *(word for pair in given.items() for word in pair)])
    assert done.exit_code == code, done.output
    assert message in done.stderr and done.stderr.startswith("kvmark: ") and done.stderr.count("\n") == 1
    assert done.stdout == "" and not (tmp_path / "weights").exists()


@pytest.mark.parametrize("option", [["--only", "x"], ["--workers", "2"]])
def test_options_of_a_family_are_for_families(tmp_path, option):
    done = CliRunner().invoke(app, ["train", "transformer", "--data", str(tmp_path), *option])
    assert done.exit_code == 2 and "is for 'kvmark train family'" in done.stderr
