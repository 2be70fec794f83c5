"""Which tensors of a checkpoint become which of ours.

ours (models/decoder.py)             transformers
embed.weight                         model.embed_tokens.weight
blocks.I.norm1.weight                model.layers.I.input_layernorm.weight
blocks.I.mixer.qkv.weight | bias     …self_attn.{q,k,v}_proj, rows one below the other
blocks.I.mixer.{q,k}_norm.weight     …self_attn.{q,k}_norm.weight
blocks.I.mixer.out.weight | bias     …self_attn.o_proj
blocks.I.norm2.weight                …post_attention_layernorm.weight
blocks.I.ffn.gate_up.weight | bias   …mlp.{gate,up}_proj, rows one below the other
blocks.I.ffn.down.weight | bias      …mlp.down_proj
norm.weight                          model.norm.weight
head.weight                          lm_head.weight; absent where tied
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..architecture import Shape
from .files import PretrainedError, shown
from .tensors import Stored

#: Buffers that old versions of transformers saved; they follow from the config.
DERIVED = ".rotary_emb.inv_freq"

HEAD = "lm_head.weight"

#: (name in the checkpoint, shape); several are stacked along their rows.
Parts = tuple[tuple[str, tuple[int, ...]], ...]


def needed(shape: Shape) -> dict[str, Parts]:
    """Our name -> the parts of it, for every parameter of the decoder that `shape` describes."""
    parts: dict[str, Parts] = {"embed.weight": (("model.embed_tokens.weight", (shape.vocab, shape.dim)),)}
    for layer in range(shape.num_layers):
        parts |= {
            f"blocks.{layer}.{ours}": theirs for ours, theirs in _block(shape, f"model.layers.{layer}.")
        }
    parts["norm.weight"] = (("model.norm.weight", (shape.dim,)),)
    if not shape.tied:
        parts["head.weight"] = ((HEAD, (shape.vocab, shape.dim)),)
    return parts


def _block(s: Shape, prefix: str) -> Iterator[tuple[str, Parts]]:
    q, kv = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
    linears = {
        "mixer.qkv": (
            s.qkv_bias,
            s.dim,
            {"self_attn.q_proj": q, "self_attn.k_proj": kv, "self_attn.v_proj": kv},
        ),
        "mixer.out": (s.out_bias, q, {"self_attn.o_proj": s.dim}),
        "ffn.gate_up": (s.ffn_bias, s.dim, {"mlp.gate_proj": s.ffn_dim, "mlp.up_proj": s.ffn_dim}),
        "ffn.down": (s.ffn_bias, s.ffn_dim, {"mlp.down_proj": s.dim}),
    }
    for ours, (bias, width, rows) in linears.items():
        yield f"{ours}.weight", tuple((f"{prefix}{name}.weight", (n, width)) for name, n in rows.items())
        if bias:
            yield f"{ours}.bias", tuple((f"{prefix}{name}.bias", (n,)) for name, n in rows.items())
    norms = {"norm1": ("input_layernorm", s.dim), "norm2": ("post_attention_layernorm", s.dim)}
    if s.qk_rms:
        norms |= {f"mixer.{x}_norm": (f"self_attn.{x}_norm", s.head_dim) for x in "qk"}
    for ours, (name, width) in norms.items():
        yield f"{ours}.weight", ((f"{prefix}{name}.weight", (width,)),)


def compare(stored: Mapping[str, Stored], shape: Shape, where: str) -> dict[str, Parts]:
    """`needed(shape)`, once every tensor is there with its shape, and none besides.

    A tied network may store its output matrix too; whether it equals the embedding is seen on reading.
    Raises PretrainedError naming the first difference.
    """
    if len(stored) < shape.num_layers:  # before names are made for layers that cannot be there
        raise PretrainedError(f"{where} has {len(stored)} tensors, too few for {shape.num_layers} layers.")
    parts = needed(shape)
    wanted = dict(part for group in parts.values() for part in group)
    if shape.tied and HEAD in stored:
        wanted[HEAD] = (shape.vocab, shape.dim)
    for name, size in wanted.items():
        if name not in stored:
            raise PretrainedError(f"{where} lacks tensor {shown(name)} that its config.json asks for.")
        if stored[name].shape != size:
            raise PretrainedError(
                f"tensor {shown(name)} in {where} is {stored[name].shape}, its config.json asks for {size}."
            )
    for name in stored:
        if name not in wanted and not name.endswith(DERIVED):
            raise PretrainedError(
                f"{where} has tensor {shown(name)} that its config.json does not account for."
            )
    return parts
