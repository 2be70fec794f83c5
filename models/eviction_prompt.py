"""Calls of several tokens under a budget: exact token-by-token eviction in blocks, and bulk eviction.

    stepwise    the published rule at every token. A block of T queries is multiplied with all n = held + T
                keys at once; what is sequential, who is still alive, is a loop over vectors:
                    p_t = exp(logits_t - max) * alive / sum;  the lowest rating dies
                and one product with V ends the block. Same numbers as one token at a time, no gathers.
    bulk        every query sees what was held and its own predecessors; then once down to the budget.
                For prompts only: what follows one whose length was declared runs stepwise.

Nothing is ever larger than (heads x block x keys). Columns are in temporal order, so that among equals the
first is the oldest. `commit` writes the survivors back, in temporal order, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention import QUERY_BLOCK, attention, attention_with_probs, never_empty, sliding_window
from .cache import Ragged, row_lengths
from .kernels import fused

if TYPE_CHECKING:
    from .eviction import Evictor, Meta

#: Queries per block of the step-wise form: larger means fewer gathers and more masked work.
STEP_BLOCK = 64
#: Queries per block where probabilities are needed: heads x block x keys should stay in a CPU core's cache.
PROBS_BLOCK = 32
#: A GPU wants fewer, larger pieces: as many queries as make about this many probabilities.
PROBS_ELEMENTS = 2**26
#: Smallest share of exp(logits - max) that living keys may have; below it rounding could decide.
LEAST_MASS = 1e-6


@dataclass(frozen=True)
class Call:
    """The tokens of one call: rotated q (B,T,H,D) and k, v (B,T,G,D), their positions, which are real."""

    q: Tensor
    k: Tensor
    v: Tensor
    positions_BT: Tensor
    valid: Ragged | None

    def columns(self, start: int, stop: int) -> Call:
        part = slice(start, stop)
        valid = None if self.valid is None else self.valid.columns(start, stop)
        return Call(self.q[:, part], self.k[:, part], self.v[:, part], self.positions_BT[:, part], valid)

    def of(self, rows: list[int], index: Tensor) -> Call:
        """The same call for some of its rows."""
        valid = self.valid and Ragged([self.valid.lengths[row] for row in rows], self.valid.mask_BT[index])
        return Call(self.q[index], self.k[index], self.v[index], self.positions_BT[index], valid)

    @property
    def lengths(self) -> list[int]:
        return row_lengths(self.valid, *self.q.shape[:2])


@dataclass
class Keys:
    """The n keys of one call: what was held, in temporal order, then the call's own."""

    k_BGnD: Tensor
    v_BGnD: Tensor
    pos_BPn: Tensor
    meta: Meta
    held: int


def stepwise(cache: Evictor, call: Call) -> Tensor:
    """The rule at every token -> (B,T,H,D)."""
    T = call.q.shape[1]
    # While every row stays within its budget nothing has to go: one parallel piece.
    calm = 0 if cache.remembers else min(max(cache.budget - max(cache.rows["seen"]), 0), T)
    outs = [bulk(cache, call.columns(0, calm))] if calm else []
    for start in range(calm, T, STEP_BLOCK):
        outs.append(_block(cache, call.columns(start, min(start + STEP_BLOCK, T))))
    return torch.cat(outs, 1) if len(outs) > 1 else outs[0]


def _block(cache: Evictor, call: Call) -> Tensor:
    B, T, H, D = call.q.shape
    G, P, lengths = call.k.shape[2], cache.choices, call.lengths
    keys = _gather(cache, call)
    n = keys.k_BGnD.shape[2]
    wide = torch.promote_types(call.q.dtype, torch.float32)
    q = call.q.to(wide).unflatten(2, (G, H // G)).permute(0, 2, 3, 1, 4).reshape(B, G, -1, D)
    logits = ((q * cache.heads.scale) @ keys.k_BGnD.to(wide).transpose(-1, -2)).view(B, P, H // P, T, n)
    hidden_BPTn = ~never_empty(cache.visible(keys.pos_BPn, call.positions_BT))
    logits.masked_fill_(hidden_BPTn[:, :, None], float("-inf"))
    e = logits.sub_(logits.amax(-1, keepdim=True)).exp_()

    # alive: 1 for keys that still count; barred: infinite for keys that cannot be chosen now.
    alive_BPn = torch.ones(B, P, n, dtype=wide, device=e.device)
    barred_BPn = torch.zeros_like(alive_BPn).masked_fill_(keys.pos_BPn < 0, float("inf"))
    barred_BPn[..., keys.held :] = float("inf")
    mass = []
    for t in range(T):
        e_BPRn = e[:, :, :, t].mul_(alive_BPn[:, :, None])
        mass.append(e_BPRn.sum(-1, keepdim=True))
        e_BPRn.div_(mass[t])
        arrives = None if call.valid is None else call.valid.mask_BT[:, t, None]
        barred_BPn[..., keys.held + t] = 0 if arrives is None else _barred(arrives, wide)
        rows = zip(cache.rows["seen"], lengths, strict=True)
        goes = [length > t and seen + t >= cache.budget for seen, length in rows]
        if not (cache.remembers or any(goes)):
            continue
        row_BPn = e_BPRn.mean(2)
        position_B1 = call.positions_BT[:, t : t + 1]
        if cache.remembers:
            spoke = row_BPn if arrives is None else row_BPn * arrives[:, None]
            cache.observe(keys.meta, spoke[:, :, None], keys.pos_BPn, position_B1)
        if any(goes):
            rated = cache.rate(keys.meta, row_BPn, keys.pos_BPn, position_B1[:, 0]) + barred_BPn
            victim = rated.argmin(-1, keepdim=True)
            which = None if all(goes) else torch.tensor(goes, device=e.device)[:, None, None]
            for x, gone in ((alive_BPn, 0.0), (barred_BPn, float("inf")), (keys.pos_BPn, -1)):
                if which is None:
                    x.scatter_(2, victim, gone)
                else:
                    x.scatter_(2, victim, x.gather(2, victim).masked_fill(which, gone))
    if T > 1 and not (torch.cat(mass, -1) >= LEAST_MASS).all():
        # Keys that died within the block outweighed the living: too little is left to divide by.
        return torch.cat([_block(cache, call.columns(t, t + 1)) for t in range(T)], 1)
    out = (e.to(call.v.dtype).view(B, G, -1, n) @ keys.v_BGnD).view(B, H, T, D).transpose(1, 2)
    cache.count(lengths)
    _commit(cache, keys, barred_BPn == 0)
    return out


def prompts_in_bulk(cache: Evictor, call: Call) -> Tensor:
    """`bulk` for what belongs to a row's prompt, `stepwise` for what comes after it -> (B,T,H,D).

    Rows whose prompts end at different tokens of the call are worked off apart: none decides for another.
    """
    T = call.q.shape[1]
    rows = zip(cache.rows["seen"], cache.rows["prompt"], call.lengths, strict=True)
    ends = [T if seen + n <= prompt else max(prompt - seen, 0) for seen, prompt, n in rows]
    if len(set(ends)) == 1 and ends[0] in (0, T):
        return (bulk if ends[0] else stepwise)(cache, call)
    out = torch.empty_like(call.q)
    for end in sorted(set(ends)):
        chosen = [row for row, its_end in enumerate(ends) if its_end == end]
        index = torch.tensor(chosen, device=out.device)
        part, own = cache.derive(lambda x, index=index: x[index], chosen), call.of(chosen, index)
        if end:
            out[index, :end] = bulk(part, own.columns(0, end))
        if end < T:
            out[index, end:] = stepwise(part, own.columns(end, T))
        for name, x in cache.tensors.items():
            x[index] = part.tensors[name]
        for name, values in cache.rows.items():
            for row, value in zip(chosen, part.rows[name], strict=True):
                values[row] = value
    return out


def bulk(cache: Evictor, call: Call) -> Tensor:
    """Full attention of the call over [held ; call], then one eviction down to the budget -> (B,T,H,D)."""
    T = call.q.shape[1]
    keys = _gather(cache, call)
    # A policy that remembers only its last rows needs no probabilities before them.
    first = T
    if cache.remembers:
        first = 0 if cache.recall is None or call.valid is not None else max(0, T - cache.recall)
    if cache.fused and cache.heads.window is None and cache.uniform(call.valid):
        out = _bulk_fused(cache, call, keys, first)
        return _evicted(cache, call, keys, out)
    # One output for all blocks: pieces kept between ever larger temporaries would fragment the heap.
    out = torch.empty_like(call.q)
    if first:
        out[:, :first] = _plain(cache, call.columns(0, first), keys)
    size = probs_block(call.q, keys.k_BGnD.shape[2])
    for start in range(first, T, size):
        stop = min(start + size, T)
        # Where rows are in step, later keys are invisible to all queries of a block.
        seen = keys.held + (stop if call.valid is None else T)
        out[:, start:stop] = _observed(cache, call.columns(start, stop), keys, seen)
    return _evicted(cache, call, keys, out)


def _bulk_fused(cache: Evictor, call: Call, keys: Keys, first: int) -> Tensor:
    """Rows in step: keys in temporal order make it causal attention of the newest tokens, in one pass; what
    the queries from `first` on paid to every key is a second one. Policies that look at single rows go on in
    blocks."""
    T, scale = call.q.shape[1], cache.heads.scale
    out, lse_BHT = fused("window_attention").attend(call.q, keys.k_BGnD, keys.v_BGnD, scale)
    if first == T:
        return out
    if cache.rowwise:
        size = probs_block(call.q, keys.k_BGnD.shape[2])
        for start in range(first, T, size):
            stop = min(start + size, T)
            _observed(cache, call.columns(start, stop), keys, keys.held + stop)
        return out
    sums = fused("column_sums").column_sums
    rows_BGn = sums(call.q[:, first:], keys.k_BGnD, lse_BHT[:, :, first:], scale)
    rows_BP1n = rows_BGn.unflatten(1, (cache.choices, -1)).mean(2)[:, :, None]
    cache.observe(keys.meta, rows_BP1n, keys.pos_BPn, call.positions_BT[:, first:])
    return out


def _evicted(cache: Evictor, call: Call, keys: Keys, out: Tensor) -> Tensor:
    """Down to the budget, once every query has seen what it may see; the output as it was."""
    lengths = call.lengths
    cache.count(lengths)
    if max(cache.rows["seen"]) <= cache.budget:
        _commit(cache, keys, keys.pos_BPn >= 0)
        return out
    row_BPn, newest_B = None, call.positions_BT.amax(1)
    if cache.scores and not cache.remembers:
        rows = torch.arange(len(out), device=out.device)
        last = torch.tensor(lengths, device=out.device).sub(1).clamp(min=0)
        mask = cache.head_mask(never_empty(cache.visible(keys.pos_BPn, newest_B[:, None])))
        query = call.q[rows, last][:, None]
        _, probs = attention_with_probs(query, keys.k_BGnD, keys.v_BGnD, cache.heads.scale, mask)
        row_BPn = cache.per_choice(probs)[:, :, 0]
    rated = cache.rate(keys.meta, row_BPn, keys.pos_BPn, newest_B)
    _commit(cache, keys, best(rated, keys.pos_BPn, cache.budget))
    return out


def _plain(cache: Evictor, call: Call, keys: Keys) -> Tensor:
    """Causal attention without probabilities, for the first tokens of the call."""
    T, scale = call.q.shape[1], cache.heads.scale
    stop = keys.held + T
    k, v = keys.k_BGnD[:, :, :stop], keys.v_BGnD[:, :, :stop]
    if keys.held == 0 and call.valid is None:
        if cache.heads.window is None:
            return attention(call.q, k, v, scale, causal=True)
        return sliding_window(call.q, k, v, scale, cache.heads.window)
    outs = []
    for start in range(0, T, QUERY_BLOCK):
        block = call.columns(start, start + QUERY_BLOCK)
        mask = cache.visible(keys.pos_BPn[..., :stop], block.positions_BT)
        outs.append(attention(block.q, k, v, scale, cache.head_mask(never_empty(mask))))
    return torch.cat(outs, 1)


def probs_block(q_BTHD: Tensor, num_keys: int) -> int:
    """How many queries at a time may have their probabilities over `num_keys` keys."""
    if not q_BTHD.is_cuda:
        return PROBS_BLOCK
    return max(16, min(512, PROBS_ELEMENTS // (q_BTHD.shape[0] * q_BTHD.shape[2] * num_keys)))


def _observed(cache: Evictor, call: Call, keys: Keys, stop: int) -> Tensor:
    """Attention of one block of queries over the first `stop` keys, shown to the policy."""
    pos_BPn = keys.pos_BPn[..., :stop]
    mask = cache.head_mask(never_empty(cache.visible(pos_BPn, call.positions_BT)))
    k, v = keys.k_BGnD[:, :, :stop], keys.v_BGnD[:, :, :stop]
    out, probs_BHTn = attention_with_probs(call.q, k, v, cache.heads.scale, mask)
    if call.valid is not None:
        probs_BHTn = probs_BHTn * call.valid.mask_BT[:, None, :, None]
    rows_BPTn = cache.per_choice(probs_BHTn if cache.rowwise else probs_BHTn.sum(2, keepdim=True))
    meta = {name: x[..., :stop] for name, x in keys.meta.items()}
    cache.observe(meta, rows_BPTn, pos_BPn, call.positions_BT)
    return out


def best(rated_BPn: Tensor, pos_BPn: Tensor, count: int) -> Tensor:
    """The `count` highest rated keys as a mask; among equals the newest stay. Columns in temporal order."""
    rated_BPn = rated_BPn.masked_fill(pos_BPn < 0, -float("inf"))
    newest_first = rated_BPn.shape[-1] - 1 - rated_BPn.flip(-1).argsort(stable=True, dim=-1, descending=True)
    chosen = torch.zeros_like(pos_BPn, dtype=torch.bool).scatter_(-1, newest_first[..., :count], True)
    return chosen & (pos_BPn >= 0)


def _gather(cache: Evictor, call: Call) -> Keys:
    """What is held, in temporal order, and the call's own keys; fresh tensors throughout."""
    B, T, G, D = call.k.shape
    held = min(max(cache.rows["seen"]), cache.budget, cache.slots)
    pos_BPS = cache.tensors["pos"]
    order = None
    if not all(cache.rows["sorted"]):
        last = torch.iinfo(pos_BPS.dtype).max
        order = pos_BPS.masked_fill(pos_BPS < 0, last).argsort(-1)[..., :held]

    def per_slot(x: Tensor) -> Tensor:
        """Held entries of what lies per choice, slots last."""
        return x[..., :held] if order is None else x.gather(-1, _along_last(order, x))

    def per_key(x_BGSD: Tensor, new_BTGD: Tensor) -> Tensor:
        old = x_BGSD[:, :, :held] if order is None else x_BGSD.gather(2, cache.kv_index(order, D))
        return torch.cat([old, new_BTGD.transpose(1, 2)], 2)

    meta, arriving = {}, cache.arriving(call.k, call.v)
    for name, x in cache.meta.items():
        new = arriving.get(name, x.new_full((*x.shape[:-1], T), cache.specs[name].fill))
        meta[name] = torch.cat([per_slot(x), new.to(x.dtype)], -1)
    new_pos = call.positions_BT[:, None].expand(B, cache.choices, T)
    pos = torch.cat([per_slot(pos_BPS).long(), new_pos], 2)
    k, v = per_key(cache.tensors["k"], call.k), per_key(cache.tensors["v"], call.v)
    return Keys(k, v, pos, meta, held)


def _along_last(index_BPm: Tensor, x: Tensor) -> Tensor:
    """The index, shaped to gather along the last dimension of x (B,P,…,n)."""
    shape = (*index_BPm.shape[:2], *[1] * (x.ndim - 3), index_BPm.shape[-1])
    return index_BPm.view(shape).expand(*x.shape[:-1], -1)


def _commit(cache: Evictor, keys: Keys, stays_BPn: Tensor) -> None:
    """Write the keys that stay to the first slots, in temporal order."""
    m = min(max(cache.rows["seen"]), cache.budget, cache.slots)
    order = (~stays_BPn).to(torch.int8).argsort(stable=True, dim=-1)[..., :m]
    pos = keys.pos_BPn.masked_fill(~stays_BPn, -1).gather(-1, order)
    kv_order = cache.kv_index(order, keys.k_BGnD.shape[-1])
    cache.tensors["k"][:, :, :m] = keys.k_BGnD.gather(2, kv_order)
    cache.tensors["v"][:, :, :m] = keys.v_BGnD.gather(2, kv_order)
    cache.tensors["pos"].fill_(-1)
    cache.tensors["pos"][:, :, :m] = pos.to(torch.int32)
    for name, x in keys.meta.items():
        cache.tensors[name].fill_(cache.specs[name].fill)
        cache.tensors[name][..., :m] = x.gather(-1, _along_last(order, x))
    cache.tensors["free"].copy_((pos >= 0).sum(-1).clamp(max=cache.slots - 1))
    cache.rows["sorted"] = [1] * cache.batch


def _barred(arrives_B1: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for rows whose token is real, infinite for padding."""
    return torch.zeros(arrives_B1.shape, dtype=dtype, device=arrives_B1.device).masked_fill(
        ~arrives_B1, float("inf")
    )
