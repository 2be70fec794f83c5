"""YOCO: a local self-decoder makes one global cache, a cross-decoder reads it (arXiv 2405.05254).

    self-decoder     x += SelfMixer_l(x); x += FFN_l(x)    mixer=swa: sliding window; or gated retention
    between          K, V = norm_kv(x) W_kv                one pair of tensors for all upper layers
    cross-decoder    x += CrossAttention_l(x; K, V); x += FFN_l(x)

The sliding window counts the query itself: key j is visible to i iff 0 <= i - j < window. `norm_kv` has
its own weight and feeds K and V only; the cross-decoder goes on from the un-normalised x.

Prompts leave early: cross layers write nothing that later tokens read, so after a prompt only the
last token passes the cross-decoder (section 3.3). With convolved queries (`conv` taps) layer l of n
needs the last 1 + (conv-1)(n-l) rows of its input, and those few rows are all that passes; the exit
stays exact. Logits of every position, as scoring needs them, take no early exit.

A prompt may come in segments of any sizes, and needs no option for it: what crosses a call is carried
exactly (window, state in fp32, K and V). The official loop leaves the cross-decoder out of all but the
last call; here each call gives its last row's logits, so a segment costs that one row more.

The shipped weights were trained without three things that the official code has. Those, and the layout,
are options that make another network, which asks for weights of its own name (`weight_names`):

    rope=official       interleaved pairs, frequencies from 1 to exactly 1/base; every pair turns, in both
                        halves, whatever the shape says of `rope_fraction` and `rope_upper`
    embed_scale=true    embedding times sqrt(E), drawn from N(0, 1/E); a tied output matrix is not scaled
    gain=false          no gain after retention's per-head norm (ours starts at 1, the official rule)
    self_layers=n       layout self : cross = n : L-n (official: half)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..attention import Heads, attention
from ..cache import ConvState, LayerState, Ragged
from ..decoder import QK_SCALE, Block, Decoder, SelfAttention
from ..layers import Linear, RMSNorm, ShortConv, unit_heads
from ..retention import RetentionMixer, RetentionState
from ..ring import WindowCache
from ..rope import Rope, endpoint_frequencies
from ..spec import canonical
from .transformer import FullCache


@dataclass(frozen=True)
class Options:
    """`mixer` of the self-decoder, `window` of its attention (0: the shape's), `early_exit` of prompts.

    `rope`, `embed_scale`, `self_layers` (0: half) and `gain` choose the network; see the file's first lines.
    """

    mixer: Literal["swa", "retention"] = "swa"
    window: int = 0
    early_exit: bool = True
    rope: Literal["shape", "official"] = "shape"
    embed_scale: bool = False
    self_layers: int = 0
    gain: bool = True

    def __post_init__(self) -> None:
        if self.window < 0 or self.self_layers < 0:
            raise ValueError("yoco needs window >= 0 and self_layers >= 0.")
        if self.mixer == "retention" and self.window:
            raise ValueError("yoco has a window with mixer=swa only; retention has none.")
        if self.mixer == "swa" and not self.gain:
            raise ValueError("yoco has a gain with mixer=retention only; give gain=false with it.")


class CrossAttention(nn.Module):
    """Queries of an upper layer over the shared keys and values; owns no K/V weights."""

    def __init__(self, shape, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(shape.dim, heads.num_heads * heads.head_dim, bias=False)
        self.conv = ShortConv(self.q.out_features, shape.conv) if shape.conv else None
        self.q_scale = nn.Parameter(torch.full((heads.num_heads,), QK_SCALE)) if shape.qk_norm else None
        self.out = Linear(self.q.out_features, shape.dim, bias=False)

    def split(self, q_BTC: Tensor) -> Tensor:
        """(B,T,H*D) -> normalised heads (B,T,H,D)."""
        q = q_BTC.unflatten(-1, (-1, self.heads.head_dim))
        return q if self.q_scale is None else unit_heads(q, self.q_scale)

    def forward(self, x_BTE, shared: FullCache, conv: ConvState | None, positions_BT, valid) -> Tensor:
        q = self.q(x_BTE)
        if self.conv is not None:
            q = self.conv(conv.shift_in(q, valid))
        return self.out(shared.read(self.split(q), positions_BT, valid).flatten(2))


class Model(Decoder):
    """Decoder-decoder. `run_blocks` and `run_parallel` wire the two parts."""

    implementations = ("torch", "fused")

    def __init__(self, shape, options) -> None:
        self.self_layers = _self_layers(shape, options)
        _refuse(shape, options)
        self.retention = options.mixer == "retention"
        self.window = options.window or shape.window
        super().__init__(shape, options)
        width = shape.num_kv_heads * shape.head_dim
        self.kv_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.kv = Linear(shape.dim, 2 * width, bias=False)
        self.kv_conv = ShortConv(2 * width, shape.conv) if shape.conv else None
        self.k_scale = nn.Parameter(torch.full((shape.num_kv_heads,), QK_SCALE)) if shape.qk_norm else None
        if options.embed_scale:
            nn.init.normal_(self.embed.weight, std=shape.dim**-0.5)

    def use(self, implementation, device=None):
        super().use(implementation, device)
        for mixer in self.modules():
            if isinstance(mixer, RetentionMixer):
                mixer.implementation = self.implementation

    @classmethod
    def weight_names(cls, options):
        """`yoco-MIXER`, with every option appended that makes it another network than the shipped one."""
        # Window and exit are no matter of weights; the mixer is named already.
        network = dataclasses.replace(options, mixer="retention", window=0, early_exit=True)
        changes = canonical("", network).removeprefix(":mixer=retention")
        return (f"yoco-{options.mixer}" + changes.translate(str.maketrans(",=", "--")),)

    def build_rope(self, head_dim: int) -> Rope:
        if self.options.rope == "shape":
            return super().build_rope(head_dim)
        return Rope(endpoint_frequencies(head_dim, self.shape.rope_base), interleaved=True)

    def build_blocks(self) -> list[Block]:
        s, n = self.shape, self.self_layers
        ffn_dim = (s.ffn_dim_retention if self.retention else s.ffn_dim_swa) or s.ffn_dim
        scale = 1.0 if s.qk_norm else s.head_dim**-0.5
        upper_rope = self.lower_rope if self.options.rope == "official" else self.upper_rope
        self.cross_heads = Heads(s.num_heads, s.num_kv_heads, s.head_dim, scale, upper_rope)
        # Retention may have wider heads than attention, hence a table of its own.
        width = (s.retention_head_dim or s.head_dim) if self.retention else s.head_dim
        self.self_rope = self.lower_rope if width == s.head_dim else self.build_rope(width)
        lower = [
            RetentionMixer(s, self.self_rope, self.options.gain)
            if self.retention
            else SelfAttention(_full_heads(s), self.self_rope)
            for _ in range(n)
        ]
        upper = [CrossAttention(s, self.cross_heads) for _ in range(s.num_layers - n)]
        return [Block(s, mixer, ffn_dim) for mixer in [*lower, *upper]]

    def ropes(self) -> list[Rope]:
        return [self.lower_rope] + [self.self_rope] * (self.self_rope is not self.lower_rope)

    def _scaled(self, embedded_BTE: Tensor) -> Tensor:
        return embedded_BTE * self.shape.dim**0.5 if self.options.embed_scale else embedded_BTE

    # --- caches ---------------------------------------------------------------------------------

    def new_states(self, request) -> dict[str, LayerState]:
        states: dict[str, LayerState] = {}
        for i, block in enumerate(self.blocks):
            mixer = block.mixer
            if i < self.self_layers and self.retention:
                states[f"{i}.retention"] = RetentionState(
                    request.batch, mixer.num_heads, mixer.head_dim, request.dtype, request.device
                )
            elif i < self.self_layers:
                states[f"{i}.attention"] = WindowCache(mixer.heads, request, 0, self.window)
            if mixer.conv is not None:
                states[f"{i}.convolution"] = ConvState.of(mixer.conv, request)
        if self.kv_conv is not None:
            states["shared.convolution"] = ConvState.of(self.kv_conv, request)
        readers = self.shape.num_layers - self.self_layers
        states["shared"] = FullCache(self.cross_heads, request, readers)
        return states

    def _shared_kv(self, x_BTE: Tensor, conv: ConvState | None, valid) -> tuple[Tensor, Tensor]:
        kv = self.kv(self.kv_norm(x_BTE))
        if self.kv_conv is not None:
            kv = self.kv_conv.parallel(kv) if conv is None else self.kv_conv(conv.shift_in(kv, valid))
        k, v = (part.unflatten(-1, (-1, self.cross_heads.head_dim)) for part in kv.chunk(2, -1))
        return (k if self.k_scale is None else unit_heads(k, self.k_scale)), v

    # --- the two parts --------------------------------------------------------------------------

    def run_blocks(self, x_BTE, positions_BT, valid, cache, logits):
        states, x_BTE = cache.states, self._scaled(x_BTE)
        for i, block in enumerate(self.blocks[: self.self_layers]):
            state = states[f"{i}.retention" if self.retention else f"{i}.attention"]
            conv = states.get(f"{i}.convolution")

            def mix(mixer, x, state=state, conv=conv):
                return mixer(x, state, conv, positions_BT, valid)

            x_BTE = block(x_BTE, mix)
        k, v = self._shared_kv(x_BTE, states.get("shared.convolution"), valid)
        states["shared"].append(k, v, positions_BT, valid)
        if logits == "last" and self.options.early_exit and x_BTE.shape[1] > 1:
            return self._run_tail(x_BTE, positions_BT, valid, states)
        for i, block in list(enumerate(self.blocks))[self.self_layers :]:
            conv = states.get(f"{i}.convolution")

            def mix(mixer, x, conv=conv):
                return mixer(x, states["shared"], conv, positions_BT, valid)

            x_BTE = block(x_BTE, mix)
        return x_BTE

    def _run_tail(self, x_BTE: Tensor, positions_BT: Tensor, valid: Ragged | None, states) -> Tensor:
        """Early exit: only the rows that the last token's logits depend on pass the cross-decoder.

        Rows are right-justified per batch row, so that the last valid token is always column -1.
        Returns (B,1,E).
        """
        B, T, _ = x_BTE.shape
        upper = list(enumerate(self.blocks))[self.self_layers :]
        back = self.shape.conv - 1 if self.shape.conv else 0
        lengths = torch.full((B,), T, device=x_BTE.device) if valid is None else valid.mask_BT.sum(1)
        real = lengths  # valid rows of x, per batch row, ending at column -1 once right-justified
        x = _right_justified(x_BTE, lengths, min(T, 1 + back * len(upper)))
        for n, (i, block) in enumerate(upper):
            needed = min(T, 1 + back * (len(upper) - 1 - n))
            normed = block.norm1(x)
            q = block.mixer.q(normed)
            if block.mixer.conv is not None:
                q = block.mixer.conv(_with_kept(q, real, states[f"{i}.convolution"], needed))
            x = x[:, -needed:]
            positions = _right_justified(positions_BT[:, :, None], lengths, needed)[:, :, 0]
            real_here = torch.arange(needed, 0, -1, device=x.device) <= lengths[:, None]
            positions = positions.masked_fill(~real_here, -1)
            tail = None if valid is None else Ragged([], real_here)
            mixed = states["shared"].read(block.mixer.split(q), positions, tail)
            x = x + block.mixer.out(mixed.flatten(2))
            x = x + block.ffn(block.norm2(x))
            real = lengths.clamp(max=needed)
        return x

    def run_parallel(self, x_BTE, positions_BT):
        x_BTE = self._scaled(x_BTE)
        for block in self.blocks[: self.self_layers]:
            window = {} if self.retention else {"window": self.window}
            x_BTE = block(x_BTE, lambda mixer, x, w=window: mixer.parallel(x, positions_BT, **w))
        k, v = self._shared_kv(x_BTE, None, None)
        k, v = self.cross_heads.rotate(k, positions_BT).transpose(1, 2), v.transpose(1, 2)

        def mix(mixer, x):
            q = mixer.q(x) if mixer.conv is None else mixer.conv.parallel(mixer.q(x))
            q = self.cross_heads.rotate(mixer.split(q), positions_BT)
            return mixer.out(attention(q, k, v, self.cross_heads.scale, causal=True).flatten(2))

        for block in self.blocks[self.self_layers :]:
            x_BTE = block(x_BTE, mix)
        return x_BTE

    # --- cost -----------------------------------------------------------------------------------

    def prefill_flops(self, num_tokens, batch=1) -> int:
        retained = num_tokens * self._retention_flops()
        if not self.options.early_exit:
            return super().prefill_flops(num_tokens, batch) + batch * retained
        upper = sum(p.numel() for b in self.blocks[self.self_layers :] for p in b.parameters() if p.ndim == 2)
        head = self._head_elements()
        lower = self._matrix_elements() - upper - head
        n_upper = len(self.blocks) - self.self_layers
        back = max(self.shape.conv - 1, 0)
        tails = [min(num_tokens, 1 + back * n) for n in range(n_upper)]
        per_slot = 4 * self.shape.num_heads * self.shape.head_dim
        local = retained + per_slot * sum(
            self._local_pairs(num_tokens) for _ in range(0 if self.retention else self.self_layers)
        )
        cross = per_slot * num_tokens * sum(tails)
        passing = 2 * sum(tails) * upper // n_upper
        return batch * (2 * num_tokens * lower + passing + 2 * head + local + cross)

    def decode_flops(self, num_tokens, batch=1) -> int:
        return super().decode_flops(num_tokens, batch) + batch * self._retention_flops()

    def _local_pairs(self, num_tokens: int) -> int:
        """(query, key) pairs of the sliding window over a prompt."""
        grown = min(num_tokens, self.window)
        return grown * (grown + 1) // 2 + (num_tokens - grown) * grown

    def _retention_flops(self) -> int:
        """One recurrent step of all retention layers: decay, outer product, read (5 per state element)."""
        if not self.retention:
            return 0
        mixer = self.blocks[0].mixer
        return self.self_layers * 5 * mixer.num_heads * mixer.head_dim**2

    def muon_splits(self) -> dict[str, tuple[int, ...]]:
        width = self.kv.weight.shape[0] // 2
        return super().muon_splits() | {"kv.weight": (width, width)}


def _self_layers(shape, options) -> int:
    """How many layers the self-decoder has. Raises ValueError where none or all would be left."""
    if not options.self_layers and shape.num_layers % 2:
        raise ValueError(f"yoco needs self_layers or an even number of layers, not {shape.num_layers}.")
    n = options.self_layers or shape.num_layers // 2
    if not 0 < n < shape.num_layers:
        raise ValueError(f"yoco needs self_layers from 1 to {shape.num_layers - 1} of {shape.num_layers}.")
    return n


def _refuse(shape, options) -> None:
    """What other families' checkpoints have and no YOCO has."""
    for field in ("qkv_bias", "out_bias", "qk_rms", "sliding_layers"):
        if getattr(shape, field):
            raise ValueError(f"yoco knows no {field}, which shape '{shape.name}' has.")
    if options.rope == "official" and shape.rope_scaling is not None:
        raise ValueError(f"yoco needs rope=shape for the rope_scaling that shape '{shape.name}' has.")


def _full_heads(shape):
    """The self-decoder's attention has as many KV heads as query heads (official code)."""
    return dataclasses.replace(shape, num_kv_heads=shape.num_heads)


def _right_justified(x_BTC: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Each row's last `width` valid columns, ending at column -1; missing ones repeat column 0."""
    columns = lengths[:, None] - torch.arange(width, 0, -1, device=x_BTC.device)
    return x_BTC.gather(1, columns.clamp(min=0)[:, :, None].expand(-1, -1, x_BTC.shape[2]))


def _with_kept(q_BnC: Tensor, real: Tensor, conv: ConvState, needed: int) -> Tensor:
    """Inputs of the convolution for the last `needed` rows: (B, taps-1+needed, C).

    `q_BnC` is right-justified with `real` valid rows; what comes before them is what `conv` kept.
    """
    tail = conv.tensors["tail"]
    kept, n = tail.shape[1], q_BnC.shape[1]
    joined = torch.cat([tail.to(q_BnC.dtype), q_BnC], 1)
    back = torch.arange(kept + needed - 1, -1, -1, device=q_BnC.device)  # distance from the last row
    new = kept + n - 1 - back
    old = kept - 1 - (back - real[:, None])
    index = torch.where(back < real[:, None], new, old).clamp(min=0)
    rows = joined.gather(1, index[:, :, None].expand(-1, -1, joined.shape[2]))
    tail.copy_(rows[:, -kept:])
    return rows
