"""Our side of the talk with kvpress_side.py: weights under Llama's names, requests, replies."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

SIDE = Path(__file__).with_name("kvpress_side.py")
PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"

#: Ours -> Llama's names; a fused matrix is split into the rows of its parts.
NAMES = {
    "norm1.weight": ["input_layernorm.weight"],
    "norm2.weight": ["post_attention_layernorm.weight"],
    "mixer.qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "mixer.out.weight": ["self_attn.o_proj.weight"],
    "ffn.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "ffn.down.weight": ["mlp.down_proj.weight"],
}
OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def llama_weights(model) -> dict[str, Tensor]:
    """Our decoder's weights under the names that LlamaForCausalLM reads."""
    splits, weights = model.muon_splits(), {}
    for name, value in model.state_dict().items():
        if name in OUTER:
            weights[OUTER[name]] = value
            continue
        _, layer, rest = name.split(".", 2)
        parts = value.split(splits[name]) if name in splits else [value]
        for target, part in zip(NAMES[rest], parts, strict=True):
            weights[f"model.layers.{layer}.{target}"] = part.contiguous()
    return weights


def llama_config(shape) -> dict:
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "max_position_embeddings": 4096,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    } | ({"sliding_window": shape.sliding_window} if shape.sliding_window else {})


class Refused(Exception):
    """kvpress asserted something; the message is its own."""


@dataclasses.dataclass
class Reply:
    """`logits` (B,N,V); `kept[c]` (L,B,G,S) positions held after call c; `scores[c]` or None."""

    logits: Tensor
    kept: list[Tensor]
    scores: list[Tensor | None]

    def sets(self, call: int) -> list:
        """[layer][row][KV head] -> sorted positions."""
        return self.kept[call].sort(-1).values.tolist()


class Peer:
    """A running kvpress_side.py: one process for all tests."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.errors = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [PYTHON, SIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def ask(
        self,
        model,
        tokens_BN: Tensor,
        calls: list[int],
        press: dict,
        attention: str = "sdpa",
        positions: str = "true",
        dtype: str = "float32",
        mask_BN: Tensor | None = None,
        cropped: bool = False,
    ) -> Reply:
        """Feed `tokens_BN` in `calls` to a Llama with the weights of `model`, under `press`."""
        settings = {
            "config": llama_config(model.shape),
            "calls": calls,
            "press": press,
            "attention": attention,
            "positions": positions,
            "dtype": dtype,
            "cropped": cropped,
        }
        path = self.folder / f"{self.number}.request"
        self.number += 1
        tensors = llama_weights(model) | {"tokens": tokens_BN.contiguous()}
        if mask_BN is not None:
            tensors["mask"] = mask_BN.long().contiguous()
        save_file(tensors, path, {"settings": json.dumps(settings)})
        print(path, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline().strip()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"the kvpress side ended:\n{self.errors.read()[-4000:]}")
        reply = json.loads(line)
        if "refused" in reply:
            raise Refused(reply["refused"])
        found = load_file(reply["file"])
        steps = range(len(calls))
        kept = [found[f"kept.{c}"] for c in steps]
        return Reply(found["logits"], kept, [found.get(f"scores.{c}") for c in steps])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()
