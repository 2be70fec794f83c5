"""The other side of test_kvpress.py: runs kvpress in its own venv, answers one request per line.

A line on stdin names a safetensors file, a line on stdout (JSON) its answer. The request holds a Llama's
weights ("model.…", "lm_head.…"), `tokens` (B,N), perhaps `mask` (B,N; 0 is left padding), and in its metadata
`settings`: LlamaConfig fields, dtype, attention implementation, press, the sizes of the calls, and
whether queries stand at their true index or, as transformers would have it, at the cache's length,
and whether layers with a sliding window crop their cache to it.

The answer: `logits` (B,N,V), and per call c `kept.c` (L,B,G,S): the positions that each KV head
holds after that call, and `scores.c` (L,B,G,keys) where the press scored.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import kvpress
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MistralConfig


def make_press(settings: dict):
    """{"name": …, field: value} -> a press; a field that is itself such a dict is a press inside."""
    values = {k: make_press(v) if isinstance(v, dict) else v for k, v in settings.items() if k != "name"}
    base = values.get("base_press")
    if isinstance(base, kvpress.KeyRerotationPress):
        # DecodingPress insists on a ScorerPress, but asks nothing of it that this wrapper lacks.
        values["base_press"] = base.press
    press = getattr(kvpress, settings["name"])(**values)
    if base is not None:
        press.base_press = base
    return press


class Watch:
    """Follows positions through a press: what it would gather of values, it gathers of positions too."""

    def __init__(self, press, layers: int) -> None:
        self.held: list = [None] * layers
        self.scores: dict = {}
        self._enter(press)

    def _enter(self, press) -> None:
        if isinstance(press, kvpress.KeyRerotationPress):
            self._follow(press)
            self._note_scores(press.press)
        elif isinstance(press, kvpress.ScorerPress):
            self._follow(press)
            self._note_scores(press)
        else:
            for value in vars(press).values():
                if isinstance(value, kvpress.BasePress):
                    self._enter(value)

    def appended(self, positions_BT: torch.Tensor, kv_heads: int) -> None:
        new = positions_BT[:, None].expand(-1, kv_heads, -1)
        self.held = [new if old is None else torch.cat([old, new], -1) for old in self.held]
        self.scores = {}

    def _follow(self, press) -> None:
        compress = press.compress

        def followed(module, hidden_states, keys, values, attentions, kwargs):
            layer = module.layer_idx
            held = self.held[layer][..., -keys.shape[2] :]  # a sliding layer's cache has dropped the older
            marks = held[..., None].expand_as(values).double()
            _, marks = compress(module, hidden_states, keys, marks, attentions, kwargs)
            self.held[layer] = marks[..., 0].long()
            return compress(module, hidden_states, keys, values, attentions, kwargs)

        press.compress = followed

    def _note_scores(self, press) -> None:
        score = press.score

        def noted(module, *args):
            self.scores[module.layer_idx] = scores = score(module, *args)
            return scores

        press.score = noted


@torch.no_grad()
def answer(settings: dict, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tokens_BN, mask_BN = tensors.pop("tokens"), tensors.pop("mask", None)
    kind = MistralConfig if settings["config"].get("sliding_window") else LlamaConfig
    config = kind(**settings["config"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=settings["attention"]).eval()
    model.load_state_dict(tensors)
    model.to(getattr(torch, settings["dtype"]))
    press = make_press(settings["press"])
    watch = Watch(press, config.num_hidden_layers)
    cache = DynamicCache(config=config if settings["cropped"] else None)
    if mask_BN is None:
        index_BN = torch.arange(tokens_BN.shape[1]).expand_as(tokens_BN)
    else:
        index_BN = (mask_BN.cumsum(1) - 1).masked_fill(mask_BN == 0, -1)  # -1: padding
    logits, out, start = [], {}, 0
    with press(model):
        for c, size in enumerate(settings["calls"]):
            part = slice(start, start + size)
            watch.appended(index_BN[:, part], config.num_key_value_heads)
            true = index_BN[:, part].clamp(min=0)
            logits.append(
                model(
                    tokens_BN[:, part],
                    past_key_values=cache,
                    position_ids=true if settings["positions"] == "true" else None,
                    attention_mask=None if mask_BN is None or c else mask_BN[:, part],
                ).logits
            )
            out[f"kept.{c}"] = torch.stack(watch.held)
            if len(watch.scores) == config.num_hidden_layers:
                out[f"scores.{c}"] = torch.stack([watch.scores[i] for i in range(len(watch.scores))])
            start += size
    return out | {"logits": torch.cat(logits, 1)}


def main() -> None:
    torch.set_num_threads(1)
    replies, sys.stdout = sys.stdout, sys.stderr  # nothing but replies goes to the pipe
    for line in sys.stdin:
        path = Path(line.strip())
        with safe_open(path, "pt") as file:
            settings = json.loads(file.metadata()["settings"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        reply = {"file": str(path.with_suffix(".reply"))}
        try:
            save_file({k: v.contiguous() for k, v in answer(settings, tensors).items()}, reply["file"])
        except AssertionError as error:  # what kvpress refuses
            reply = {"refused": str(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
