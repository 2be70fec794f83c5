"""Initial values, and the induction heads that let a small network retrieve from the first minutes on.

An induction head answers "what followed the last time these bytes occurred?". That needs a key at j
that hashes the bytes *before* j, and a query at i that hashes the bytes *up to* i in the same way.
A causal convolution (y_t = sum_j w_j x_{t-j}) on projected q and k can say exactly that:

    taps of q   [t0, t1, t2, 0]     q_i = t0 x_i     + t1 x_{i-1} + t2 x_{i-2}
    taps of k   [0, t0, t1, t2]     k_j = t0 x_{j-1} + t1 x_{j-2} + t2 x_{j-3}
    W_q = W_k                       so q_i = k_j wherever three bytes match, and logit = 10 * cosine

    bytes    ... i  s  4  7 ...        ... i  s  ?
                       ^ key: hash("s i _")   ^ query: hash("s i _")

The taps are random per channel, so that order counts. It is an initial value only: all of it is
trained, and values and output stay ordinary. Networks so trained *began* with retrieval; that
they retrieve says nothing about whether they would have learned to. State it with their numbers.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

#: Fall of the taps with distance: nearer bytes weigh more in the hash.
HASH_TAPS = (1.0, 0.8, 0.6)


def induction_note(heads: int, self_layers: int = 0) -> str:
    """What goes into the card of a network that began with induction heads; 0 self layers: half of them."""
    where = "layer that reads the shared cache" if self_layers else "global layer in the upper half"
    return (
        f"Hand-set start: {heads} heads of each {where} began as induction heads (query and key hash three "
        "bytes alike); all parameters were trained from there."
    )


def _generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of one parameter, from seed and name alone: layouts share what they have in common."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> list[str]:
    """Set every parameter to the recipe's initial value; the same on every device.

    Linears N(0, .7 / sqrt(fan_in)); `out` and `down` 0, so that the residual stream begins as the
    embedding; embedding N(0, .5); head N(0, .02); convolution taps 1 + .1 N at the current token and
    .1 N before; query and key scales sqrt(10) (logit scale 10); norm gains 1. Returns the names of
    the parameters that the recipe does not know: they keep what their module gave them.
    """
    modules = dict(model.named_modules())
    unknown = []
    # An embedding that the network multiplies by sqrt(dim) starts that much smaller.
    scaled = getattr(getattr(model, "options", None), "embed_scale", False)
    embed_std = 0.5 / model.shape.dim**0.5 if scaled else 0.5
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module, label = modules[owner], owner.rpartition(".")[2]
        noise = torch.randn(parameter.shape, generator=_generator(seed, name))
        if label in ("embed", "head"):
            value = noise * (embed_std if label == "embed" else 0.02)
        elif isinstance(module, nn.Linear) and leaf == "weight":
            value = noise * (0.0 if label in ("out", "down") else 0.7 / module.in_features**0.5)
        elif label.endswith("conv") and parameter.dim() == 2:
            value = 0.1 * noise
            value[:, 0] += 1
        elif leaf in ("q_scale", "k_scale"):
            value = torch.full_like(noise, 10**0.5)
        elif leaf == "norm_gain" or (parameter.dim() == 1 and "norm" in label):
            value = torch.ones_like(noise)
        else:
            unknown.append(name)
            continue
        parameter.copy_(value)
    return unknown


@torch.no_grad()
def induction_heads(model: nn.Module, heads: int = 2, seed: int = 0) -> None:
    """Turn the first `heads` heads of each global layer in the upper half into induction heads, in place.

    Transformer: layers L/2 .. L-1, each with its own key. YOCO: every cross layer, whose queries
    all take after the one shared key. 0 heads do nothing. Raises ValueError where a layer has no
    convolution of at least 4 taps or no softmax, where heads share keys (GQA), or where rotary positions
    turn every channel: then a match would count less with distance, and the heads would be none.
    """
    if heads == 0:
        return
    shape = model.shape
    if heads > shape.num_heads or heads < 0:
        raise ValueError(f"induction heads need 0 to {shape.num_heads} heads, not {heads}.")
    if shape.num_heads != shape.num_kv_heads:
        raise ValueError(
            "induction heads need as many KV heads as query heads: with GQA a key serves several."
        )
    if getattr(model.options, "rope", "shape") == "official":
        raise ValueError(
            "hand-set induction heads need cross layers without rotary positions, and rope=official turns "
            "them all; train with --induction-heads 0."
        )
    channels, all_heads = heads * shape.head_dim, shape.num_heads * shape.head_dim
    if hasattr(model, "kv"):
        hash_KC = _hash_taps(channels, seed, "kv")
        _check_taps(model, "kv_conv", "the shared key")
        _set_taps(model.kv_conv.weight[:channels], hash_KC, delay=1)
        for layer, block in enumerate(model.blocks):
            if hasattr(block.mixer, "q"):
                _check_taps(block.mixer, "conv", f"layer {layer + 1}")
                block.mixer.q.weight[:channels] = model.kv.weight[:channels]
                _set_taps(block.mixer.conv.weight[:channels], hash_KC, delay=0)
        return
    for layer in range(len(model.blocks) // 2, len(model.blocks)):
        mixer = model.blocks[layer].mixer
        if not hasattr(mixer, "qkv") or hasattr(mixer, "decay"):
            raise ValueError(f"layer {layer + 1} has no softmax queries and keys for induction heads.")
        _check_taps(mixer, "conv", f"layer {layer + 1}")
        hash_KC = _hash_taps(channels, seed, f"blocks.{layer}")
        key = slice(all_heads, all_heads + channels)
        mixer.qkv.weight[:channels] = mixer.qkv.weight[key].clone()
        _set_taps(mixer.conv.weight[:channels], hash_KC, delay=0)
        _set_taps(mixer.conv.weight[key], hash_KC, delay=1)


def _hash_taps(channels: int, seed: int, name: str) -> Tensor:
    noise_KC = torch.randn(len(HASH_TAPS), channels, generator=_generator(seed, f"induction:{name}"))
    return noise_KC * torch.tensor(HASH_TAPS)[:, None]


def _check_taps(owner: nn.Module, attribute: str, where: str) -> None:
    conv = getattr(owner, attribute, None)
    taps = 0 if conv is None else conv.weight.shape[1]
    if taps <= len(HASH_TAPS):
        needed = len(HASH_TAPS) + 1
        raise ValueError(f"induction heads need a convolution of at least {needed} taps; {where} has {taps}.")


def _set_taps(weight_CK: Tensor, hash_KC: Tensor, delay: int) -> None:
    """Write the hash into a view of convolution weights, `delay` bytes later; other taps become 0."""
    weight_CK.zero_()
    weight_CK[:, delay : delay + len(hash_KC)] = hash_KC.T
