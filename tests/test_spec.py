"""Spec strings and shapes: what is accepted, and the one sentence for what is not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
import torch

import models
from models.architecture import Shape
from models.conformance.prompts import PROMPT_MODES
from models.shapes import SHAPES, load_shape, shape_from
from models.spec import SpecError, canonical, parse_options

WRONG = {
    "mamba": "Unknown architecture 'mamba'; known: .*lococo.*random.*tova.*transformer.*window.*yoco",
    "": "Unknown architecture ''; known: ",
    "../window": "Unknown architecture",
    "__init__": "Unknown architecture",
    "tova:size=4": "Unknown option 'size' of architecture 'tova'; valid options: budget, prompt",
    "transformer:budget=4": "valid options: none",
    "tova:budget": "'budget' .* has no value; write key=value",
    "tova:budget=": "must be of type int, not ''",
    "tova:budget=many": "must be of type int, not 'many'",
    "tova:budget=2.5": "must be of type int",
    "tova:budget=4,budget=5": "given twice",
    "tova:prompt=eager": "must be one of stepwise, bulk, not 'eager'",
    "tova:budget=-1": "budget of at least 1, not -1",
    "tova:budget=0": "at least 1",
    "random:budget=0": "at least 1",
    "window:budget=4,sinks=4": "0 <= sinks < budget",
    "window:sinks=-1": "0 <= sinks",
    "lococo:budget=1": "budget >= 2",
    "lococo:heavy=1": "heavy < 1",
    "lococo:heavy=-0.1": "heavy",
    "lococo:kernel=4": "odd kernel",
    "lococo:block=-1": "block >= 0",
    "lococo:budget=2,heavy=0.9": "not verbatim",
    "yoco:mixer=mamba": "must be one of swa, retention",
    "yoco:early_exit=maybe": "must be true or false",
    "yoco:window=-3": "window >= 0",
}


@pytest.mark.parametrize("spec", WRONG)
def test_wrong_specs_are_one_sentence(spec):
    """A wrong spec raises SpecError with one sentence that names what would have been right."""
    with pytest.raises(SpecError, match=WRONG[spec]) as caught:
        models.parse(spec)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_specs_become_typed_options():
    """Values have their field's type, spaces do not matter, what is left out keeps its default."""
    _, options = models.parse(" h2o : budget=64, heavy=0.25 ")
    assert dataclasses.asdict(options) == {
        "budget": 64, "heavy": 0.25, "prompt": "bulk", "select": "head", "budget_bytes": None,
    }  # fmt: skip
    assert models.parse("yoco:early_exit=False")[1].early_exit is False
    assert models.parse("tova:")[1] == models.parse("tova")[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.budget = 3


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("tova:budget=256", "tova:budget=256"),
        ("tova", "tova:budget=256"),
        ("tova:budget_bytes=99999", "tova:budget_bytes=99999"),
        ("tova:prompt=bulk,budget=64", "tova:budget=64,prompt=bulk"),
        ("yoco:early_exit=true,mixer=swa", "yoco"),
        ("yoco:early_exit=false", "yoco:early_exit=false"),
        ("lococo:heavy=.25", "lococo:budget=256,heavy=0.25"),
        ("transformer", "transformer"),
    ],
)
def test_canonical_specs(spec, short):
    """One name per set of options: the budget, and what differs from the defaults, in the fields' order."""
    assert models.canonical_spec(spec) == short
    assert models.canonical_spec(short) == short
    assert models.parse(short) == models.parse(spec)


@dataclass(frozen=True)
class Everything:
    """One field of each supported type."""

    lengths: tuple[int, ...] = (512, 1024)
    mode: Literal["a", "b"] = "a"
    limit: int | None = None
    ratio: float = 0.5
    name: str = "x"
    flag: bool = False


def test_every_field_type_round_trips():
    """Lists, optional values and switches come back from their canonical form."""
    options = parse_options(Everything, "lengths=8+16,mode=b,limit=3,ratio=1e-3,name=y z,flag=true", "it")
    assert options == Everything((8, 16), "b", 3, 0.001, "y z", True)
    _, _, text = canonical("it", options).partition(":")
    assert parse_options(Everything, text, "it") == options
    assert parse_options(Everything, "limit=none,lengths=7", "it") == Everything(lengths=(7,))
    assert canonical("it", Everything()) == "it"
    for wrong in ("lengths=8+x", "limit=x", "flag=1", "ratio=x"):
        with pytest.raises(SpecError):
            parse_options(Everything, wrong, "it")


def test_every_architecture_is_listed_and_builds(network):
    """The folder is the registry; each entry has a first line and says how prompts meet its policy."""
    assert {"lococo", "random", "tova", "transformer", "window", "yoco"} <= set(models.names())
    for name in models.names():
        assert models.docline(name)
        assert models.canonical_spec(name) in (name, f"{name}:budget=256")
        model = network(name)
        assert model.prompt_mode in PROMPT_MODES
        assert model.weight_names(model.options)


def test_build_refuses_what_does_not_fit():
    """A spec that the shape cannot carry is a SpecError too."""
    with pytest.raises(SpecError, match="even number of layers, not 3"):
        models.build("yoco", dataclasses.replace(SHAPES["tiny"], num_layers=3))


# --- shapes -------------------------------------------------------------------------------------

FINE = dict(vocab=8, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=8)


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes_build(name):
    """Every named shape carries every architecture (on the meta device: no memory)."""
    assert load_shape(name) is SHAPES[name]
    with torch.device("meta"):
        for spec in ("transformer", "yoco", "yoco:mixer=retention"):
            models.build(spec, SHAPES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim between 1 and 10000000, not 0"),
        ({"num_layers": -2}, "num_layers between 1 and 10000, not -2"),
        ({"vocab": 0}, "vocab between 1"),
        ({"vocab": 10**30}, "vocab between 1"),
        ({"window": 0}, "window between 1"),
        ({"ffn_dim_swa": -1}, "ffn_dim_swa between 1"),
        ({"retention_head_dim": -2}, "retention_head_dim between 1"),
        ({"rope_base": float("nan")}, "rope_base from 1"),
        ({"rope_base": 1.0}, "rope_base from 1"),
        ({"norm_eps": -1.0}, "norm_eps from 0"),
        ({"sliding_window": 4, "sliding_layers": [7]}, "sliding_layers that are not among its layers"),
        ({"rope_scaling": {"kind": "linear", "factor": 1e30}}, "factor between 1e-6 and 1e6"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2, "original_positions": True}}, "original_positions"),
        ({"rope_scaling": {"kind": "yarn", "factor": 2}}, "yarn needs original_positions >= 1"),
        ({"rope_scaling": {"kind": "ntk", "factor": 2}}, "linear, llama3 or yarn, not 'ntk'"),
        ({"num_heads": 3}, "divisible"),
        ({"num_heads": 4, "num_kv_heads": 3}, "divisible"),
        ({"conv": -1}, "conv from 0 to 1024"),
        ({"rope_fraction": 1.5}, "rope_fraction from 0 to 1"),
        ({"depth": 3}, "Unknown key 'depth' in shape 'mine'; valid keys: .*num_layers"),
        ({"ffn_dim": None}, "Key 'ffn_dim' .* must be of type int, not None"),
        ({"qk_norm": 1}, "Key 'qk_norm' .* must be of type bool"),
        ({"vocab": True}, "Key 'vocab' .* must be of type int"),
        ({"dim": "8"}, "Key 'dim' .* must be of type int, not '8'"),
    ],
)
def test_wrong_shapes_are_sentences(change, message):
    """Sizes that cannot be are a SpecError naming the key."""
    with pytest.raises(SpecError, match=message) as caught:
        shape_from({"name": "mine"} | FINE | change)
    assert "\n" not in str(caught.value)


def test_shapes_from_toml(tmp_path):
    """A TOML file with Shape's keys is a shape named after the file; anything wrong is a sentence."""
    good = tmp_path / "mine.toml"
    good.write_text("\n".join(f"{key} = {value}" for key, value in FINE.items()) + "\nqk_norm = true\n")
    assert load_shape(str(good)) == Shape(name="mine", **FINE, qk_norm=True)
    for text, message in (
        ("vocab = ", "cannot be read"),
        ("vocab = 8", "Key 'dim' is missing in shape 'bad'"),
        ("speed = 3", "Unknown key 'speed'"),
    ):
        bad = tmp_path / "bad.toml"
        bad.write_text(text)
        with pytest.raises(SpecError, match=message) as caught:
            load_shape(str(bad))
        assert "\n" not in str(caught.value)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    for missing in (tmp_path / "none.toml", tmp_path / "latin.toml", "huge"):
        with pytest.raises(SpecError):
            load_shape(str(missing))


BUDGETED = [name for name in models.names() if hasattr(models.parse(name)[1], "budget_bytes")]


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_in_bytes_is_the_largest_that_fits(name, dtype):
    """budget_bytes=N: the cache of one request takes at most N bytes, one token more would not."""
    shape = SHAPES["tiny"]
    for limit in (200_000, 1_000_000):
        model = models.build(f"{name}:budget_bytes={limit}", shape, dtype)
        assert model.options.budget_bytes is None
        held = []
        for more in (0, 1):
            options = dataclasses.replace(model.options, budget=model.options.budget + more)
            held.append(type(model)(shape, options).cache_bytes(10**6, 1, dtype, prompt=10**6).total)
        assert held[0] <= limit < held[1]


def test_budgets_that_cannot_be():
    """Too few bytes, and two budgets at once: one sentence each."""
    with pytest.raises(SpecError, match=r"budget_bytes=100 is too small: a budget of 1 takes \d+ bytes\.$"):
        models.build("tova:budget_bytes=100", SHAPES["tiny"])
    with pytest.raises(SpecError, match=r"too small: a budget of \d+ takes"):
        models.build("snapkv:budget_bytes=100", SHAPES["tiny"])
    with pytest.raises(SpecError, match="not both"):
        models.parse("tova:budget_bytes=100,budget=3")


@pytest.mark.parametrize(
    "spec", ["tova:protect=300", "window:sinks=300", "snapkv:window=300", "lococo:local=140"]
)
def test_options_within_the_budget_wait_for_its_tokens(spec):
    """What must fit into the budget is not compared with the default while the budget is in bytes."""
    assert models.build(f"{spec},budget_bytes=5000000", SHAPES["tiny"]).options.budget > 300
    with pytest.raises(SpecError, match="too small: a budget of [23]\\d\\d takes"):
        models.build(f"{spec},budget_bytes=200000", SHAPES["tiny"])
