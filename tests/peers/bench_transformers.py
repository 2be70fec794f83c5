"""Speed of the plain decoder against `transformers` from PyPI, and what attention, windows and scores cost.

    python tests/peers/bench_transformers.py                       everything (about 25 minutes)
    python tests/peers/bench_transformers.py --only decode,floor --lengths 512,2048 --json out.json
    python tests/peers/bench_transformers.py --mkl                 our products on MKL like theirs

One thread, fp32, batch 1, vocabulary 256, the 23.5 M-parameter Llama: 8 layers, d = 512, 8 query and 4 KV
heads, FFN 1376. Both sides hold the same weights, are asked for the last token's logits only, and must
agree on them before a clock starts. Method: `bench_pairs.py`. Nothing is asserted about times: a table and
a file come out, whatever they say.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench_pairs import Foreign, Row, compare, cpu_ms, document, interleaved, markdown
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

import models
from models import layers
from models.architecture import Architecture, Shape
from models.attention import attention, sliding_window
from models.cache import Request

SHAPE = Shape(
    name="23.5m", vocab=256, dim=512, num_layers=8, num_heads=8, num_kv_heads=4, ffn_dim=1376
)  # fmt: skip
#: As many operations, next to no arithmetic.
NARROW = Shape(
    name="narrow", vocab=256, dim=64, num_layers=8, num_heads=8, num_kv_heads=4, ffn_dim=172
)  # fmt: skip
#: What every decode step is fed: which token it is does not change the cost.
TOKEN = torch.zeros(1, 1, dtype=torch.long)
#: Decode steps per sample.
STEPS = 4
AGREEMENT = 1e-4


def build(spec: str, shape: Shape) -> Architecture:
    torch.manual_seed(0)
    return models.build(spec, shape).eval().requires_grad_(False)


def peer_of(ours: Architecture) -> LlamaForCausalLM:
    """transformers' Llama with a copy of our weights, laid out as it wants them."""
    s = ours.shape
    config = LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.dim, intermediate_size=s.ffn_dim, num_hidden_layers=s.num_layers,
        num_attention_heads=s.num_heads, num_key_value_heads=s.num_kv_heads, rms_norm_eps=s.norm_eps,
        max_position_embeddings=32_768, tie_word_embeddings=False, attn_implementation="sdpa",
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_base},
    )  # fmt: skip
    weights = {
        "model.embed_tokens": ours.embed.weight, "model.norm": ours.norm.weight, "lm_head": ours.head.weight
    }  # fmt: skip
    for i, block in enumerate(ours.blocks):
        parts = {
            "input_layernorm": block.norm1.weight, "post_attention_layernorm": block.norm2.weight,
            "self_attn.o_proj": block.mixer.out.weight, "mlp.down_proj": block.ffn.down.weight,
        }  # fmt: skip
        qkv = block.mixer.qkv.weight.split(block.mixer.sizes)
        parts |= zip(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), qkv, strict=True)
        parts |= zip(("mlp.gate_proj", "mlp.up_proj"), block.ffn.gate_up.weight.chunk(2), strict=True)
        weights |= {f"model.layers.{i}.{name}": weight for name, weight in parts.items()}
    peer = LlamaForCausalLM(config).eval().requires_grad_(False)
    peer.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()})
    return peer


def agree(ours: torch.Tensor, other: torch.Tensor, what: str) -> None:
    difference = (ours.float() - other.float()).abs().max().item()
    if not difference <= AGREEMENT:
        raise SystemExit(f"{what}: logits differ by {difference:.3g}, so speeds would compare two models.")


def prompt(num_tokens: int) -> torch.Tensor:
    return torch.randint(0, SHAPE.vocab, (1, num_tokens), generator=torch.Generator().manual_seed(1))


class Bench:
    """The sections; each yields its rows."""

    def __init__(self, lengths: list[int], pairs: int) -> None:
        self.lengths, self.pairs = lengths, pairs
        self.ours = build("transformer", SHAPE)
        self.peer = peer_of(self.ours)
        self.roofs: dict[str, float] = {}

    # --- against transformers ---------------------------------------------------------------------

    def prefill(self) -> Iterator[Row]:
        """Prompt ids to the last token's logits, a fresh cache on both sides."""
        for n in self.lengths:
            tokens = prompt(n)
            sides = {
                "ours": lambda t=tokens: prefill(self.ours, t),
                "theirs": lambda t=tokens: self.peer(t, use_cache=True, logits_to_keep=1).logits[:, -1],
            }
            agree(sides["ours"](), sides["theirs"](), f"prefill of {n}")
            samples = interleaved(sides, self.pairs, warmups=1)
            roof = self._roof("gemm", gemm_gflops)
            flops = self.ours.prefill_flops(n) / statistics.median(samples["ours"]) / 1e6
            note = f"{flops:.0f} GFLOP/s, {flops / roof:.0%} of a matrix product's {roof:.0f}"
            what = "prefill, transformers / ours"
            yield compare("prefill", what, n, samples, "ours", "theirs", ">= 0.95", note)

    def decode(self) -> Iterator[Row]:
        """Steps of one token, from a context of n on, growing alike on all sides."""
        dynamic_targets = {512: ">= 1.25", 2048: ">= 1.35", 8192: ">= 2.2"}
        for n in self.lengths:
            tokens = prompt(n)
            capacity = n + 1 + STEPS * (self.pairs + 2)
            cache = self.ours.new_cache(1, capacity)
            config = self.peer.config
            peers = {
                "DynamicCache": DynamicCache(config=config),
                "StaticCache": StaticCache(config=config, max_cache_len=capacity),
            }
            self.ours.extend(tokens, None, cache)
            for peer_cache in peers.values():
                self.peer(tokens, past_key_values=peer_cache, logits_to_keep=1)
            sides = {"ours": lambda c=cache: self.ours.decode(TOKEN[0], c)}
            for name, peer_cache in peers.items():
                sides[name] = lambda c=peer_cache: self.peer(TOKEN, past_key_values=c).logits[:, -1]
            first = sides["ours"]()
            for name in peers:
                agree(first, sides[name](), f"decode step at {n}, {name}")
            samples = interleaved(sides, self.pairs, repeats=STEPS)
            last = sides["ours"]()
            for name in peers:
                agree(last, sides[name](), f"last step after {n}, {name}")
            roof = self._roof("read", read_gbytes)
            read = self.ours.read_bytes(n) / statistics.median(samples["ours"]) / 1e6
            note = f"{read:.1f} GB/s, {read / roof:.0%} of a plain read's {roof:.0f}"
            for name in peers:
                target = ">= 1.1" if name == "StaticCache" else dynamic_targets.get(n, "")
                yield compare("decode", f"decode step, {name} / ours", n, samples, "ours", name, target, note)

    def floor(self) -> Iterator[Row]:
        """What a decode step costs without arithmetic: the same operations at d = 64, context 16 to 200."""
        ours = build("transformer", NARROW)
        peer = peer_of(ours)
        tokens = prompt(16)
        steps, pairs = 2, 80
        cache, theirs = ours.new_cache(1, 17 + steps * (pairs + 5)), DynamicCache(config=peer.config)
        agree(ours.extend(tokens, None, cache), peer(tokens, past_key_values=theirs).logits[:, -1], "floor")
        sides = {
            "ours": lambda: ours.decode(TOKEN[0], cache),
            "theirs": lambda: peer(TOKEN, past_key_values=theirs).logits,
        }
        samples = interleaved(sides, pairs, warmups=5, repeats=steps)
        what = "dispatch of a step (d = 64), DynamicCache / ours"
        yield compare("floor", what, 16, samples, "ours", "theirs", "<= 0.9 ms")

    # --- ours against ours --------------------------------------------------------------------------

    def bf16(self) -> Iterator[Row]:
        """Prefill of 2,048 in bf16 against our own fp32."""
        tokens, half = prompt(2048), copy.deepcopy(self.ours).to(torch.bfloat16)
        sides = {"bf16": lambda: prefill(half, tokens), "fp32": lambda: prefill(self.ours, tokens)}
        samples = interleaved(sides, self.pairs, warmups=1)
        amx = torch.cpu.get_capabilities().get("amx_bf16", False)
        target, note = (">= 2.5", "") if amx else ("", "no AMX here, for which the target is stated")
        yield compare("bf16", "prefill, fp32 / bf16", 2048, samples, "bf16", "fp32", target, note)

    def window(self) -> Iterator[Row]:
        """Sliding-window attention of 256 against full causal SDPA: 8 heads of 64, 8,192 tokens."""
        n = 8192
        q = heads(n, 8, seed=0)
        k, v = (heads(n, 8, seed).transpose(1, 2).contiguous() for seed in (1, 2))
        sides = {
            "window": lambda: sliding_window(q, k, v, 0.125, 256),
            "full": lambda: attention(q, k, v, 0.125, causal=True),
        }
        samples = interleaved(sides, self.pairs, warmups=1)
        what = "sliding window of 256 / full attention"
        yield compare("window", what, n, samples, "window", "full", "<= 0.2", over_ours=False)

    def tova(self) -> Iterator[Row]:
        """Exact token-by-token TOVA through a prompt of 8,192, budget 512, one layer of 8 and 4 heads."""
        n = 8192
        q, k, v = heads(n, 8, 0), heads(n, 4, 1), heads(n, 4, 2)
        positions = torch.arange(n)[None]
        layer, full = (
            build(spec, Shape("one", 256, 512, 1, 8, 4, 64)) for spec in ("tova:budget=512", "transformer")
        )
        for model in (layer, full):
            model.lower_rope.ensure(n, torch.float32, "cpu")

        def attend(model):
            request = Request(1, n, torch.float32, "cpu", [0])
            cache = model.layer_cache(model.blocks[0].mixer.heads, 0, request)
            return cache.attend(q, k, v, positions, None)

        sides = {"tova": lambda: attend(layer), "full": lambda: attend(full)}
        samples = interleaved(sides, self.pairs, warmups=1)
        what = "step-wise TOVA(512) / full attention"
        yield compare("tova", what, n, samples, "tova", "full", "<= 0.75", over_ours=False)

    def scores(self) -> Iterator[Row]:
        """Prefill with column sums of all attention (H2O, bulk, budget 256) against one without."""
        scoring = build("h2o:budget=256", SHAPE)
        for n in self.lengths:
            tokens = prompt(n)
            sides = {
                "h2o": lambda t=tokens: prefill(scoring, t),
                "full": lambda t=tokens: prefill(self.ours, t),
            }
            agree(sides["h2o"](), sides["full"](), f"bulk prefill of {n}")
            samples = interleaved(sides, self.pairs, warmups=1)
            what, target = "prefill, column sums / without", "<= 1.35" if n == 2048 else ""
            yield compare("scores", what, n, samples, "h2o", "full", target, over_ours=False)

    def _roof(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self.roofs:
            self.roofs[name] = measure()
        return self.roofs[name]


def prefill(model: Architecture, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model.extend(tokens_BT, None, model.new_cache(1, tokens_BT.shape[1]))


def heads(num_tokens: int, num_heads: int, seed: int) -> torch.Tensor:
    return torch.randn(1, num_tokens, num_heads, 64, generator=torch.Generator().manual_seed(seed))


def gemm_gflops() -> float:
    """fp32 product of 2048 x 512 with the FFN's matrix, as `linear` computes it."""
    x, w = torch.randn(2048, 512), torch.randn(2752, 512)
    return 2 * 2048 * w.numel() / min(cpu_ms(lambda: layers.linear(x, w)) for _ in range(9)) / 1e6


def read_gbytes() -> float:
    """Reading 96 MB once, the size of the weights."""
    x = torch.randn(24_000_000)
    return 4 * len(x) / min(cpu_ms(x.sum) for _ in range(9)) / 1e6


SECTIONS = ("prefill", "decode", "floor", "bf16", "window", "tova", "scores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--lengths", default="512,2048,8192", help="prompt lengths, separated by commas")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all samples and the machine card here")
    parser.add_argument(
        "--mkl", action="store_true", help="our fp32 products on MKL, too, where oneDNN is faster"
    )
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    torch.set_num_threads(1)
    layers.ONEDNN = layers.ONEDNN and not arguments.mkl
    foreign, rows = Foreign(), []
    with torch.inference_mode():
        bench = Bench([int(n) for n in arguments.lengths.split(",")], arguments.pairs)
        for name in chosen:
            for row in getattr(bench, name)():
                rows.append(row)
                print(markdown([row]).splitlines()[-1], flush=True)
    data = document(rows, foreign, products="oneDNN" if layers.ONEDNN else "MKL", roofs=bench.roofs)
    print(f"\n{markdown(rows)}\n\n{data['machine']['cpu_model']}, products on {data['products']}, "
          f"others used {data['foreign_cpu_share']:.0%} of the machine.")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
