"""What an architecture promises, in one place: a cached multi-token step, and its own cost.

    cache = model.new_cache(batch, capacity)
    logits_BV  = model.extend(prompt_BT, valid_BT, cache)                  # prompt, segment, block
    logits_BTV = model.extend(forced_BT, valid_BT, cache, logits="all")    # scored continuation
    logits_BV  = model.decode(token_B, cache)                              # one generated token
    logits_BTV = model.forward(tokens_BT)                                  # no cache: training only

Dimension letters, used as suffixes everywhere in `models/`:

    B batch rows      T tokens of this call    S cache slots       N tokens seen so far
    L layers          E model width            F FFN width         V vocabulary
    H query heads     G KV heads               D head dimension    K convolution taps

Cost is the architecture's own statement ("predicted"); tests hold it to what storage really holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from . import kernels
from .cache import Cache, CacheBytes
from .rope import RopeScaling

LogitsOf = Literal["last", "all"]


#: Upper ends of sizes, far above any network: a typing error must not ask for the machine's memory.
_SIZES = {
    "num_layers": 10_000,
    "num_heads": 10**5,
    "num_kv_heads": 10**5,
    "vocab": 10**8,
    "window": 2**31,
} | {
    name: 10**7
    for name in (
        "dim",
        "ffn_dim",
        "ffn_dim_swa",
        "ffn_dim_retention",
        "retention_head_dim",
        "attention_head_dim",
    )
}


@dataclass(frozen=True)
class Shape:
    """Sizes and layer options of a network; equal for every member of a compared family.

    `rope_fraction` of the frequency pairs are rotated; `rope_upper=False` leaves positions out of
    the upper half of the stack (NoPE). `conv` taps of a causal depthwise convolution follow the
    q, k and v projections (0: none). `qk_norm` L2-normalises q and k per head and replaces
    1/sqrt(D) by learned per-head scales. YOCO may have FFN widths of its own to equalise
    parameters (paper section 4.2: 8d/3 for the Transformer, 3d for YOCO).

    What real checkpoints add: heads of a width that is not dim / num_heads (`attention_head_dim`),
    biases, `qk_rms` (RMSNorm of q and k per head, Qwen3), an output matrix `tied` to the embedding,
    `rope_scaling`, and `sliding_layers` that see only the newest `sliding_window` tokens (Mistral).
    """

    name: str
    vocab: int
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    ffn_dim_swa: int | None = None
    ffn_dim_retention: int | None = None
    retention_head_dim: int | None = None
    window: int = 1024
    rope_base: float = 10_000.0
    rope_fraction: float = 1.0
    rope_upper: bool = True
    conv: int = 0
    qk_norm: bool = False
    norm_eps: float = 1e-5
    attention_head_dim: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    qk_rms: bool = False
    tied: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, most in _SIZES.items():
            size = getattr(self, name)
            if size is not None and not 0 < size <= most:
                raise ValueError(f"shape '{self.name}' needs {name} between 1 and {most}, not {size}.")
        undivided = self.attention_head_dim is None and self.dim % self.num_heads
        if undivided or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"shape '{self.name}' needs dim divisible by num_heads and num_heads by num_kv_heads."
            )
        retention = self.retention_head_dim or self.head_dim
        if self.head_dim < 2 or self.head_dim % 2 or retention % 2:
            raise ValueError(f"shape '{self.name}' needs even head dimensions of at least 2.")
        if self.retention_head_dim and self.dim % self.retention_head_dim:
            raise ValueError(f"shape '{self.name}' needs dim divisible by retention_head_dim.")
        if not 0 <= self.conv <= 1024 or not 0 <= self.rope_fraction <= 1:
            raise ValueError(f"shape '{self.name}' needs conv from 0 to 1024 and rope_fraction from 0 to 1.")
        if not 1 < self.rope_base <= 1e15 or not 0 < self.norm_eps < 1:
            raise ValueError(f"shape '{self.name}' needs rope_base from 1 to 1e15 and norm_eps from 0 to 1.")
        if not all(0 <= layer < self.num_layers for layer in self.sliding_layers):
            raise ValueError(f"shape '{self.name}' has sliding_layers that are not among its layers.")

        if self.sliding_layers and (self.sliding_window or 0) < 1:
            raise ValueError(f"shape '{self.name}' has sliding_layers and needs a positive sliding_window.")
        if self.qk_norm and self.qk_rms:
            raise ValueError(f"shape '{self.name}' can have qk_norm or qk_rms, not both.")

    @property
    def head_dim(self) -> int:
        return self.attention_head_dim or self.dim // self.num_heads

    def layer_window(self, layer: int) -> int | None:
        """Newest tokens that a query of this layer sees (itself included); None: all of them."""
        return self.sliding_window if layer in self.sliding_layers else None


class Architecture(nn.Module):
    """Base of every architecture; a file in `models/architectures/` defines `Options` and `Model`."""

    @dataclass(frozen=True)
    class Options:
        pass

    #: How a prompt that comes in one call meets the policy: "parallel" (nothing is ever dropped), "stepwise",
    #: "bulk", "blockwise", "once" (only prompts are cut), "split" or "truncate" (contexts begin anew).
    #: Instances may override it from their options.
    prompt_mode: str = "parallel"
    #: What must be said with every number of this very model, None: nothing.
    remark: str | None = None
    #: Tokens of the blocks into which a call is cut ("blockwise"): calls of whole blocks change nothing.
    block_tokens: int = 1
    #: Which implementation of the operations runs (`models.kernels`); a column in every row. A file that
    #: computes by its own means names them here: that is then its plain implementation.
    implementation: str = "torch"
    #: Those that there are; instances may override it from their options.
    implementations: tuple[str, ...] = ("torch",)
    #: Weights this architecture runs on, e.g. ("transformer",); later entries add to earlier ones.
    weights: ClassVar[tuple[str, ...]] = ("transformer",)

    def __init__(self, shape: Shape, options: Any) -> None:
        super().__init__()
        self.shape, self.options = shape, options

    def use(self, implementation: str, device: torch.device | str | None = None) -> None:
        """Let this implementation run in caches made from now on. `device`: where the weights will be.

        "torch" asks for the plain one, under whichever name the file gives it. Raises ValueError.
        """
        plain = type(self).implementation
        if implementation in ("torch", plain):
            self.implementation = plain
            return
        weight = next(self.parameters())
        kernels.refuse(implementation, device or weight.device, weight.dtype)
        if implementation not in self.implementations:
            raise ValueError(
                f"it has no {implementation} implementation, only {', '.join(self.implementations)}."
            )
        self.implementation = implementation

    @classmethod
    def weight_names(cls, options: Any) -> tuple[str, ...]:
        """Names of the weights that make this architecture complete."""
        return cls.weights

    def new_cache(
        self,
        batch: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seeds: list[int] | None = None,
        prompts: list[int] | None = None,
    ) -> Cache:
        """Preallocate a cache for `batch` rows that will each see at most `capacity` tokens.

        `seeds` (one per row) drive policies that draw at random. `prompts` (tokens per row) tell policies
        that act once, at the end of a prompt, where it ends; without it the first call is the prompt.
        A `dtype` other than that of the weights serves only to ask for sizes on the meta device.
        Raises ValueError, also for sizes < 1.
        """
        raise NotImplementedError

    def extend(
        self, tokens_BT: Tensor, valid_BT: Tensor | None, cache: Cache, logits: LogitsOf = "last"
    ) -> Tensor:
        """Feed tokens through the cache; rows may differ in length (`valid_BT` False is padding).

        Returns logits after each row's last valid token (B,V), or of every position (B,T,V), where
        the values at padding are undefined. Raises ValueError beyond the cache's capacity.
        """
        raise NotImplementedError

    def decode(self, token_B: Tensor, cache: Cache, valid_B: Tensor | None = None) -> Tensor:
        """One token per row -> next-token logits (B,V). Rows with `valid_B` False stand still."""
        valid_BT = None if valid_B is None else valid_B[:, None]
        return self.extend(token_B[:, None], valid_BT, cache)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """All logits (B,T,V) in parallel, without cache: for training and for the parity laws."""
        raise NotImplementedError

    def cache_bytes(
        self, capacity: int, batch: int = 1, dtype: torch.dtype | None = None, prompt: int | None = None
    ) -> CacheBytes:
        """Predicted bytes of `new_cache(batch, capacity, dtype)`, after a prompt of `prompt` tokens if given.

        Only a policy that shrinks its storage at the end of the prompt tells the two apart.
        """
        raise NotImplementedError

    def read_bytes(self, num_tokens: int, batch: int = 1, dtype: torch.dtype | None = None) -> int:
        """Predicted bytes that one decode step reads after `num_tokens`: weights and cache."""
        raise NotImplementedError

    def prefill_flops(self, num_tokens: int, batch: int = 1) -> int:
        """Predicted FLOPs from `num_tokens` prompt ids to the first next-token logits."""
        raise NotImplementedError

    def decode_flops(self, num_tokens: int, batch: int = 1) -> int:
        """Predicted FLOPs of one decode step after `num_tokens`."""
        raise NotImplementedError

    def table_bytes(self, capacity: int, dtype: torch.dtype | None = None) -> int:
        """Predicted bytes that depend on the positions a cache allows and on nothing else (rotary tables)."""
        return 0

    def compressor_bytes(self) -> int:
        """Bytes of weights that exist only to compress the cache (LoCoCo); 0 elsewhere."""
        return 0
