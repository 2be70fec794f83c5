"""Models in llama2.c's first format ("version 0", karpathy/llama2.c export.py): sizes, then fp32 matrices.

    7 int32    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len (little-endian)
    float32    embedding; then for all layers together: attention norm, wq, wk, wv, wo, FFN norm, w1 (gate),
               w2 (down), w3 (up); final norm; two tables of cos and sin that nobody needs; the output matrix

A negative vocab_size means an output matrix of its own, else it is the embedding. Rotary pairs are
neighbours in a head, so rows of wq and wk are brought into half-split order when they are read.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from ..architecture import Shape
from .config import MOST, Config
from .files import PretrainedError, read_at, regular_size
from .names import HEAD
from .rope import MOST_POSITIONS
from .tensors import FileTensor

#: First int32 of versions 1 and 2 ("ak42").
_LATER = 0x616B3432


def read(path: Path) -> tuple[Config, dict[str, FileTensor]]:
    """Config and tensors under the names of transformers. Raises PretrainedError."""
    size = regular_size(path)
    start = read_at(path, 0, min(size, 28))
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        raise PretrainedError(
            f"{path} is a pickle, not llama2.c's format; name its folder and allow pickle (--allow-pickle)."
        )
    if len(start) < 28:
        raise PretrainedError(f"{path} is not in llama2.c's format: it has {size} bytes.")
    dim, ffn, layers, heads, kv_heads, vocab, positions = struct.unpack("<7i", start)
    if dim == _LATER:
        raise PretrainedError(
            f"{path} is in a later format of llama2.c than version 0, the one that is read."
        )
    tied, vocab = vocab > 0, abs(vocab)
    sizes = ((dim, "width"), (ffn, "width"), (layers, "layers"), (heads, "heads"), (kv_heads, "heads"))
    fits = all(0 < n <= MOST[kind] for n, kind in (*sizes, (vocab, "vocab"))) and positions > 0
    if not fits or positions > MOST_POSITIONS or dim % heads or heads % kv_heads or dim // heads % 2:
        raise PretrainedError(f"{path} is not in llama2.c's format: its header describes no network.")
    shape = Shape(path.stem, vocab, dim, layers, heads, kv_heads, ffn, norm_eps=1e-5, tied=tied)
    tensors, end = _layout(path, shape, positions)
    if end != size:
        raise PretrainedError(f"{path} has {size} bytes, but its llama2.c header describes {end}.")
    # Stories are separated by BOS alone, which therefore ends one, too.
    return Config("llama2c", shape, positions, 1, (1, 2)), tensors


def _layout(path: Path, s: Shape, positions: int) -> tuple[dict[str, FileTensor], int]:
    q, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
    tensors: dict[str, FileTensor] = {}
    end = 28

    def place(name: str, *shape: int, turned: int = 0) -> None:
        nonlocal end
        tensors[name] = FileTensor(path, end, torch.float32, shape, turned)
        end += tensors[name].nbytes

    def per_layer(name: str, *shape: int, turned: int = 0) -> None:
        for layer in range(s.num_layers):
            place(f"model.layers.{layer}.{name}.weight", *shape, turned=turned)

    place("model.embed_tokens.weight", s.vocab, s.dim)
    per_layer("input_layernorm", s.dim)
    per_layer("self_attn.q_proj", q, s.dim, turned=s.head_dim)
    per_layer("self_attn.k_proj", kv, s.dim, turned=s.head_dim)
    per_layer("self_attn.v_proj", kv, s.dim)
    per_layer("self_attn.o_proj", s.dim, q)
    per_layer("post_attention_layernorm", s.dim)
    per_layer("mlp.gate_proj", s.ffn_dim, s.dim)
    per_layer("mlp.down_proj", s.dim, s.ffn_dim)
    per_layer("mlp.up_proj", s.ffn_dim, s.dim)
    place("model.norm.weight", s.dim)
    end += 4 * positions * s.head_dim  # cos and sin
    if not s.tied:
        place(HEAD, s.vocab, s.dim)
    return tensors, end
