"""llama2.c's format: a real pretrained Llama token by token, and the same weights in both formats."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from pretrained_help import config_of, write_checkpoint

import models
from models import checkpoint
from models.pretrained import PretrainedError, open_checkpoint

#: Order of a layer's tensors in the file; each is written for all layers before the next.
BEFORE_FFN = ("input_layernorm", *(f"self_attn.{x}_proj" for x in "qkvo"), "post_attention_layernorm")
FFN = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def interleaved(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of q or k in llama2.c's order: pair i of a head in rows 2i and 2i+1, not in i and i + D/2."""
    order = [i // 2 + (head_dim // 2) * (i % 2) for i in range(head_dim)]
    heads = rows.unflatten(0, (-1, head_dim))
    return torch.stack([heads[:, row] for row in order], 1).flatten(0, 1)


def write_llama2c(path: Path, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    """What llama2.c's exporter writes, from tensors under the names of transformers."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head_dim = config["hidden_size"] // heads
    tied = "lm_head.weight" not in tensors
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    sizes = [config[name] for name in names]
    vocab = config["vocab_size"] * (1 if tied else -1)
    parts = [tensors["model.embed_tokens.weight"]]
    for name in (*BEFORE_FFN, *FFN):
        for layer in range(layers):
            tensor = tensors[f"model.layers.{layer}.{name}.weight"]
            parts.append(interleaved(tensor, head_dim) if name[-6:] in ("q_proj", "k_proj") else tensor)
    parts += [tensors["model.norm.weight"], torch.full((config["max_position_embeddings"], head_dim), 9.0)]
    parts += [] if tied else [tensors["lm_head.weight"]]
    data = b"".join(part.contiguous().numpy().tobytes() for part in parts)
    path.write_bytes(struct.pack("<7i", *sizes, vocab, config["max_position_embeddings"]) + data)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (2, 1)])
def test_one_network_in_two_formats(heads, tied, tmp_path):
    """A random network gives equal state from a hub folder and from a llama2.c file."""
    changes = dict(
        hidden_size=32, num_attention_heads=heads[0], num_key_value_heads=heads[1], rms_norm_eps=1e-5,
        tie_word_embeddings=tied, num_hidden_layers=3,
    )  # fmt: skip
    tensors = write_checkpoint(tmp_path, "llama", **changes)
    write_llama2c(tmp_path / "net.bin", config_of("llama", **changes), tensors)
    ours, hub = open_checkpoint(tmp_path / "net.bin"), open_checkpoint(tmp_path)
    assert (ours.name, ours.family, ours.context_length) == ("net", "llama2c", 64)
    assert vars(ours.shape) | {"name": hub.shape.name} == vars(hub.shape)
    state, expected = ours.state(), hub.state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture
def file(tmp_path) -> Path:
    write_llama2c(tmp_path / "net.bin", config_of("llama"), write_checkpoint(tmp_path, "llama"))
    return tmp_path / "net.bin"


def header(*sizes: int):
    return lambda data: struct.pack("<7i", *sizes) + data[28:]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: b"", "0 bytes"),
        (lambda data: data[:27], "27 bytes"),
        (lambda data: data[:-1], "describes"),
        (lambda data: data + b"\0", "describes"),
        (lambda data: struct.pack("<I", 0x616B3432) + data[4:], "version 0"),
        (lambda data: b"PK\x03\x04" + data[4:], "--allow-pickle"),
        (lambda data: b"\x80\x02" + data[2:], "--allow-pickle"),
        (header(0, 12, 2, 2, 1, 17, 64), "no network"),
        (header(8, -12, 2, 2, 1, 17, 64), "no network"),
        (header(8, 12, 2, 3, 1, 17, 64), "no network"),
        (header(8, 12, 2, 2, 3, 17, 64), "no network"),
        (header(8, 12, 2, 8, 1, 17, 64), "no network"),
        (header(8, 12, 2, 2, 1, 0, 64), "no network"),
        (header(8, 12, 2, 2, 1, 17, -64), "no network"),
        (header(8, 12, 2, 2, 1, -(2**31), 64), "no network"),
        (header(8, 12, 10_000, 2, 1, 17, 64), "describes"),
        (header(8, 12, 2, 2, 1, -17, 64), "describes"),
    ],
)
def test_other_files_are_refused(change, word, file):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(PretrainedError, match=word) as caught:
        open_checkpoint(file)
    assert str(caught.value).endswith(".") and "net.bin" in str(caught.value)


@pytest.fixture
def tiny_lm() -> Path:
    folder = os.environ.get("KVMARK_DATA")
    if not folder or not (Path(folder) / "tiny_lm" / "stories260K.bin").exists():
        pytest.skip("KVMARK_DATA names no folder with tiny_lm/stories260K.bin")
    return Path(folder) / "tiny_lm"


@torch.no_grad()
def test_stories260k_tells_its_story(tiny_lm):
    """Greedy decoding from BOS gives the 201 reference ids, its first logits and its mean log probability."""
    reference = json.loads((tiny_lm / "reference.json").read_text())
    pretrained = open_checkpoint(tiny_lm / "stories260K.bin")
    model = models.build("transformer", pretrained.shape)
    checkpoint.assign(model, pretrained.state(), pretrained.name)
    expected = reference["token_ids"]
    cache = model.new_cache(1, pretrained.context_length)
    ids, chosen = [pretrained.bos], []
    logits = model.extend(torch.tensor([ids]), None, cache)
    for token, value in reference["top5_logits_after_BOS"][0:5]:
        assert logits[0, token] == pytest.approx(value, abs=1e-4)
    assert logits[0].topk(5).indices.tolist() == [token for token, _ in reference["top5_logits_after_BOS"]]
    while len(ids) < len(expected):
        token = int(logits[0].argmax())
        chosen.append(float(logits[0].log_softmax(-1)[token]))
        ids.append(token)
        logits = model.decode(torch.tensor([token]), cache)
    assert ids == expected
    assert sum(chosen) / len(chosen) == pytest.approx(reference["mean_logprob_of_greedy_tokens"], abs=1e-5)
