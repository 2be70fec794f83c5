"""Checkpoints in the hub's layout: what is loaded, and the one sentence for what is not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pretrained_help import CONFIGS, config_of, write_checkpoint, write_config

import models
from models.pretrained import PretrainedError, hashing, open_checkpoint
from models.pretrained.config import parse
from models.pretrained.unsupported import HARMLESS
from models.rope import RopeScaling


def refused(folder: Path, **options) -> str:
    """The sentence with which a checkpoint is refused, at the latest when its tensors are read."""
    with pytest.raises(PretrainedError) as caught:
        open_checkpoint(folder, **options).state()
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".") and len(sentence) < 600
    return sentence


@pytest.fixture
def llama(tmp_path) -> Path:
    write_checkpoint(tmp_path / "llama", "llama")
    return tmp_path / "llama"


# --- what is loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"head_dim": 10}], ids=str)
def test_state_fits_the_decoder_exactly(family, changes, tmp_path):
    """Names, shapes and dtypes of `state` are those of the network that `shape` builds."""
    tensors = write_checkpoint(tmp_path, family, **changes)
    pretrained = open_checkpoint(tmp_path)
    assert pretrained.family == family and pretrained.context_length == 64
    expected = models.build("transformer", pretrained.shape).state_dict()
    for dtype in (None, torch.float64, torch.bfloat16):
        state = pretrained.state(dtype)
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
        assert {tensor.dtype for tensor in state.values()} == {dtype or torch.float32}
    state = pretrained.state()
    q, k, v = (tensors[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    assert torch.equal(state["blocks.1.mixer.qkv.weight"], torch.cat([q, k, v]))
    assert torch.equal(state["embed.weight"], tensors["model.embed_tokens.weight"])
    state["norm.weight"].zero_()  # memory of its own: nothing leads back to the file
    assert open_checkpoint(tmp_path).state()["norm.weight"].any()


def test_special_tokens(tmp_path):
    """generation_config.json wins over config.json; null is none; absence is the family's default."""
    write_checkpoint(tmp_path, "llama", eos_token_id=[2, 3], bos_token_id=4)
    assert (open_checkpoint(tmp_path).bos, open_checkpoint(tmp_path).eos) == (4, (2, 3))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5, "bos_token_id": null}')
    assert (open_checkpoint(tmp_path).bos, open_checkpoint(tmp_path).eos) == (4, (5,))
    for family, bos, eos in (
        ("llama", 1, (2,)),
        ("mistral", 1, (2,)),
        ("qwen2", None, ()),
        ("qwen3", None, ()),
    ):
        config = config_of(family)
        config.pop("bos_token_id", None), config.pop("eos_token_id", None)
        parsed = parse(config, "x", "config.json", {})
        assert (parsed.bos, parsed.eos) == (bos, eos)
        assert parse(config | {"bos_token_id": None}, "x", "config.json", {}).bos is None


def test_names_and_links(llama, tmp_path):
    """A checkpoint is called as its user calls it; files and folders may be links (hub caches are)."""
    (tmp_path / "mine").symlink_to(llama)
    assert open_checkpoint(tmp_path / "mine").name == "mine"
    assert open_checkpoint(llama / ".").name == "llama"
    blob = tmp_path / "blob"
    (llama / "model.safetensors").rename(blob)
    (llama / "model.safetensors").symlink_to(blob)
    assert open_checkpoint(llama).state()
    blob.unlink()
    assert "model.safetensors" in refused(llama)


def test_a_tied_matrix_may_be_stored_if_it_is_the_embedding(llama):
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    safetensors.torch.save_file(both, llama / "model.safetensors")
    assert "head.weight" not in open_checkpoint(llama).state()
    both["lm_head.weight"][0, 0] += 1
    safetensors.torch.save_file(both, llama / "model.safetensors")
    assert "tied" in refused(llama)


def test_rotary_buffers_of_old_checkpoints_are_passed_over(llama):
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    safetensors.torch.save_file(tensors, llama / "model.safetensors")
    assert open_checkpoint(llama).state()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 2}, RopeScaling("linear", 2.0)),
        ({"rope_type": "default"}, None),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
             "original_max_position_embeddings": 16},
            RopeScaling("llama3", 8.0, 16, 1.0, 4.0),
        ),
        ({"type": "yarn", "factor": 4.0}, RopeScaling("yarn", 4.0, 64, amplitude=1.1386294361119891)),
        (
            {"type": "yarn", "original_max_position_embeddings": 16, "attention_factor": 1,
             "truncate": False},
            RopeScaling("yarn", 4.0, 16, truncate=False),
        ),
    ],
)  # fmt: skip
def test_rope_scalings(scaling, expected):
    """Both spellings give the same scaling; what is not stated follows from max_position_embeddings."""
    for key in ("rope_scaling", "rope_parameters"):
        parsed = parse(config_of("llama", **{key: scaling}), "x", "config.json", {})
        assert parsed.shape.rope_scaling == expected
        assert parsed.shape.rope_base == 10_000
    stretched = {"yarn": lambda s: max(64, 4 * s.original_positions), "linear": lambda s: 2 * 64}
    known = expected and stretched.get(expected.kind)
    assert parsed.context_length == (known(expected) if known else 64)


# --- what is not supported ----------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHORT = YARN | {"original_max_position_embeddings": 1}

UNSUPPORTED = [
    ("llama", {"model_type": "mixtral"}, "'mixtral' .* known: llama, mistral, qwen2, qwen3"),
    ("llama", {"model_type": None}, "'model_type' is missing"),
    ("llama", {"model_type": ["llama"]}, "model_type"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"num_local_experts": 8}, "num_local_experts=8"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"attention_sinks": True}, "attention_sinks"),
    ("qwen2", {"is_causal": False}, "is_causal=False"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "mine.Model"}}, "code of its own"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' .* linear, llama3, yarn"),
    ("llama", {"rope_scaling": {"rope_type": ["linear"]}}, "rope type"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "'factor' .* number"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama", {"rope_scaling": {"type": "linear"}, "rope_parameters": {"factor": 2}}, "they differ"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per kind of layer"),
    ("llama", {"rope_scaling": YARN | {"beta_fast": 1.0}}, "beta_fast"),
    ("llama", {"rope_scaling": SHORT, "head_dim": 64}, "no rotary pair"),
    ("llama", {"rope_scaling": SHORT | {"truncate": False}}, "no rotary pair"),
    ("llama", {"rope_scaling": YARN | {"truncate": 1}}, "truncate"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("llama", {"rope_theta": 1}, "rope_theta"),
    ("llama", {"sliding_window": 8}, "Llama does not have"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "contradict"),
    ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "full_attention and sliding"),
    ("qwen2", {"layer_types": ["full_attention"]}, "list of 2 entries"),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2}, "contradict"),
    ("qwen2", {"use_sliding_window": "yes"}, "true or false"),
    ("qwen3", {"head_dim": None}, "'head_dim' is missing"),
    ("llama", {"head_dim": 3}, "even head_dim"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"hidden_size": 9}, "divisible"),
    ("llama", {"hidden_size": True}, "hidden_size"),
    ("llama", {"hidden_size": 8.0}, "whole number"),
    ("llama", {"num_hidden_layers": 10**6}, "10000"),
    ("llama", {"num_hidden_layers": 9999}, "too few"),
    ("llama", {"num_hidden_layers": 10**1000}, "huge number"),
    ("llama", {"vocab_size": None}, "'vocab_size' is missing"),
    ("llama", {"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
    ("llama", {"bos_token_id": 17}, "bos_token_id"),
    ("llama", {"bos_token_id": [1, 2]}, "one token id"),
    ("llama", {"eos_token_id": "</s>"}, "eos_token_id"),
    ("llama", {"attention_bias": True}, "lacks tensor"),
    ("llama", {"mlp_bias": True}, "lacks tensor"),
    ("llama", {"tie_word_embeddings": False}, "lacks tensor 'lm_head.weight'"),
    ("llama", {"intermediate_size": 13}, "asks for"),
    ("llama", {"num_hidden_layers": 1}, "does not account for"),
    ("llama", {"model_type": "qwen2"}, "lacks tensor .*bias"),
    ("qwen2", {"model_type": "llama", "sliding_window": None}, "does not account for"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "words"), UNSUPPORTED)
def test_what_we_do_not_compute_is_refused_by_name(family, changes, words, tmp_path):
    write_checkpoint(tmp_path, family)
    write_config(tmp_path, config_of(family) | changes)
    assert re.search(words, refused(tmp_path))


def test_mistral_must_say_whether_it_has_a_window():
    config = config_of("mistral")
    del config["sliding_window"]
    with pytest.raises(PretrainedError, match="'sliding_window' is missing"):
        parse(config, "x", "config.json", {})


@pytest.mark.parametrize("key", HARMLESS)
def test_every_listed_key_is_refused_unless_its_value_changes_nothing(key):
    for value in (*HARMLESS[key], None):
        assert parse(config_of("llama", **{key: value}), "x", "config.json", {})
    with pytest.raises(PretrainedError, match=f"{key}=7 "):
        parse(config_of("llama", **{key: 7}), "x", "config.json", {})


# --- pickles ------------------------------------------------------------------------------------


@pytest.fixture
def pickled(llama) -> Path:
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    (llama / "model.safetensors").rename(llama.parent / "there")
    torch.save(tensors, llama / "pytorch_model.bin")
    return llama


def test_a_pickle_is_read_only_on_request(pickled):
    """Without request one sentence says what it is; with it, the tensors are those of safetensors."""
    assert "--allow-pickle" in refused(pickled)
    state = open_checkpoint(pickled, allow_pickle=True).state()
    assert open_checkpoint(pickled, allow_pickle=True).fingerprint
    (pickled.parent / "there").rename(pickled / "model.safetensors")
    expected = open_checkpoint(pickled).state()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_shards(pickled, zipped):
    tensors = list(torch.load(pickled / "pytorch_model.bin").items())
    (pickled / "pytorch_model.bin").unlink()
    places = {}
    for i, part in enumerate((tensors[:5], tensors[5:])):
        file = f"pytorch_model-{i}.bin"
        torch.save(dict(part), pickled / file, _use_new_zipfile_serialization=zipped)
        places |= {name: file for name, _ in part}
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert "--allow-pickle" in refused(pickled)
    assert open_checkpoint(pickled, allow_pickle=True).state()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("content", [{"a": Hostile()}, [1, 2], {"a": 1}, {3: torch.ones(1)}, b"\x80\x02junk"])
def test_a_pickle_with_anything_but_tensors_is_refused(content, pickled, monkeypatch):
    monkeypatch.chdir(pickled)
    if isinstance(content, bytes):
        (pickled / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, pickled / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(pickled, allow_pickle=True)
    assert not (pickled / "hacked").exists()


# --- fingerprints -------------------------------------------------------------------------------


def test_fingerprints_tell_weights_and_configs_apart(llama, tmp_path):
    """Equal files, equal fingerprints; a changed tensor or config changes it, a changed path does not."""
    first = open_checkpoint(llama).fingerprint
    write_checkpoint(tmp_path / "b" / "copy", "llama")
    assert open_checkpoint(tmp_path / "b" / "copy").fingerprint == first and len(first) == 64
    data = bytearray((llama / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (llama / "model.safetensors").write_bytes(data)
    os.utime(llama / "model.safetensors", ns=(1, 1))
    second = open_checkpoint(llama).fingerprint
    write_config(llama, config_of("llama", rms_norm_eps=1e-5))
    assert len({first, second, open_checkpoint(llama).fingerprint}) == 3


def test_large_checkpoints_are_sampled(llama, monkeypatch):
    """Above the limit, blocks of every tensor are read: what touches a tensor as a whole is still seen."""
    monkeypatch.setattr(hashing, "FULL_LIMIT", 100)
    monkeypatch.setattr(hashing, "BLOCK", 4)
    monkeypatch.setattr(hashing, "_known", {})
    seen = {open_checkpoint(llama).fingerprint}
    tensors = safetensors.torch.load_file(llama / "model.safetensors")
    for i, name in enumerate(tensors):
        safetensors.torch.save_file(tensors | {name: tensors[name] * 1.5}, llama / "model.safetensors")
        os.utime(llama / "model.safetensors", ns=(i, i))
        seen.add(open_checkpoint(llama).fingerprint)
    assert len(seen) == len(tensors) + 1 and all(f.startswith("sampled-") for f in seen)


def test_a_fingerprint_is_computed_once_and_only_when_asked_for(llama, monkeypatch):
    pretrained = open_checkpoint(llama)
    monkeypatch.setattr(hashing, "_known", {})
    first = pretrained.fingerprint
    monkeypatch.setattr(hashing, "read_at", None)
    assert dataclasses.replace(pretrained, name="other").fingerprint == first


# --- memory -------------------------------------------------------------------------------------

GROWTH = """
import resource, sys, torch
from pathlib import Path
from models.pretrained import open_checkpoint
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
pretrained = open_checkpoint(Path(sys.argv[1]))
opened = peak()
state = pretrained.state()
print(peak() - opened, sum(t.numel() * t.element_size() for t in state.values()))
"""


@pytest.mark.full
def test_a_model_is_never_held_twice(tmp_path):
    """Peak memory of `state` is the model, one fused matrix and little else."""
    write_checkpoint(
        tmp_path, "llama", hidden_size=512, intermediate_size=1024, num_hidden_layers=12, vocab_size=1000
    )
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, held = map(int, done.stdout.split())
    assert 90e6 < held and grown < 1.25 * held
