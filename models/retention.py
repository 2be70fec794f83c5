"""The gated-retention mixer of YOCO's self-decoder, and the state that is its whole memory.

    q, k, v = convolved, normalised, rotated projections;  a = logsigmoid(x W_decay) / 16
    S_n = exp(a_n) S_{n-1} + k_n^T v_n;  o_n = q_n S_n
    mixer = out( silu(x W_gate) * (rms_per_head(o) * gain) )

Gate, decay and state are in at least fp32 whatever the weights are: the official bf16 decode rounds a
decay of 0.9989 to 1, which never forgets. (In training, autocast makes the products bf16.)

The official rule has no gain after the per-head norm (`gain=False`); ours starts at 1 and is trained. With
QK-norm, q and k have unit length and no 1/sqrt(D) is needed. Their positions are the caller's `rope`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Shape
from .cache import ConvState, LayerState, Ragged, TensorSpec, row_lengths
from .kernels import fused, gated_retention
from .layers import Linear, ShortConv, linear, rms_normalise, unit_heads
from .rope import Rope

#: Temperature of the gate: decay = sigmoid(logit) ** (1/16).
GATE_TEMPERATURE = 16


class RetentionState(LayerState):
    """One D x D matrix per head, always in at least fp32; constant in the number of tokens."""

    def __init__(
        self, batch: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        super().__init__(batch, {"s": TensorSpec((num_heads, head_dim, head_dim), wide, "state")}, device)

    def step_key(self):
        return () if self.fused else None

    def retain(
        self, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, log_decay_BTH: Tensor, valid: Ragged | None
    ) -> Tensor:
        """Advance the state over this call's tokens; padding neither decays nor adds."""
        if valid is not None:
            pad = ~valid.mask_BT
            log_decay_BTH = log_decay_BTH.masked_fill(pad[:, :, None], 0)
            k_BTHD = k_BTHD.masked_fill(pad[:, :, None, None], 0)
        state, step = self.tensors["s"], q_BTHD.shape[1] == 1
        if self.fused:
            form = fused("gated_retention").step if step else fused("gated_retention").chunked
            q_BTHD, k_BTHD = q_BTHD.to(v_BTHD.dtype), k_BTHD.to(v_BTHD.dtype)  # autocast widens norms
            out, self.tensors["s"] = form(q_BTHD, k_BTHD, v_BTHD, log_decay_BTH, state)
        else:
            form = gated_retention.recurrent if step else gated_retention.chunked
            out, self.tensors["s"] = form(q_BTHD, k_BTHD, v_BTHD, log_decay_BTH, state)
        self.count(row_lengths(valid, *q_BTHD.shape[:2]))
        return out


class RetentionMixer(nn.Module):
    """Multi-head gated retention; full width, no grouped heads (paper section 3.2)."""

    #: Who computes in `parallel`; states of a cache know it themselves.
    implementation = "torch"

    def __init__(self, shape: Shape, rope: Rope, gain: bool = True) -> None:
        super().__init__()
        self.head_dim = shape.retention_head_dim or shape.head_dim
        if shape.dim % self.head_dim:
            raise ValueError(f"retention needs dim divisible by its heads' width {self.head_dim}.")
        self.num_heads = shape.dim // self.head_dim
        self.scale = 1.0 if shape.qk_norm else self.head_dim**-0.5
        self.qk_norm, self.eps, self.rope = shape.qk_norm, shape.norm_eps, rope
        self.sizes = (shape.dim,) * 3
        self.qkv = Linear(shape.dim, 3 * shape.dim, bias=False)
        self.conv = ShortConv(3 * shape.dim, shape.conv) if shape.conv else None
        self.gate = Linear(shape.dim, shape.dim, bias=False)
        self.decay = Linear(shape.dim, self.num_heads, bias=False)
        self.norm_gain = nn.Parameter(torch.ones(shape.dim)) if gain else None
        self.out = Linear(shape.dim, shape.dim, bias=False)

    def forward(
        self,
        x_BTE: Tensor,
        state: RetentionState,
        conv: ConvState | None,
        positions_BT: Tensor,
        valid: Ragged | None,
    ) -> Tensor:
        qkv = self.qkv(x_BTE)
        if self.conv is not None:
            qkv = self.conv.parallel(qkv) if conv is None else self.conv(conv.shift_in(qkv, valid))
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv.chunk(3, -1))
        if self.qk_norm:
            q, k = unit_heads(q, None), unit_heads(k, None)
        q, k = self.rope(q, positions_BT), self.rope(k, positions_BT) * self.scale
        wide = torch.promote_types(x_BTE.dtype, torch.float32)
        gate_BTH = linear(x_BTE.to(wide), self.decay.weight.to(wide))
        log_decay_BTH = F.logsigmoid(gate_BTH) / GATE_TEMPERATURE
        out = rms_normalise(state.retain(q, k, v, log_decay_BTH, valid), self.eps)
        out = out.flatten(2).to(x_BTE.dtype)
        out = out if self.norm_gain is None else out * self.norm_gain
        return self.out(F.silu(self.gate(x_BTE)) * out)

    def parallel(self, x_BTE: Tensor, positions_BT: Tensor) -> Tensor:
        """A whole sequence from an empty state; differentiable, whoever computes."""
        B = x_BTE.shape[0]
        empty = RetentionState(B, self.num_heads, self.head_dim, x_BTE.dtype, x_BTE.device)
        empty.implementation = self.implementation
        return self(x_BTE, empty, None, positions_BT, None)
