"""Tiny networks of `transformers` with random weights, and the same logits asked of both sides."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from models import checkpoint
from models.pretrained import open_checkpoint

transformers = pytest.importorskip("transformers", reason="parity needs the dev extra: transformers")

SIZES = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5,
)  # fmt: skip
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter matters, and logits are of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(noise / parameter.shape[1] ** 0.5 * (1.0 if "embed" in name else 1.5))
        else:
            parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))


def theirs(folder: Path, family: str, **options):
    """A network of transformers in eval mode, saved to `folder` in several shards."""
    config = getattr(transformers, f"{CLASSES[family]}Config")(**(SIZES | options))
    model = getattr(transformers, f"{CLASSES[family]}ForCausalLM")(config)
    randomise(model)
    model.requires_grad_(False).eval().save_pretrained(folder, max_shard_size="12KB")
    return model


def ours(folder: Path):
    """The same checkpoint in our decoder, fp32."""
    pretrained = open_checkpoint(folder)
    model = models.build("transformer", pretrained.shape).requires_grad_(False).eval()
    checkpoint.assign(model, pretrained.state(torch.float32), pretrained.name)
    return model


def draw(length: int) -> torch.Tensor:
    """Token ids (2, length)."""
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(1))


def their_logits(model, tokens_BT: torch.Tensor, prompt: int) -> torch.Tensor:
    """All logits (B,T,V): `prompt` tokens in one call, then token by token through their own cache."""
    first = model(tokens_BT[:, :prompt], use_cache=True)
    outs, cache = [first.logits], first.past_key_values
    for t in range(prompt, tokens_BT.shape[1]):
        step = model(tokens_BT[:, t : t + 1], past_key_values=cache, use_cache=True)
        outs.append(step.logits)
    return torch.cat(outs, 1)


def our_logits(model, tokens_BT: torch.Tensor, prompt: int) -> torch.Tensor:
    """As `their_logits`, through a cache of ours."""
    B, T = tokens_BT.shape
    cache = model.new_cache(B, T, prompts=[prompt] * B)
    outs = [model.extend(tokens_BT[:, :prompt], None, cache, logits="all")]
    outs += [model.decode(tokens_BT[:, t], cache)[:, None] for t in range(prompt, T)]
    return torch.cat(outs, 1)
