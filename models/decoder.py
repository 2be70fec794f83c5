"""The plain decoder: pre-norm blocks over a residual stream, and one cached multi-token step.

    x = embed(tokens)
    for block:  x += mixer(norm1(x));  x += ffn(norm2(x))
    logits = head(norm(x))

`extend` brings any batch into one normal form before a cache sees it: valid tokens first, padding
after (`Ragged`), positions counted per row. So a cache never handles left padding or gaps.

A policy for the decoder is one method, `layer_cache`; YOCO overrides how the blocks are wired.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Architecture, LogitsOf, Shape
from .attention import Heads, attention, sliding_window
from .cache import Cache, CacheBytes, ConvState, LayerCache, LayerState, Ragged, Request
from .layers import Linear, RMSNorm, ShortConv, SwiGLU, linear, unit_heads
from .rope import Rope, llama_frequencies

#: Softmax sharpness that QK-norm starts from: q_scale * k_scale = 10.
QK_SCALE = 10**0.5


class SelfAttention(nn.Module):
    """q, k, v projections, optional convolution and QK-norm; what happens to k and v is the cache's."""

    def __init__(self, shape: Shape, rope: Rope | None, window: int | None = None) -> None:
        super().__init__()
        H, G, D = shape.num_heads, shape.num_kv_heads, shape.head_dim
        self.sizes = (H * D, G * D, G * D)
        self.heads = Heads(H, G, D, 1.0 if shape.qk_norm else D**-0.5, rope, window)
        self.qkv = Linear(shape.dim, sum(self.sizes), bias=shape.qkv_bias)
        self.conv = ShortConv(sum(self.sizes), shape.conv) if shape.conv else None
        self.q_scale = nn.Parameter(torch.full((H,), QK_SCALE)) if shape.qk_norm else None
        self.k_scale = nn.Parameter(torch.full((G,), QK_SCALE)) if shape.qk_norm else None
        self.q_norm = RMSNorm(D, shape.norm_eps) if shape.qk_rms else None
        self.k_norm = RMSNorm(D, shape.norm_eps) if shape.qk_rms else None
        self.out = Linear(H * D, shape.dim, bias=shape.out_bias)

    def project(
        self, x_BTE: Tensor, conv: ConvState | None, valid: Ragged | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x -> q (B,T,H,D), k and v (B,T,G,D), not rotated. Without `conv` state: a fresh sequence."""
        qkv = self.qkv(x_BTE)
        if self.conv is not None:
            qkv = self.conv.parallel(qkv) if conv is None else self.conv(conv.shift_in(qkv, valid))
        H, G, D = self.heads.num_heads, self.heads.num_kv_heads, self.heads.head_dim
        q, k, v = qkv.unflatten(-1, (-1, D)).split((H, G, G), 2)
        if self.q_scale is not None:
            q, k = unit_heads(q, self.q_scale), unit_heads(k, self.k_scale)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def forward(
        self,
        x_BTE: Tensor,
        cache: LayerCache,
        conv: ConvState | None,
        positions_BT: Tensor,
        valid: Ragged | None,
    ) -> Tensor:
        q, k, v = self.project(x_BTE, conv, valid)
        return self.out(cache.attend(q, k, v, positions_BT, valid).flatten(2))

    def parallel(self, x_BTE: Tensor, positions_BT: Tensor, window: int | None = None) -> Tensor:
        """Full (or sliding-window) causal attention over a whole sequence, without cache."""
        window = window or self.heads.window
        q, k, v = self.project(x_BTE, None, None)
        q, k = self.heads.rotate(q, positions_BT), self.heads.rotate(k, positions_BT)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if window is None:
            out = attention(q, k, v, self.heads.scale, causal=True)
        else:
            out = sliding_window(q, k, v, self.heads.scale, window)
        return self.out(out.flatten(2))


class Block(nn.Module):
    """Pre-norm residual block around any mixer."""

    def __init__(self, shape: Shape, mixer: nn.Module, ffn_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(shape.dim, shape.norm_eps), RMSNorm(shape.dim, shape.norm_eps)
        self.mixer, self.ffn = mixer, SwiGLU(shape.dim, ffn_dim, shape.ffn_bias)

    def forward(self, x_BTE: Tensor, mix) -> Tensor:
        """`mix(mixer, normed)` runs the mixer: through a cache, or in parallel."""
        x_BTE = x_BTE + mix(self.mixer, self.norm1(x_BTE))
        return x_BTE + self.ffn(self.norm2(x_BTE))


class Decoder(Architecture):
    """Decoder-only Transformer; subclasses choose the cache of each layer."""

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__(shape, options)
        self.lower_rope = self.build_rope(shape.head_dim)
        self.upper_rope = self.lower_rope if shape.rope_upper else None
        self.embed = nn.Embedding(shape.vocab, shape.dim)
        self.blocks = nn.ModuleList(self.build_blocks())
        self.norm = RMSNorm(shape.dim, shape.norm_eps)
        self.head = None if shape.tied else Linear(shape.dim, shape.vocab, bias=False)

    # --- what an architecture may override -------------------------------------------------------

    def build_rope(self, head_dim: int) -> Rope:
        s, scaling = self.shape, self.shape.rope_scaling
        frequency_P = llama_frequencies(head_dim, s.rope_base, s.rope_fraction, scaling)
        return Rope(frequency_P, 1.0 if scaling is None else scaling.amplitude)

    def build_blocks(self) -> list[Block]:
        half = self.shape.num_layers // 2
        return [
            Block(
                self.shape,
                SelfAttention(
                    self.shape, self.lower_rope if i < half else self.upper_rope, self.shape.layer_window(i)
                ),
                self.shape.ffn_dim,
            )
            for i in range(self.shape.num_layers)
        ]

    def layer_cache(self, heads: Heads, layer: int, request: Request) -> LayerCache:
        """The cache that owns attention in `layer`: the one method a policy has to write."""
        raise NotImplementedError

    def new_states(self, request: Request) -> dict[str, LayerState]:
        states: dict[str, LayerState] = {}
        for i, block in enumerate(self.blocks):
            mixer = block.mixer
            states[f"{i}.attention"] = self.layer_cache(mixer.heads, i, request)
            if mixer.conv is not None:
                states[f"{i}.convolution"] = ConvState.of(mixer.conv, request)
        return states

    def run_blocks(
        self, x_BTE: Tensor, positions_BT: Tensor, valid: Ragged | None, cache: Cache, logits: LogitsOf
    ) -> Tensor:
        """Residual stream after the last block: every row's (B,T,E), or with "last" maybe fewer."""
        for i, block in enumerate(self.blocks):
            attention_state = cache.states[f"{i}.attention"]
            conv = cache.states.get(f"{i}.convolution")

            def mix(mixer, x, state=attention_state, conv=conv):
                return mixer(x, state, conv, positions_BT, valid)

            x_BTE = block(x_BTE, mix)
        return x_BTE

    # --- the cached step ------------------------------------------------------------------------

    def new_cache(self, batch, capacity, dtype=None, device=None, seeds=None, prompts=None) -> Cache:
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache needs batch and capacity of at least 1, not {batch} and {capacity}.")
        for name, values in (("seeds", seeds), ("prompts", prompts)):
            if values is not None and len(values) != batch:
                raise ValueError(f"a cache of {batch} rows needs {batch} {name}, not {len(values)}.")
        weight = self.embed.weight
        dtype, device = dtype or weight.dtype, device or weight.device
        if dtype != weight.dtype and str(device) != "meta":
            raise ValueError(f"a cache has the dtype of the weights, {weight.dtype}, not {dtype}.")
        if prompts is not None and not all(1 <= prompt <= capacity for prompt in prompts):
            raise ValueError(f"prompts must have between 1 and {capacity} tokens, not {prompts}.")
        request = Request(batch, capacity, dtype, device, seeds or [0] * batch, prompts, self.implementation)
        states = self.new_states(request)
        for state in states.values():
            state.implementation = self.implementation
        return Cache(states, batch, capacity)

    def extend(self, tokens_BT, valid_BT, cache, logits: LogitsOf = "last") -> Tensor:
        B, T = tokens_BT.shape
        if B != cache.batch or T < 1:
            raise ValueError(f"a cache of {cache.batch} rows was given {B} rows of {T} tokens.")
        tokens_BT, valid, order_BT = _right_padded(tokens_BT, valid_BT)
        lengths = [T] * B if valid is None else valid.lengths
        longest = max(n + length for n, length in zip(cache.seen, lengths, strict=True))
        if longest > cache.capacity:
            raise ValueError(f"the cache has a capacity of {cache.capacity} tokens and was given {longest}.")
        positions_BT = self._positions(cache, T, tokens_BT.device, valid)
        self._ensure_rope(cache.capacity)
        x = self.run_blocks(self.embed(tokens_BT), positions_BT, valid, cache, logits)
        cache.seen = [n + length for n, length in zip(cache.seen, lengths, strict=True)]
        if logits == "last":
            return self.to_logits(_last_rows(x, T, valid))
        all_BTV = self.to_logits(x)
        if order_BT is None:
            return all_BTV
        back = order_BT.argsort(1)
        return all_BTV.gather(1, back[:, :, None].expand_as(all_BTV))

    def _positions(self, cache: Cache, T: int, device: torch.device, valid: Ragged | None) -> Tensor:
        """True token index of every token; -1 at padding."""
        if cache.position_B1 is not None and T == 1 and valid is None:
            return cache.position_B1
        steps = torch.arange(T, device=device)
        if valid is None and len(set(cache.seen)) == 1:
            return (steps + cache.seen[0]).expand(cache.batch, T)
        positions = torch.tensor(cache.seen, device=device)[:, None] + steps
        return positions if valid is None else positions.masked_fill(~valid.mask_BT, -1)

    def ropes(self) -> list[Rope]:
        """Every table of rotary positions, once."""
        return [self.lower_rope]

    def _ensure_rope(self, num_positions: int) -> None:
        weight = self.embed.weight
        for rope in self.ropes():
            rope.ensure(num_positions, weight.dtype, weight.device)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        self._ensure_rope(T)
        positions_BT = torch.arange(T, device=tokens_BT.device).expand(B, T)
        x = self.run_parallel(self.embed(tokens_BT), positions_BT)
        return self.to_logits(x)

    def to_logits(self, x_BTE: Tensor) -> Tensor:
        """Final norm and output matrix, which may be the embedding's."""
        normed = self.norm(x_BTE)
        return linear(normed, self.embed.weight) if self.head is None else self.head(normed)

    def run_parallel(self, x_BTE: Tensor, positions_BT: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTE = block(x_BTE, lambda mixer, x: mixer.parallel(x, positions_BT))
        return x_BTE

    # --- cost -----------------------------------------------------------------------------------

    def table_bytes(self, capacity, dtype=None) -> int:
        dtype = dtype or self.embed.weight.dtype
        return sum(2 * rope.pairs * capacity * dtype.itemsize for rope in self.ropes())

    def cache_bytes(self, capacity, batch=1, dtype=None, prompt=None) -> CacheBytes:
        # Storage on the meta device has shapes and dtypes but no memory, so asking is free.
        prompts = None if prompt is None else [prompt] * batch
        return self.new_cache(batch, capacity, dtype, "meta", prompts=prompts).live_bytes()

    def read_bytes(self, num_tokens, batch=1, dtype=None) -> int:
        cache = self.new_cache(1, num_tokens + 1, dtype, "meta", prompts=[max(num_tokens, 1)])
        dtype = dtype or self.embed.weight.dtype
        read = sum(
            state.readers * _attended(state, num_tokens + 1) * state.slot_elements * dtype.itemsize
            for state in cache.states.values()
        )
        held = cache.live_bytes()
        return self._matrix_elements() * dtype.itemsize + batch * (read + held.metadata + held.state)

    def decode_flops(self, num_tokens, batch=1) -> int:
        return batch * (2 * self._matrix_elements() + self._attention_flops(num_tokens, num_tokens + 1))

    def prefill_flops(self, num_tokens, batch=1) -> int:
        head = 2 * self._head_elements()
        blocks = 2 * self._matrix_elements() - head
        return batch * (num_tokens * blocks + head + self._attention_flops(0, num_tokens))

    def _matrix_elements(self) -> int:
        """Weights that every generated token multiplies with; the embedding only where it is tied."""
        blocks = (p for n, p in self.named_parameters() if n not in ("embed.weight", "head.weight"))
        return sum(p.numel() for p in blocks if p.ndim == 2) + self._head_elements()

    def _head_elements(self) -> int:
        return self.shape.vocab * self.shape.dim

    def _attention_flops(self, start: int, stop: int) -> int:
        """q k^T and probs v for the queries at positions start..stop-1 of one row, all layers."""
        cache = self.new_cache(1, max(stop, 1), None, "meta")
        per_slot = 4 * self.shape.num_heads * self.shape.head_dim
        return sum(
            per_slot * state.readers * (_attended_sum(state, stop) - _attended_sum(state, start))
            for state in cache.states.values()
            if state.slot_elements
        )

    def bulk_flops(self, num_tokens: int) -> int:
        """What a prompt that attends in full costs above one that never sees more than the budget."""
        return self._full_flops(num_tokens) - self._attention_flops(0, num_tokens)

    def _full_flops(self, num_tokens: int) -> int:
        """Causal attention over a whole prompt, in all layers; a model's own window bounds it."""
        return self._pair_flops() * sum(
            _window_pairs(num_tokens, self.shape.layer_window(layer))
            for layer in range(self.shape.num_layers)
        )

    def _pair_flops(self) -> int:
        """One query attending to one key in one layer: q k^T and probs v, all heads."""
        return 4 * self.shape.num_heads * self.shape.head_dim

    def muon_splits(self) -> dict[str, tuple[int, ...]]:
        """Row sizes of fused matrices, by parameter name: an optimiser must treat them apart."""
        splits = {}
        for i, block in enumerate(self.blocks):
            if hasattr(block.mixer, "qkv"):
                splits[f"blocks.{i}.mixer.qkv.weight"] = tuple(block.mixer.sizes)
            width = block.ffn.down.weight.shape[1]
            splits[f"blocks.{i}.ffn.gate_up.weight"] = (width, width)
        return splits


def _window_pairs(num_tokens: int, window: int | None) -> int:
    """(query, key) pairs of causal attention in which a query sees at most `window` keys."""
    grown = num_tokens if window is None else min(num_tokens, window)
    return grown * (grown + 1) // 2 + (num_tokens - grown) * grown


def _attended(state: LayerState, num_tokens: int) -> int:
    """Slots that the query of the `num_tokens`-th token (counted from 1) attends to."""
    return num_tokens if state.reach is None else min(num_tokens, state.reach)


def _attended_sum(state: LayerState, num_tokens: int) -> int:
    """Sum of `_attended` over the first `num_tokens` tokens, in closed form."""
    return _window_pairs(num_tokens, state.reach)


def _right_padded(tokens_BT: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Ragged | None, Tensor | None]:
    """Valid tokens first, padding after; also the order to undo it (None: already in order)."""
    if valid_BT is None:
        return tokens_BT, None, None
    lengths = valid_BT.sum(1).tolist()
    T = tokens_BT.shape[1]
    if min(lengths) == T:
        return tokens_BT, None, None
    mask_BT = torch.arange(T, device=valid_BT.device) < valid_BT.sum(1, keepdim=True)
    if torch.equal(mask_BT, valid_BT):
        return tokens_BT, Ragged(lengths, mask_BT), None
    order_BT = (~valid_BT).to(torch.int8).argsort(stable=True, dim=1)
    return tokens_BT.gather(1, order_BT), Ragged(lengths, mask_BT), order_BT


def _last_rows(x_BTE: Tensor, num_tokens: int, valid: Ragged | None) -> Tensor:
    """The residual stream at each row's last valid token: (B,E)."""
    if valid is None or x_BTE.shape[1] == 1:
        return x_BTE[:, -1]
    last = torch.tensor(valid.lengths, device=x_BTE.device).sub(1).clamp(min=0)
    return x_BTE[torch.arange(len(x_BTE), device=x_BTE.device), last]
