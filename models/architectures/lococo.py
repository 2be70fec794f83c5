"""LoCoCo: heavy hitters verbatim, the rest folded by a learned convolution (arXiv 2406.05317).

    at the start of a call, if more than M + slack slots are filled (official: 16):
        memory  [heavy ; W rest]: the M - Mc slots that received most attention, as they are, and Mc learned
                mixtures of the others (`models/compressor.py`)                              M slots
    then append this call's keys and attend to [memory ; new]

Compression is lazy, so the newest block is exact while its own queries run. Scores are kept per KV head
and summed over the queries that saw a slot:

    scores=last          those of the last call only (official)
    scores=accumulated   those of all calls since the slot exists; heavy slots keep their sum, a mixed slot
                         starts at the W-weighted sum of those that it was mixed from (deviation: our own)

Keys are mixed as rotated, and a mixture has no position. So queries take their true token index, a
sliding window of the model itself hides exact tokens only, never memory, and `kept_positions` is None.

Deviations, stated: a call longer than `block` is cut into blocks (the official `generate` would attend
in full and fold the whole prompt at once); under grouped-query attention scores are averaged over the
query group (extension: official code is multi-head only); of equal scores the oldest slot goes.

`rope_factor` divides all rotary frequencies, on top of the shape's own scaling (official: sequence length
over trained length, 8 at 32K). It changes short contexts, too: compare with baselines on a shape with the
same linear `rope_scaling`. `lora`: rank of trained additions to q, k, v and o (`models/lora.py`).

`trainable=official` tunes the network to the training text as well: against baselines that were not tuned
alike, what it gains is not the cache's. `sinks`, `alpha=bounded` and another `slack` are our own; with a
slack of 0 every step of decoding folds. A cache has M + slack + block slots.

For gradients, feed one block per call and `detach_` after its backward pass: memory is overwritten in place.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..attention import attention, attention_with_probs, never_empty
from ..cache import LayerCache, Ragged, TensorSpec, row_lengths
from ..compressor import Compressor
from ..decoder import Decoder
from ..kernels import fused
from ..lora import add_lora
from ..rope import Rope, llama_frequencies

#: Slots beyond M that may fill up before the next compression, as hard-coded in the official code.
SLACK = 16


@dataclass(frozen=True)
class Options:
    """`budget` memory slots M, `heavy` share of them verbatim, always among those the first `sinks` slots and
    the `local` newest ones (mixtures are not new).

    `block=0` cuts prompts into blocks of `budget` tokens, as the official training and evaluation do.
    `kernel` and `depth` are the convolution's. `trainable` is what `kvmark train` trains: the compressors,
    or, official, embedding, norms and LoRA (`lora` rank) as well, which then belong to the weights.
    """

    budget: int = 256
    heavy: float = 0.5
    kernel: int = 21
    block: int = 0
    scores: Literal["last", "accumulated"] = "last"
    trainable: Literal["compressor", "official"] = "compressor"
    depth: int = 1
    local: int = 0
    rope_factor: float = 1.0
    lora: int = 0
    alpha: Literal["free", "bounded"] = "free"
    sinks: int = 0
    slack: int = SLACK
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 2 or not 0 <= self.heavy < 1 or self.block < 0 or self.slack < 0:
            raise ValueError("lococo needs budget >= 2, 0 <= heavy < 1, block >= 0 and slack >= 0.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"lococo needs an odd kernel >= 1, not {self.kernel}.")
        if self.folded < 1:
            raise ValueError("lococo needs at least one slot that is not verbatim; lower heavy.")
        forced, verbatim = self.local + self.sinks, self.budget - self.folded
        if min(self.local, self.sinks) < 0 or (self.budget_bytes is None and forced > verbatim):
            raise ValueError(
                f"lococo needs local and sinks >= 0, together at most its {verbatim} verbatim slots, "
                f"not {self.local} and {self.sinks}."
            )
        if not 1 <= self.depth <= 64 or not 0 <= self.lora <= 4096:
            raise ValueError("lococo needs depth from 1 to 64 and lora from 0 to 4096.")
        if not 0 < self.rope_factor < math.inf:
            raise ValueError(f"lococo needs a positive, finite rope_factor, not {self.rope_factor}.")
        if self.lora and self.trainable == "compressor":
            raise ValueError("lococo trains LoRA with trainable=official only.")

    @property
    def folded(self) -> int:
        """Mc: memory slots that hold mixtures."""
        return int(self.budget * (1 - self.heavy))

    @property
    def block_tokens(self) -> int:
        return self.block or self.budget

    @property
    def exact_tokens(self) -> int:
        """Up to this length a prompt is never compressed."""
        return ((self.budget + self.slack) // self.block_tokens + 1) * self.block_tokens


class LococoCache(LayerCache):
    """Slots in the order [heavy, mixed, new], and the attention that each received."""

    def __init__(self, heads, request, options, compressor) -> None:
        self.block, self.accumulates = options.block_tokens, options.scores == "accumulated"
        batch, slots = request.batch, min(options.budget + options.slack + self.block, request.capacity)
        kv = TensorSpec((heads.num_kv_heads, slots, heads.head_dim), request.dtype, "payload")
        wide = torch.promote_types(request.dtype, torch.float32)
        score = TensorSpec((heads.num_kv_heads, slots), wide, "metadata")
        specs = {"k": kv, "v": kv, "score": score}
        if request.implementation == "fused":  # `held`, where the device can read it
            specs["filled"] = TensorSpec((), torch.int64, "metadata")
        super().__init__(batch, specs, request.device)
        self.heads, self.slots, self.compressor = heads, slots, compressor
        self.budget, self.slack = options.budget, options.slack
        # A decode step attends to M + 1 … M + slack + 1 slots: what is predicted is the mean of that cycle.
        self.slot_elements, self.reach = heads.slot_elements, min(self.budget + self.slack // 2 + 1, slots)
        self.rows |= {"held": [0] * batch, "compressions": [0] * batch, "folded": [0] * batch}

    def evicted(self) -> list[int]:
        return list(self.rows["folded"])

    def statistics(self) -> dict[str, list[float]]:
        return {
            "lococo_alpha": [float(self.compressor.share.detach())] * self.batch,
            "lococo_entropy": [nats / most for nats, most in self.entropy()],
            "compressions": [float(n) for n in self.rows["compressions"]],
        }

    def entropy(self) -> list[tuple[float, float]]:
        """Per row: mean entropy in nats of a fold's mixtures now, and log(slots mixed). NaN: none yet."""
        found = [(math.nan, math.nan)] * self.batch
        for row, (n, folds) in enumerate(zip(self.rows["held"], self.rows["compressions"], strict=True)):
            if folds:
                held = (self.tensors[name][row : row + 1, :, :n].detach() for name in ("k", "v", "score"))
                nats_B, mixed = self.compressor.entropy(*held)
                found[row] = (nats_B.item(), math.log(mixed))
        return found

    def attend(self, q_BTHD, k_BTGD, v_BTGD, positions_BT, valid):
        q_BTHD = self.heads.rotate(q_BTHD, positions_BT)
        k_BTGD = self.heads.rotate(k_BTGD, positions_BT)
        T, outs = k_BTGD.shape[1], []
        for start in range(0, T, self.block):
            part = slice(start, min(start + self.block, T))
            here = valid and valid.columns(part.start, part.stop)
            outs.append(self._block(q_BTHD[:, part], k_BTGD[:, part], v_BTGD[:, part], here))
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def _block(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, valid: Ragged | None) -> Tensor:
        B, T = k_BTGD.shape[:2]
        lengths = row_lengths(valid, B, T)
        self._compress_where_full(lengths)
        held = self.rows["held"]
        steps = torch.arange(T, device=k_BTGD.device)
        in_step = valid is None and len(set(held)) == 1
        if self.fused and in_step and T == 1:
            slot_BT = self.tensors["filled"][:, None].clone()
            self.write_at(k_BTGD, v_BTGD, slot_BT[0])
        elif in_step:
            slot_BT = (steps + held[0]).expand(B, T)
            self.write_run(k_BTGD, v_BTGD, held[0])
        else:
            slot_BT = torch.tensor(held, device=steps.device)[:, None] + steps
            stays = slot_BT < self.slots if valid is None else valid.mask_BT
            self.write_slots(k_BTGD, v_BTGD, slot_BT, stays)
        self.rows["held"] = [h + n for h, n in zip(held, lengths, strict=True)]
        if self.fused:
            self.tensors["filled"] += T if valid is None else valid.mask_BT.sum(1)
        self.count(lengths)

        used = max(1, *self.rows["held"])
        # Of the last call's scores a compression reads only those of the call that went over M + slack.
        noted = self.accumulates or used > self.budget + self.slack
        if self.fused and in_step and self.heads.window is None:
            return self._attend_fused(q_BTHD, used, noted)
        sees_all = in_step and T == 1 and self.heads.window is None
        mask = None if sees_all else never_empty(self._visible(slot_BT, used, valid))
        k, v = self.tensors["k"][:, :, :used], self.tensors["v"][:, :, :used]
        if not noted:
            return attention(q_BTHD, k, v, self.heads.scale, mask)
        out, probs = attention_with_probs(q_BTHD, k, v, self.heads.scale, mask)
        spoke = probs if valid is None else probs * valid.mask_BT[:, None, :, None]
        received_BHS = spoke.detach().sum(2)
        self._note_scores(received_BHS.unflatten(1, (self.heads.num_kv_heads, -1)).mean(2), valid)
        return out

    def _attend_fused(self, q_BTHD: Tensor, used: int, noted: bool) -> Tensor:
        """Rows in step: this call's are the newest slots, and a query sees its own and those before it."""
        k, v, scale = self.tensors["k"], self.tensors["v"], self.heads.scale
        if q_BTHD.shape[1] == 1:  # over all slots: the same work, however many are filled
            step, choices = fused("decode_attention").attend, self.heads.num_kv_heads if noted else None
            out, received = step(q_BTHD[:, 0], k, v, scale, self.tensors["filled"], None, choices)
            out = out[:, None]
        else:
            k, v = k[:, :, :used], v[:, :, :used]
            out, lse = fused("window_attention").attend(q_BTHD, k, v, scale)
            received = fused("column_sums").column_sums(q_BTHD, k, lse, scale) if noted else None
        if received is not None:
            self._note_scores(received, None)
        return out

    def _visible(self, slot_BT: Tensor, used: int, valid: Ragged | None) -> Tensor:
        """A query sees its own slot and those before it (B,T,used); padding sees nothing."""
        slots = torch.arange(used, device=slot_BT.device)
        visible = slots <= slot_BT[:, :, None]
        if self.heads.window is not None:
            memory = [self.budget if n else 0 for n in self.rows["compressions"]]
            is_memory = slots < torch.tensor(memory, device=slots.device)[:, None, None]
            # Behind the memory slots are consecutive tokens: their distance is that of the slots.
            visible &= is_memory | (slot_BT[:, :, None] - slots < self.heads.window)
        return visible if valid is None else visible & valid.mask_BT[:, :, None]

    def _note_scores(self, received: Tensor, valid: Ragged | None) -> None:
        """Attention (B,G,used) that slots got in this call, summed over its queries, mean over the group."""
        score, used = self.tensors["score"], received.shape[-1]
        if self.accumulates:
            score[:, :, :used] += received
        elif valid is None:
            score[:, :, :used] = received
        else:  # a row without a token in this call has its last call still before it
            spoke = torch.tensor([n > 0 for n in valid.lengths], device=score.device)
            score[spoke, :, :used] = received[spoke]

    def _compress_where_full(self, lengths: list[int]) -> None:
        """Rows that are about to grow and hold more than M + slack slots go back to exactly M."""
        held = self.rows["held"]
        due: dict[tuple[int, bool], list[int]] = {}
        for row, (n, length) in enumerate(zip(held, lengths, strict=True)):
            if length and n > self.budget + self.slack:
                due.setdefault((n, self.rows["compressions"][row] > 0), []).append(row)
        for (n, again), rows in due.items():
            whole, device = len(rows) == self.batch, self.tensors["k"].device
            where = torch.arange(self.batch, device=device) if whole else torch.tensor(rows, device=device)
            index = slice(None) if whole else where
            k, v = self.tensors["k"][index, :, :n], self.tensors["v"][index, :, :n]
            score = self.tensors["score"][index, :, :n]
            fold = self.compressor.fused if self.fused else self.compressor.memory
            memory_k, memory_v, memory_score = fold(k, v, score, again)
            self.tensors["k"][index, :, : self.budget] = memory_k
            self.tensors["v"][index, :, : self.budget] = memory_v
            if self.accumulates:
                self.tensors["score"].index_fill_(0, where, 0)
                self.tensors["score"][index, :, : self.budget] = memory_score.detach()
            if self.fused:
                self.tensors["filled"].index_fill_(0, where, self.budget)
            self._count_fold(n, rows)

    def _count_fold(self, filled: int, rows: list[int]) -> None:
        for row in rows:
            self.rows["held"][row] = self.budget
            self.rows["compressions"][row] += 1
            self.rows["folded"][row] += filled - self.budget

    def step_key(self):
        """Whether a step folds, and how much, or else whether it notes scores."""
        kinds = set(zip(self.rows["held"], map(bool, self.rows["compressions"]), strict=True))
        if not self.fused or self.heads.window is not None or len(kinds) > 1:
            return None
        n, again = kinds.pop()
        most = self.budget + self.slack
        return (n, again) if n > most else self.accumulates or n + 1 > most

    def count_step(self) -> None:
        super().count_step()
        if (n := self.rows["held"][0]) > self.budget + self.slack:
            self._count_fold(n, list(range(self.batch)))
        self.rows["held"] = [h + 1 for h in self.rows["held"]]


class Model(Decoder):
    """The Transformer plus one trained compressor per layer."""

    prompt_mode, implementations = "blockwise", ("torch", "fused")

    def __init__(self, shape, options) -> None:
        super().__init__(shape, options)
        self.block_tokens = options.block_tokens
        if options.depth > 1:
            self.implementations = ("torch",)  # the kernel has one convolution
        if shape.num_heads != shape.num_kv_heads:
            self.remark = "LoCoCo under grouped queries is our extension: scores are means over a group"
        self.compressors = nn.ModuleList(Compressor(shape.head_dim, options) for _ in range(shape.num_layers))
        if options.lora:
            add_lora(self.blocks, options.lora)

    @classmethod
    def weight_names(cls, options):
        """One name per training: "lococo-128", and a suffix for every other option that is not default."""
        parts = [f"lococo-{options.budget}"]
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            plain = (field.default, options.budget) if field.name == "block" else (field.default,)
            if field.name not in ("budget", "budget_bytes") and value not in plain:
                parts.append(value if isinstance(value, str) else f"{field.name}{value:g}")
        return ("transformer", "-".join(parts))

    def build_rope(self, head_dim: int) -> Rope:
        s, scaling = self.shape, self.shape.rope_scaling
        frequency_P = llama_frequencies(head_dim, s.rope_base, s.rope_fraction, scaling)
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return Rope(frequency_P / self.options.rope_factor, amplitude)

    def layer_cache(self, heads, layer, request):
        return LococoCache(heads, request, self.options, self.compressors[layer])

    def compressor_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.compressors.parameters())

    def prefill_flops(self, num_tokens, batch=1) -> int:
        """Blocks attend to [memory, block], which is more than one decoded token ever sees."""
        block, held, folds, pairs = self.options.block_tokens, 0, 0, 0
        for start in range(0, num_tokens, block):
            if held > self.options.budget + self.options.slack:
                folds += self._fold_flops(held)
                held = self.options.budget
            new = min(block, num_tokens - start)
            pairs += new * held + new * (new + 1) // 2
            held += new
        attended = self._pair_flops() * self.shape.num_layers * pairs - self._attention_flops(0, num_tokens)
        return super().prefill_flops(num_tokens, batch) + batch * (attended + folds)

    def decode_flops(self, num_tokens, batch=1) -> int:
        """Mean over a cycle of slack + 1 steps, of which one compresses."""
        o = self.options
        steady = num_tokens > o.budget + o.slack
        fold = self._fold_flops(o.budget + o.slack + 1) // (o.slack + 1) if steady else 0
        return super().decode_flops(num_tokens, batch) + batch * fold

    def _fold_flops(self, filled: int) -> int:
        """One compression in all layers; accumulated scores are mixed as one more channel."""
        o = self.options
        rest = filled - (o.budget - o.folded)
        scores = 2 * o.folded * rest if o.scores == "accumulated" else 0
        per_head = sum(compressor.flops(filled) + scores for compressor in self.compressors)
        return self.shape.num_kv_heads * per_head
