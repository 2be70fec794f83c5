"""Whatever is fed to the parsers gives a value or one sentence: specs, TOML, config.json, safetensors.

Inputs are drawn around what is valid, since random bytes never get past the first check. The fast tier draws
few, the full tier more than 5,000 in all; draws are derandomised, so a run repeats the last one exactly. An
example that takes longer than 20 s is interrupted: a hang is a failure like any other.
"""

from __future__ import annotations

import json
import signal
import struct
import threading
from collections.abc import Callable
from contextlib import contextmanager

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs the dev extra: hypothesis")

import safetensors  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pretrained_help import CONFIGS, config_of, write_checkpoint  # noqa: E402

import models  # noqa: E402
import suites  # noqa: E402
from harness.plan import Plan, Settings, plan_from_toml  # noqa: E402
from models.architecture import Shape  # noqa: E402
from models.pretrained import PretrainedError, open_checkpoint  # noqa: E402
from models.pretrained.config import parse  # noqa: E402
from models.pretrained.unsupported import HARMLESS  # noqa: E402
from models.shapes import load_shape, shape_from  # noqa: E402
from models.spec import SpecError  # noqa: E402


def tiers(fast: int, full: int):
    """The same test twice: few examples, and many in the full tier."""
    return pytest.mark.parametrize("examples", [fast, pytest.param(full, marks=pytest.mark.full)])


def fuzz(strategy: st.SearchStrategy, body: Callable, examples: int) -> None:
    """Run `body` on that many draws."""
    ran = 0

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def run(value):
        nonlocal ran
        ran += 1
        with in_time():
            body(value)

    run()
    assert ran >= examples, "the strategy has fewer values than were asked for"


@contextmanager
def in_time(seconds: float = 20):
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise AssertionError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clean(error: ValueError) -> None:
    """One printable sentence that a terminal can bear."""
    sentence = str(error)
    assert sentence.isprintable() and sentence.endswith((".", "?")) and len(sentence) < 900, repr(sentence)


# --- what inputs are made of --------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, 10**9, 10**15, 10**30, 10**400, -1, -8, 2**31, 2**63, 0.5, 1.0,
     -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]
) | st.integers() | st.floats()  # fmt: skip
TEXT = st.text(max_size=12) | st.sampled_from(
    ["", " ", "\n", "\0", "..", "/", "none", "true", "nan", "1e999", "１"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def mutated(text: str) -> st.SearchStrategy[str]:
    """The text with up to three stretches of it replaced."""
    edit = st.tuples(st.integers(0, len(text)), st.integers(0, 6), TEXT)

    def apply(edits: list[tuple[int, int, str]]) -> str:
        changed = text
        for start, length, new in edits:
            changed = changed[:start] + new + changed[start + length :]
        return changed

    return st.lists(edit, min_size=1, max_size=3).map(apply)


# --- spec strings -------------------------------------------------------------------------------

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


@tiers(60, 1200)
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


@tiers(20, 300)
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


# --- TOML ---------------------------------------------------------------------------------------

PLAIN_SHAPE = dict(vocab=8, dim=8, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=8)
SCALING = dict(kind="yarn", factor=2.0, original_positions=64)


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


# --- config.json --------------------------------------------------------------------------------

ROPE = {
    "rope_type": "yarn", "type": "yarn", "factor": 4.0, "rope_theta": 1e4, "beta_fast": 32, "beta_slow": 1,
    "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "truncate": False, "partial_rotary_factor": 1.0,
}  # fmt: skip
CONFIG_KEYS = sorted({
    *(key for family in CONFIGS for key in config_of(family)), *HARMLESS, "rope_scaling", "rope_parameters",
    "mlp_bias", "layer_types", "architectures", "auto_map", "sliding_window", "num_key_value_heads",
    "original_max_position_embeddings", "partial_rotary_factor",
})  # fmt: skip
KINDS = st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic"])
ROPES = st.tuples(
    st.sets(st.sampled_from(sorted(ROPE)), max_size=8),
    st.dictionaries(st.sampled_from(sorted(ROPE)), NUMBERS | KINDS | JSON, max_size=3),
    KINDS,
).map(lambda drawn: {key: ROPE[key] for key in drawn[0]} | {"rope_type": drawn[2]} | drawn[1])
CHANGES = st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON | NUMBERS, max_size=3)
CONFIG = st.tuples(st.sampled_from(list(CONFIGS)), CHANGES, st.none() | ROPES).map(
    lambda drawn: config_of(drawn[0]) | ({} if drawn[2] is None else {"rope_scaling": drawn[2]}) | drawn[1]
)


@tiers(80, 1500)
def test_configs(examples):
    """A config gives a Shape of bounded sizes whose rotary frequencies are numbers, or one sentence."""

    def body(values: dict) -> None:
        try:
            shape = parse(values, "x", "config.json", {}).shape
        except PretrainedError as error:
            clean(error)
            return
        assert shape.num_layers <= 10_000 and shape.head_dim <= 10**7
        if shape.head_dim <= 1024:
            rope = models.parse("transformer")[0].Model.build_rope
            stub = type("Stub", (), {"shape": shape})()
            frequency = rope(stub, shape.head_dim)._frequency
            assert frequency.isfinite().all() and (frequency >= 0).all()

    fuzz(CONFIG, body, examples)


@tiers(30, 400)
def test_config_files(examples, tmp_path):
    """The file as a whole: text that is no JSON, or other JSON, or not the tensors' config."""
    write_checkpoint(tmp_path, "llama")
    text = json.dumps(config_of("llama"))
    values = st.tuples(CHANGES, st.booleans()).map(lambda d: json.dumps(config_of("llama") | d[0]))

    def body(drawn: str) -> None:
        (tmp_path / "config.json").write_text(drawn, encoding="utf-8", errors="surrogatepass")
        try:
            open_checkpoint(tmp_path)
        except PretrainedError as error:
            clean(error)

    fuzz(mutated(text) | values | JSON.map(json.dumps), body, examples)


# --- safetensors --------------------------------------------------------------------------------


def damages(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bits flipped, bytes cut off, inserted or removed; or the header rewritten, its length right or not."""
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8:end]), whole[end:]
    place = st.integers(0, end + 8) | st.integers(0, len(whole) - 1)

    def flip(bits: list[tuple[int, int]]) -> bytes:
        changed = bytearray(whole)
        for at, bit in bits:
            changed[at] ^= 1 << bit
        return bytes(changed)

    def pack(changed: dict, lie: int = 0) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", (len(text) + lie) % 2**64) + text + data

    def swap(drawn) -> bytes:
        """Two tensors trade a field, or their names: all numbers stay plausible."""
        one, other, key = drawn
        a, b = header[one], header[other]
        if not key:
            return pack(header | {one: b, other: a})
        return pack(header | {one: a | {key: b[key]}, other: b | {key: a[key]}})

    def rewrite(drawn) -> bytes:
        name, key, value, lie = drawn
        entry = {**header.get(name, {}), key: value} if key else value
        return pack({**header, name: entry}, lie)

    names, keys = (
        st.sampled_from([n for n in header if n != "__metadata__"]),
        ["dtype", "shape", "data_offsets"],
    )
    counts = st.lists(st.integers(-1, 40) | st.integers(-1, 2**65), max_size=3)
    dtypes = st.sampled_from(["F64", "F16", "BF16", "F8_E5M2", "BOOL", "I64"])
    return st.one_of(
        st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=3).map(flip),
        place.map(lambda n: whole[:n]),
        st.tuples(place, st.binary(max_size=9)).map(lambda d: whole[: d[0]] + d[1] + whole[d[0] :]),
        st.tuples(place, place).map(lambda d: whole[: d[0]] + whole[d[1] :]),
        st.tuples(names, names, st.sampled_from([*keys, ""])).map(swap),
        st.tuples(names, st.sampled_from(keys), counts | dtypes, st.just(0)).map(rewrite),
        st.tuples(
            names | TEXT,
            st.sampled_from([*keys, "further", ""]),
            counts | JSON,
            st.just(0) | st.integers(-9, 9) | st.integers(0, 2**64),
        ).map(rewrite),
    )


@tiers(60, 1000)
def test_safetensors(examples, tmp_path):
    """Damaged files are refused, or read as the reference library reads them: what it refuses, we do."""
    write_checkpoint(tmp_path, "qwen3")
    path = tmp_path / "model.safetensors"
    shape = open_checkpoint(tmp_path).shape
    expected = {k: v.shape for k, v in models.build("transformer", shape).state_dict().items()}

    def body(content: bytes) -> None:
        path.write_bytes(content)
        try:
            pretrained = open_checkpoint(tmp_path)
            state = pretrained.state()
        except PretrainedError as error:
            clean(error)
            return
        assert {k: v.shape for k, v in state.items()} == expected
        theirs = safetensors.torch.load(content)
        norm = state["norm.weight"].view(torch.uint8)
        assert torch.equal(norm, theirs["model.norm.weight"].view(torch.uint8))

    fuzz(damages(path.read_bytes()), body, examples)
