"""Figures of the papers that follow from shapes alone, on the meta device: no memory, no weights."""

from __future__ import annotations

import pytest
import torch

import models
from models.shapes import SHAPES

BF16 = 2


def on_meta(spec: str, shape: str):
    with torch.device("meta"):
        return models.build(spec, SHAPES[shape])


def cache_of(spec: str, shape: str, tokens: int, batch: int = 1):
    return on_meta(spec, shape).cache_bytes(tokens, batch, torch.bfloat16)


# --- YOCO (arXiv 2405.05254) --------------------------------------------------------------------


def test_Y9_parameters_of_yoco_3b():
    """2.83 B without embedding and output matrix, 3.45 B with both: the official network exactly, ours with
    one gain vector per retention layer more."""
    d, ffn = 3072, 8192
    norms = 26 * 2 * d + 2 * d
    formula = 13 * (5 * d * d + 24 * d + 3 * d * ffn) + 13 * (2 * d * d + 3 * d * ffn) + 2 * d * 1024 + norms
    official = ",gain=false,rope=official,embed_scale=true"
    for options, more in ((",gain=false", 0), (official, 0), ("", 13 * d)):
        model = on_meta("yoco:mixer=retention" + options, "3b")
        everything = sum(p.numel() for p in model.parameters())
        assert everything - 2 * 100_288 * d == formula + more
        assert round((formula + more) / 1e9, 3) == 2.829 and round(everything / 1e9, 2) == 3.45


def test_Y8_global_cache_of_yoco_3b():
    """4,096 B per token in bf16, one pair for all 13 cross layers; the Transformer 104 KiB, 26 times as much.
    One million tokens: 4 GiB against 104 GiB."""
    yoco, longer = (cache_of("yoco:mixer=retention", "3b", n) for n in (2**20, 2**20 + 1000))
    assert longer.payload - yoco.payload == 1000 * 4096
    assert yoco.payload == 4 * 2**30
    assert cache_of("transformer", "3b", 2**20).total == 104 * 2**30


@pytest.mark.parametrize(("shape", "heads", "kv_heads"), [("3b", 24, 8), ("160m", 12, 12), ("13b", 40, 40)])
@pytest.mark.parametrize("tokens", [100, 1024, 5000])
@pytest.mark.parametrize("batch", [1, 4])
def test_Y8_cache_of_published_shapes(shape, heads, kv_heads, tokens, batch):
    """B b (2 N G h + L/2 * (H h^2 | 2 min(N, 1024) H h)); states are fp32, where the formula has b."""
    s = SHAPES[shape]
    h, shared = s.dim // heads, 2 * tokens * kv_heads * (s.dim // heads) * BF16
    window = s.num_layers // 2 * 2 * min(tokens, 1024) * heads * h * BF16
    assert cache_of("yoco", shape, tokens, batch).payload == batch * (shared + window)
    retention_h = s.retention_head_dim or h
    state = s.num_layers // 2 * (s.dim // retention_h) * retention_h**2
    found = cache_of("yoco:mixer=retention", shape, tokens, batch)
    assert (found.payload, found.state) == (batch * shared, batch * state * 4)


def test_Y8_self_decoder_of_yoco_3b():
    """163.6 MB of windows of 1,024 tokens, or 10.2 MB of retention states (elements in bf16, as the paper
    counts; twice that here, since states are fp32); both constant in the number of tokens."""
    for tokens in (2**11, 2**20):
        windows = cache_of("yoco", "3b", tokens).payload - 4096 * tokens
        assert windows == 163_577_856 and round(windows / 1e6, 1) == 163.6
        assert cache_of("yoco:mixer=retention", "3b", tokens).state == 2 * 10_223_616


def test_layout_ratio_scales_the_parts():
    """6 self- and 20 cross-layers: there are 6 windows, and the global cache is still one."""
    cost = cache_of("yoco:self_layers=6", "3b", 2**20)
    assert cost.payload == 4 * 2**30 + 6 * 2 * 1024 * 3072 * BF16


# --- TOVA (arXiv 2401.06104), LoCoCo (arXiv 2406.05317) -----------------------------------------


@pytest.mark.parametrize("tokens", [513, 4096, 100_000])
def test_tova_at_512_of_llama_7b(tokens):
    """2 L d * 2 (k+1) bytes of keys and values: the k kept and the newest, whatever the context."""
    assert cache_of("tova:budget=512", "7b", tokens).payload == 2 * 32 * 4096 * BF16 * (512 + 1)
    assert cache_of("transformer", "7b", 4096).payload == 2 * 32 * 4096 * BF16 * 4096


def test_lococo_parameters_of_llama_7b():
    """1,376,513 per layer at M = 512, h = 128: a convolution (256, 256, 21) with bias, and alpha."""
    base, model = on_meta("transformer", "7b"), on_meta("lococo:budget=512", "7b")
    counts = [sum(p.numel() for p in m.parameters()) for m in (base, model)]
    assert counts[1] - counts[0] == 32 * 1_376_513
    assert 256 * 256 * 21 + 256 + 1 == 1_376_513
