"""Whatever is fed to the parsers of specs and TOML files gives a value or one sentence.

How inputs are drawn is in fuzz_help.py; checkpoints are in test_fuzz_checkpoints.py.
"""

from __future__ import annotations

import json

import pytest
import torch
from fuzz_help import JSON, NUMBERS, TEXT, clean, fuzz, in_time, mutated, tiers
from hypothesis import strategies as st

import models
import suites
from harness.plan import Plan, Settings, plan_from_toml
from models.architecture import Shape
from models.shapes import load_shape, shape_from
from models.spec import SpecError

PLAIN_SHAPE = dict(vocab=8, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=8)
SCALING = dict(kind="yarn", factor=2.0, original_positions=64)


# --- spec strings ---------------------------------------------------------------------------------

VALUES = (
    NUMBERS.map(str) | TEXT | st.sampled_from(["bulk", "head", "retention", "256+512", "0.5+1", "4", "0.25"])
)


def specs(package) -> st.SearchStrategy[str]:
    """Option by option near to what an entry knows; or its longest spec, damaged; or anything."""

    def of(name: str) -> st.SearchStrategy[str]:
        options = models.parse(name)[1] if package is models else suites.options(name)
        keys = list(vars(options)) or [""]
        known = [f"{key}={value}" for key, value in vars(options).items()]
        drawn = st.tuples(st.sampled_from([*keys, "more"]), st.sampled_from(["=", " = ", "", "=="]), VALUES)
        option = drawn.map("".join) | st.tuples(st.sampled_from(keys), VALUES).map("=".join)
        near = st.lists(option | st.sampled_from(known or [""]), max_size=3).map(",".join)
        return near.map(f"{name}:".__add__) | mutated(f"{name}:{','.join(known)}")

    return st.sampled_from(package.names()).flatmap(of) | TEXT


@tiers(60, 600)
@pytest.mark.parametrize("package", [models, suites], ids=["models", "suites"])
def test_specs(package, examples):
    """A spec is refused in one sentence or has a canonical form, which is a fixed point."""

    def body(spec: str) -> None:
        try:
            short = package.canonical_spec(spec)
        except SpecError as error:
            clean(error)
        else:
            assert package.canonical_spec(short) == short

    fuzz(specs(package), body, examples)


@tiers(20, 150)
def test_budgets_in_bytes(examples):
    """`budget_bytes` of any size gives a network whose cache fits, or one sentence."""
    shape = shape_from(PLAIN_SHAPE | {"name": "x"})

    def body(drawn) -> None:
        name, limit = drawn
        try:
            with torch.device("meta"):
                model = models.build(f"{name}:budget_bytes={limit}", shape)
        except SpecError as error:
            clean(error)
        else:
            assert model.cache_bytes(100, prompt=100).total <= limit

    sizes = st.integers(-2, 10**5) | st.sampled_from([10**9, 10**11, 10**13, 10**30])
    budgeted = [name for name in models.names() if hasattr(models.parse(name)[1], "budget_bytes")]
    fuzz(st.tuples(st.sampled_from(budgeted), sizes), body, examples)


@pytest.mark.parametrize("spec", ["scissorhands:budget_bytes=1"])
def test_budgets_below_every_policy(spec):
    with torch.device("meta"), pytest.raises(SpecError):
        models.build(spec, shape_from(PLAIN_SHAPE | {"name": "x"}))


# --- TOML -----------------------------------------------------------------------------------------


def toml(value) -> str:
    """A value as TOML writes it; tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return "1979-05-27" if value is None else repr(value)


def tables(valid: dict, further: list[str]) -> st.SearchStrategy[str]:
    """TOML files: some keys of `valid` changed, dropped or added; or the text itself damaged."""
    keys = st.sampled_from([*valid, *further])
    near = st.dictionaries(keys, NUMBERS | st.sampled_from(list(valid.values())), max_size=2)
    changes = near | st.dictionaries(keys | TEXT, JSON, max_size=3)

    def write(drawn) -> str:
        changed, dropped = drawn
        values = {k: v for k, v in (valid | changed).items() if k not in dropped}
        return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in values.items())

    dropped = st.just(set()) | st.sets(st.sampled_from(list(valid)), max_size=1)
    return (
        st.tuples(near, st.just(set())).map(write)
        | st.tuples(changes, dropped).map(write)
        | mutated("".join(f"{key} = {toml(value)}\n" for key, value in valid.items()))
    )


@tiers(60, 1000)
def test_plans(examples, tmp_path):
    """A plan file becomes a Plan or one sentence."""
    path = tmp_path / "plan.toml"
    valid = dict(
        name="p", architectures=["tova:budget=64"], suites=["needle"], repeats=3, seed=1, shape="tiny"
    )

    def body(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            assert isinstance(plan_from_toml(path), Plan)
        except SpecError as error:
            clean(error)

    fuzz(tables(valid, [*Settings.__dataclass_fields__, "text"]), body, examples)


@tiers(60, 600)
def test_shape_files(examples, tmp_path):
    """A shape file becomes a Shape or one sentence."""
    path = tmp_path / "shape.toml"

    def body(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        try:
            assert isinstance(load_shape(str(path)), Shape)
        except SpecError as error:
            clean(error)

    valid = PLAIN_SHAPE | {"rope_scaling": SCALING, "sliding_layers": [0], "sliding_window": 3}
    fuzz(tables(valid, [*Shape.__dataclass_fields__]), body, examples)


DEEP = "a = " + "[" * 5000 + "]" * 5000
LONG = "repeats = 1" + "0" * 5000


@pytest.mark.parametrize(
    "text", [DEEP, LONG, "a" * 10**6, "[a" + ".a" * 5000 + "]"], ids=["deep", "long", "key", "dots"]
)
def test_plans_that_no_draw_reaches(text, tmp_path):
    (tmp_path / "plan.toml").write_text(text)
    with in_time(), pytest.raises(SpecError) as caught:
        plan_from_toml(tmp_path / "plan.toml")
    clean(caught.value)


@pytest.mark.parametrize("text", [DEEP, LONG, None], ids=["deep", "long", "null"])
def test_shape_files_that_no_draw_reaches(text, tmp_path):
    name = tmp_path / ("shape.toml" if text else "\0.toml")
    if text:
        name.write_text(text)
    with in_time(), pytest.raises(SpecError) as caught:
        load_shape(str(name))
    clean(caught.value)
