"""Tiny checkpoints of each family, in the layout of Hugging Face's hub, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from models.architecture import Shape
from models.pretrained.names import needed

#: The smallest config.json of each family; every one describes a network with grouped queries.
CONFIGS = {
    "llama": {"tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 3]},
    "mistral": {"sliding_window": 5, "rms_norm_eps": 1e-5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 6, "attention_bias": True, "rope_theta": 1e6},
}

SIZES = {
    "vocab_size": 17,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


def config_of(family: str, **changes) -> dict:
    return SIZES | {"model_type": family} | CONFIGS[family] | changes


def random_tensors(shape: Shape, seed: int = 0) -> dict[str, torch.Tensor]:
    """fp32 values under the names of transformers; logits of the network are of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for parts in needed(shape).values():
        for name, size in parts:
            noise = torch.randn(size, generator=generator)
            norm = name.endswith("norm.weight")
            tensors[name] = 1 + 0.3 * noise if norm else noise / (size[-1] ** 0.5 if len(size) > 1 else 3)
    return tensors


def write_config(folder: Path, config: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write_checkpoint(folder: Path, family: str, **changes) -> dict[str, torch.Tensor]:
    """config.json and model.safetensors of a tiny network; returns the tensors."""
    from models.pretrained.config import parse

    config = config_of(family, **changes)
    write_config(folder, config)
    tensors = random_tensors(parse(config, "tiny", "config.json", {}).shape)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return tensors
