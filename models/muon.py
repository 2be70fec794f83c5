"""Muon: momentum whose every matrix update is replaced by its nearest (semi-)orthogonal matrix.

    m <- .95 m + .05 g            momentum
    u  = .05 g + .95 m            Nesterov-like look-ahead
    o  = newton_schulz(u)         all singular values pulled towards 1: no direction dominates
    W <- (1 - lr * decay) W - lr * sqrt(max(1, rows / cols)) * o

Orthogonality belongs to one linear map, so a fused matrix (q, k and v in one Linear) is split into
its parts first: `Muon` takes each matrix with the row sizes of its parts. Parts of equal shape are
then stacked, and one batched matmul serves them all; a tall part is transposed, which changes
nothing (the iteration is odd in u) and lets the two halves of a SwiGLU share a stack.

Everything that is no matrix between hidden states (embedding, head, taps, gains, scales, the
retention decay) goes to AdamW; `parameter_groups` draws that line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Quintic a*x + b*x^3 + c*x^5: steepest at 0, and maps [0, 1] to about [.7, 1.2] after five rounds.
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def newton_schulz(update_PRC: Tensor) -> Tensor:
    """Orthogonalise P matrices of R rows and C >= R columns at once, in fp32; zero stays zero."""
    a, b, c = NEWTON_SCHULZ
    x_PRC = update_PRC.float()
    # The Frobenius norm bounds the largest singular value: the iteration needs it to be <= 1.
    x_PRC = x_PRC / (x_PRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram_PRR = x_PRC @ x_PRC.mT
        poly_PRR = torch.baddbmm(gram_PRR, gram_PRR, gram_PRR, beta=b, alpha=c)
        x_PRC = torch.baddbmm(x_PRC, poly_PRR, x_PRC, beta=a)
    return x_PRC


class Muon(torch.optim.Optimizer):
    """Muon over `matrices`: each 2-D parameter with the row sizes by which it is split, `(rows,)` if whole.

    Raises ValueError for a parameter that is not 2-D or whose row sizes do not add up to its rows.
    """

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, tuple[int, ...]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        for parameter, rows in matrices.items():
            if parameter.dim() != 2 or sum(rows) != parameter.shape[0]:
                raise ValueError(
                    f"Muon cannot split a parameter of shape {tuple(parameter.shape)} by {rows}."
                )
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._rows = dict(matrices)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every matrix that has a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group["params"], group["lr"], group["momentum"], group["weight_decay"])
        return loss

    def _step_group(
        self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        parts_of_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            update = parameter.grad.lerp(state["momentum"], momentum)
            parameter.mul_(1 - lr * weight_decay)
            rows = self._rows[parameter]
            for weight_RC, update_RC in zip(parameter.split(rows), update.split(rows), strict=True):
                if weight_RC.shape[0] > weight_RC.shape[1]:
                    update_RC = update_RC.T
                parts_of_shape[tuple(update_RC.shape)].append((weight_RC, update_RC))
        for parts in parts_of_shape.values():
            orthogonal_PRC = newton_schulz(torch.stack([update_RC for _, update_RC in parts]))
            for (weight_RC, _), orthogonal_RC in zip(parts, orthogonal_PRC, strict=True):
                rows, cols = weight_RC.shape
                direction_RC = orthogonal_RC.T if rows > cols else orthogonal_RC
                weight_RC.add_(direction_RC, alpha=-lr * max(1.0, rows / cols) ** 0.5)


class ParameterGroups(NamedTuple):
    """Every trainable parameter once: matrices for Muon (with their row sizes), the rest for AdamW."""

    muon: dict[nn.Parameter, tuple[int, ...]]
    decay: list[nn.Parameter]
    no_decay: list[nn.Parameter]


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort the parameters that require gradients.

    Muon: weights of the Linears in `model.blocks` and of the shared K/V projection `model.kv`, split
    by `model.muon_splits()`; not `decay`, whose H rows are gates rather than a map between hidden
    states. AdamW with decay: embedding and head. AdamW without: all others (taps, gains, scales, decay).
    """
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    splits = model.muon_splits()
    groups = ParameterGroups({}, [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name in ("embed.weight", "head.weight"):
            groups.decay.append(parameter)
        elif name in linears and name.startswith(("blocks.", "kv.")) and not name.endswith(".decay.weight"):
            groups.muon[parameter] = tuple(splits.get(name, (parameter.shape[0],)))
        else:
            groups.no_decay.append(parameter)
    return groups
