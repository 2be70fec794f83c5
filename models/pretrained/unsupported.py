"""What our decoder does not compute: refused by name, never ignored.

Everything here changes the logits without adding a tensor. What adds tensors (experts, norms, biases, heads
of classifiers) is found without a list: every tensor must be one that the Shape needs.
"""

from __future__ import annotations

from typing import Any

from .files import Fields, PretrainedError, shown

#: Keys that change the computation, with the values that leave it as it is (null always does).
HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (),
    "compression_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "attention_sinks": (False,),
    "attention_chunk_size": (),
    "dual_chunk_attention_config": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "clip_qkv": (),
    "alibi": (False,),
    "is_causal": (True,),
    "causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
}


def refuse_unsupported(config: Fields, title: str) -> None:
    """Raises PretrainedError for the first such key; `title` as in `LlamaForCausalLM`."""
    for key, allowed in HARMLESS.items():
        value = config.raw(key, None)
        if value is not None and value not in allowed:
            raise PretrainedError(f"{key}={shown(value)} in {config.where} is not supported.")
    wanted, found = [f"{title}ForCausalLM"], config.raw("architectures", None)
    if found is not None and found != wanted:
        raise PretrainedError(
            f"architectures={shown(found)} in {config.where} is not supported, only {wanted}."
        )
    own_code = config.raw("auto_map", {})
    if not isinstance(own_code, dict) or any(key.startswith("AutoModel") for key in own_code):
        raise PretrainedError(
            f"{config.where} wants to run code of its own (auto_map), which is not supported."
        )
