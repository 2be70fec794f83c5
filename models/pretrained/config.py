"""config.json of a Llama, Mistral, Qwen2/2.5 or Qwen3 -> our Shape, or one sentence why not.

What is known to change the computation and is not ours is refused by name (`unsupported.py`). Defaults of
absent keys are those of transformers where its own files leave keys out; sizes have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architecture import Shape
from .files import Fields, PretrainedError, shown
from .rope import MOST_POSITIONS, rope_of
from .unsupported import refuse_unsupported

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

#: Upper ends of what a config may ask for, far above any model and far below what hurts.
MOST = {"vocab": 10**8, "width": 10**7, "layers": 10_000, "heads": 100_000}


@dataclass(frozen=True)
class Config:
    """What a config.json says that matters here."""

    family: str
    shape: Shape
    context_length: int | None
    bos: int | None
    eos: tuple[int, ...]


def parse(values: dict[str, Any], name: str, where: str, generation: dict[str, Any]) -> Config:
    """`generation` is generation_config.json, whose token ids win as they do in transformers' generate."""
    config = Fields(values, where)
    family = config.raw("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise PretrainedError(f"model_type {shown(family)} in {where} is not supported; known: {known}.")
    refuse_unsupported(config, FAMILIES[family])
    shape = _shape(config, family, name)
    context = config.whole("max_position_embeddings", MOST_POSITIONS, None)
    scaling = shape.rope_scaling
    if context is not None and scaling is not None:
        # Qwen leaves max_position_embeddings at the original length when it switches YaRN on, and files with
        # linear scaling (LongChat, Vicuna-16k) say what it was before.
        if scaling.kind == "yarn":
            context = max(context, int(scaling.factor * scaling.original_positions))
        elif scaling.kind == "linear":
            context = int(scaling.factor * context)
    bos, eos = _special_tokens(config, family, shape.vocab, Fields(generation, "generation_config.json"))
    return Config(family, shape, context, bos, eos)


def _shape(config: Fields, family: str, name: str) -> Shape:
    vocab = config.whole("vocab_size", MOST["vocab"])
    dim = config.whole("hidden_size", MOST["width"])
    layers = config.whole("num_hidden_layers", MOST["layers"])
    heads = config.whole("num_attention_heads", MOST["heads"])
    # Llama 1 knew no groups and its files say nothing of them; null means the same elsewhere.
    implied = heads if family == "llama" or "num_key_value_heads" in config.values else None
    kv_heads = config.whole("num_key_value_heads", heads, *(() if implied is None else (implied,)))
    head_dim = config.whole("head_dim", MOST["width"], *(() if family == "qwen3" else (None,)))
    if head_dim is None:
        if dim % heads:
            raise PretrainedError(f"{config.where} has a hidden_size that is not divisible by its heads.")
        head_dim = dim // heads
    if head_dim % 2 or heads % kv_heads:
        raise PretrainedError(
            f"{config.where} needs an even head_dim and num_attention_heads divisible by num_key_value_heads."
        )
    attention_bias = family in ("llama", "qwen3") and config.flag("attention_bias")
    base, scaling = rope_of(config, head_dim)
    window, sliding = _sliding(config, family, layers)
    try:
        return Shape(
            name=name,
            vocab=vocab,
            dim=dim,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            ffn_dim=config.whole("intermediate_size", MOST["width"]),
            rope_base=base,
            norm_eps=config.number("rms_norm_eps", 0.0, 1.0),
            attention_head_dim=None if head_dim * heads == dim else head_dim,
            qkv_bias=attention_bias or family == "qwen2",
            out_bias=attention_bias,
            ffn_bias=family == "llama" and config.flag("mlp_bias"),
            qk_rms=family == "qwen3",
            tied=config.flag("tie_word_embeddings"),
            rope_scaling=scaling,
            sliding_window=window if sliding else None,
            sliding_layers=sliding,
        )
    except PretrainedError:
        raise
    except ValueError as error:
        raise PretrainedError(f"{config.where} describes no network of ours: {error}") from None


def _sliding(config: Fields, family: str, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """(window, layers that have it). Mistral: all of them; Qwen: those from `max_window_layers` on, or
    those that `layer_types` names, if `use_sliding_window`; Llama: none."""
    window = config.whole("sliding_window", MOST_POSITIONS, None)
    if family == "llama" and window is not None:
        raise PretrainedError(f"{config.where} gives a llama a sliding_window, which Llama does not have.")
    if family == "mistral" and "sliding_window" not in config.values:
        raise PretrainedError(f"'sliding_window' is missing in {config.where} (null where there is none).")
    if family in ("qwen2", "qwen3") and not config.flag("use_sliding_window"):
        window = None
    if window is None:
        chosen: tuple[int, ...] = ()
    elif family == "mistral":
        chosen = tuple(range(layers))
    else:
        # 28 is transformers' default; layer_types, where stated, overrides the number.
        chosen = tuple(range(config.whole("max_window_layers", MOST["layers"], 28, least=0), layers))
    types = config.raw("layer_types", None)
    if types is None:
        return window, chosen
    if not isinstance(types, list) or len(types) != layers:
        config.refuse("layer_types", f"a list of {layers} entries")
    if not all(isinstance(kind, str) and kind in ("full_attention", "sliding_attention") for kind in types):
        raise PretrainedError(
            f"'layer_types' in {config.where} may name full_attention and sliding_attention only."
        )
    named = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
    if (named and window is None) or (family == "mistral" and named != chosen):
        raise PretrainedError(f"'layer_types' and 'sliding_window' in {config.where} contradict each other.")
    return window, named


def _special_tokens(
    config: Fields, family: str, vocab: int, generation: Fields
) -> tuple[int | None, tuple[int, ...]]:
    # What transformers' classes assume where the key is absent (null means none).
    defaults = {"bos_token_id": 1, "eos_token_id": 2} if family in ("llama", "mistral") else {}

    def ids(key: str) -> tuple[int, ...]:
        source = generation if generation.values.get(key) is not None else config
        value = source.values.get(key, defaults.get(key) if source is config else None)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if len(listed) > 1000 or not all(type(token) is int and 0 <= token < vocab for token in listed):
            source.refuse(key, f"token ids below vocab_size ({vocab})")
        return tuple(listed)

    bos = ids("bos_token_id")
    if len(bos) > 1:
        config.refuse("bos_token_id", "one token id")
    return (bos[0] if bos else None), ids("eos_token_id")
