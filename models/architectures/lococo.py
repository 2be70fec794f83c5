"""LoCoCo: heavy hitters verbatim, the rest folded by a learned convolution (arXiv 2406.05317).

    at the start of a call, if more than M + 16 slots are filled:
        heavy   top M - Mc keys by the attention that the previous call paid them, kept as they are
        rest    the others in order: Z = Conv1d([K;V]) -> Mc rows, W = softmax over tokens(ReLU(Z))
                W <- (1 - alpha) * one-hot(top Mc of rest) + alpha * W
        memory  [heavy ; W K_rest], [heavy ; W V_rest]                     M slots
    then append this call's keys and attend to [memory ; new]

The newest block is always exact while its own queries run, since compression is lazy. Scores are
those of the last call only, summed over its queries, per KV head. Keys are mixed as rotated.

Deviations, stated: a call longer than `block` is cut into blocks (the official `generate` would
attend in full and fold the whole prompt at once); under grouped-query attention scores are averaged
over the query group (official code is multi-head only); among equal scores the newest is preferred.
The convolution starts at N(0, 1/fan_in), not N(0, 1), so that its softmax is not one-hot at once.

For gradients, feed one block per call and `detach_` after its backward pass: memory is overwritten in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import attention_with_probs, never_empty
from ..cache import LayerCache, Ragged, TensorSpec, row_lengths
from ..decoder import Decoder

#: Slots beyond M that may fill up before the next compression (hard-coded in the official code).
SLACK = 16


@dataclass(frozen=True)
class Options:
    """`budget` memory slots M, `heavy` share of them verbatim, convolution `kernel`, prompt `block`.

    `block=0` means a block of `budget` tokens, as in the official training and evaluation.
    """

    budget: int = 256
    heavy: float = 0.5
    kernel: int = 21
    block: int = 0
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 2 or not 0 <= self.heavy < 1 or self.block < 0:
            raise ValueError("lococo needs budget >= 2, 0 <= heavy < 1 and block >= 0.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"lococo needs an odd kernel >= 1, not {self.kernel}.")
        if int(self.budget * (1 - self.heavy)) < 1:
            raise ValueError("lococo needs at least one slot that is not verbatim; lower heavy.")

    @property
    def folded(self) -> int:
        """Mc: memory slots that hold mixtures."""
        return int(self.budget * (1 - self.heavy))


class Compressor(nn.Module):
    """One per layer, shared by its heads: output channel of the convolution = memory slot."""

    def __init__(self, head_dim: int, options: Options) -> None:
        super().__init__()
        self.budget, self.folded = options.budget, options.folded
        self.conv = nn.Conv1d(2 * head_dim, self.folded, options.kernel, padding=options.kernel // 2)
        nn.init.normal_(self.conv.weight, std=(2 * head_dim * options.kernel) ** -0.5)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor) -> tuple[Tensor, Tensor]:
        """n filled slots (n >= M) -> memory keys and values (B,G,M,D). Inputs are detached."""
        k, v, score = k_BGnD.detach(), v_BGnD.detach(), score_BGn.detach()
        heavy, rest = split_top(score, self.budget - self.folded)
        weights = self.weights(_pick(k, rest), _pick(v, rest), score.gather(-1, rest))
        memory_k = torch.cat([_pick(k, heavy), weights.to(k.dtype) @ _pick(k, rest)], 2)
        memory_v = torch.cat([_pick(v, heavy), weights.to(v.dtype) @ _pick(v, rest)], 2)
        return memory_k, memory_v

    def weights(self, k_BGnD: Tensor, v_BGnD: Tensor, score_BGn: Tensor) -> Tensor:
        """Mixing weights (B,G,Mc,n) over the rest; every row sums to 1 for any alpha."""
        channels = torch.cat([k_BGnD, v_BGnD], -1).flatten(0, 1).transpose(1, 2)
        z = self.conv(channels.to(self.conv.weight.dtype)).relu()
        wide = torch.promote_types(z.dtype, torch.float32)
        mixed = z.to(wide).softmax(-1).unflatten(0, k_BGnD.shape[:2])
        chosen, _ = split_top(score_BGn, self.folded)
        one_hot = torch.zeros_like(mixed).scatter_(-1, chosen[..., None], 1.0)
        alpha = self.alpha.to(wide)
        return (1 - alpha) * one_hot + alpha * mixed


class LococoCache(LayerCache):
    """Slots in the order [heavy, mixed, new]; `score` is the attention of the last call."""

    def __init__(self, heads, request, options, compressor) -> None:
        self.block = options.block or options.budget
        batch, slots = request.batch, min(options.budget + SLACK + self.block, request.capacity)
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), request.dtype, "payload")
        wide = torch.promote_types(request.dtype, torch.float32)
        score = TensorSpec((heads.num_kv_heads, slots), wide, "metadata")
        super().__init__(batch, {"k": kv, "v": kv, "score": score}, request.device)
        self.heads, self.budget, self.slots = heads, options.budget, slots
        self.compressor = compressor
        self.slot_elements, self.reach = heads.slot_elements, min(options.budget + SLACK + 1, slots)
        self.rows |= {"held": [0] * batch, "compressions": [0] * batch, "folded": [0] * batch}

    def evicted(self) -> list[int]:
        return list(self.rows["folded"])

    def statistics(self) -> dict[str, list[float]]:
        return {
            "lococo_alpha": [float(self.compressor.alpha)] * self.batch,
            "compressions": [float(n) for n in self.rows["compressions"]],
        }

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        T, outs = k_BTGD.shape[1], []
        for start in range(0, T, self.block):
            stop = min(start + self.block, T)
            part = slice(start, stop)
            here = None if valid is None else valid.columns(start, stop)
            outs.append(self._block(q_BTHD[:, part], k_BTGD[:, part], v_BTGD[:, part], here))
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def _block(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, valid: Ragged | None) -> Tensor:
        B, T = k_BTGD.shape[:2]
        lengths = row_lengths(valid, B, T)
        self._compress_where_full(lengths)
        held = self.rows["held"]
        steps = torch.arange(T, device=k_BTGD.device)
        if valid is None and len(set(held)) == 1:
            slot_BT = (steps + held[0]).expand(B, T)
            self.write_run(k_BTGD, v_BTGD, held[0])
        else:
            slot_BT = torch.tensor(held, device=steps.device)[:, None] + steps
            stays = slot_BT < self.slots if valid is None else valid.mask_BT
            self.write_slots(k_BTGD, v_BTGD, slot_BT, stays)
        self.rows["held"] = [h + n for h, n in zip(held, lengths, strict=True)]
        self.count(lengths)

        # A query sees its own slot and all before it; padding may see anything (never_empty).
        used = max(1, *self.rows["held"])
        mask = torch.arange(used, device=steps.device) <= slot_BT[:, :, None]
        if valid is not None:
            mask &= valid.mask_BT[:, :, None]
        k, v = self.tensors["k"][:, :, :used], self.tensors["v"][:, :, :used]
        out, probs = attention_with_probs(q_BTHD, k, v, self.heads.scale, never_empty(mask))
        self._note_scores(probs.detach(), valid)
        return out

    def _note_scores(self, probs_BHTS: Tensor, valid: Ragged | None) -> None:
        """Attention received per slot in this call, summed over its queries, mean over the group."""
        if valid is not None:
            probs_BHTS = probs_BHTS * valid.mask_BT[:, None, :, None]
        score = probs_BHTS.sum(2).unflatten(1, (self.heads.num_kv_heads, -1)).mean(2)
        new = torch.zeros_like(self.tensors["score"])
        new[:, :, : score.shape[-1]] = score
        if valid is not None:
            spoke = torch.tensor([n > 0 for n in valid.lengths], device=new.device)
            new = torch.where(spoke[:, None, None], new, self.tensors["score"])
        self.tensors["score"] = new

    def _compress_where_full(self, lengths: list[int]) -> None:
        """Rows that are about to grow and hold more than M + 16 slots go back to exactly M."""
        held = self.rows["held"]
        due: dict[int, list[int]] = {}
        for row, (n, length) in enumerate(zip(held, lengths, strict=True)):
            if length and n > self.budget + SLACK:
                due.setdefault(n, []).append(row)
        for n, rows in due.items():
            index: slice | Tensor = slice(None)
            if len(rows) < self.batch:
                index = torch.tensor(rows, device=self.tensors["k"].device)
            k, v = self.tensors["k"][index, :, :n], self.tensors["v"][index, :, :n]
            memory_k, memory_v = self.compressor(k, v, self.tensors["score"][index, :, :n])
            self.tensors["k"][index, :, : self.budget] = memory_k
            self.tensors["v"][index, :, : self.budget] = memory_v
            for row in rows:
                held[row] = self.budget
                self.rows["compressions"][row] += 1
                self.rows["folded"][row] += n - self.budget


class Model(Decoder):
    """The frozen Transformer plus one trained compressor per layer."""

    prompt_mode = "blockwise"

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.compressors = nn.ModuleList(Compressor(shape.head_dim, options) for _ in range(shape.num_layers))

    @classmethod
    def weight_names(cls, options):
        return ("transformer", f"lococo-{options.budget}")

    def layer_cache(self, heads, layer, request):
        return LococoCache(heads, request, self.options, self.compressors[layer])

    def compressor_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.compressors.parameters())

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """Blocks attend to [memory, block], which is more than one decoded token ever sees."""
        block, held, folds, pairs = self.options.block or self.options.budget, 0, 0, 0
        for start in range(0, num_tokens, block):
            if held > self.options.budget + SLACK:
                folds += self._fold_flops(held)
                held = self.options.budget
            new = min(block, num_tokens - start)
            pairs += new * held + new * (new + 1) // 2
            held += new
        attended = self._pair_flops() * pairs - self._attention_flops(0, num_tokens)
        return super().prefill_flops(num_tokens, batch) + batch * (attended + folds)

    def decode_flops(self, num_tokens, batch=1) -> int:
        """Mean over a cycle of 17 steps, of which one compresses."""
        steady = num_tokens > self.options.budget + SLACK
        fold = self._fold_flops(self.options.budget + SLACK + 1) // (SLACK + 1) if steady else 0
        return super().decode_flops(num_tokens, batch) + batch * fold

    def _fold_flops(self, held: int) -> int:
        """One compression of `held` slots in all layers: the convolution and the two mixtures."""
        o, D = self.options, self.shape.head_dim
        rest = held - (o.budget - o.folded)
        per_head = 2 * 2 * D * o.folded * o.kernel * rest + 2 * o.folded * rest * 2 * D
        return self.shape.num_layers * self.shape.num_kv_heads * per_head


def split_top(score: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Indices of the `top` largest scores and of the others, each in temporal order."""
    n = score.shape[-1]
    # Newest first, then a stable sort: among equal scores the newest is preferred.
    order = n - 1 - score.flip(-1).argsort(stable=True, dim=-1, descending=True)
    return order[..., :top].sort(-1).values, order[..., top:].sort(-1).values


def _pick(x_BGnD: Tensor, index_BGm: Tensor) -> Tensor:
    """Rows of x along n, per batch row and head."""
    return x_BGnD.gather(2, index_BGm[..., None].expand(*index_BGm.shape, x_BGnD.shape[-1]))
