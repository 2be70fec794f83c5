"""Whatever lies in a checkpoint's config.json and safetensors is read as it should be or is one sentence.

How inputs are drawn is in fuzz_help.py.
"""

from __future__ import annotations

import json
import struct

import safetensors.torch
import torch
from fuzz_help import JSON, NUMBERS, TEXT, clean, fuzz, mutated, tiers
from hypothesis import strategies as st
from pretrained_help import CONFIGS, config_of, write_checkpoint

import models
from models.pretrained import PretrainedError, open_checkpoint
from models.pretrained.config import parse
from models.pretrained.unsupported import HARMLESS

# --- config.json ----------------------------------------------------------------------------------

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
).map(lambda drawn: {key: ROPE[key] for key in sorted(drawn[0])} | {"rope_type": drawn[2]} | drawn[1])
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


# --- safetensors ----------------------------------------------------------------------------------


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
