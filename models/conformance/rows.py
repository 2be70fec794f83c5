"""Laws of rows: a request's answer does not depend on who else is in the batch, or on padding."""

from __future__ import annotations

import torch

from .law import Broken, equal, law, same
from .subject import CUTS, RAGGED, RAGGED_PROMPTS, Subject, padded


@law(covers="T4 Y11")
def padding_is_inert(s: Subject) -> None:
    """Rows of different lengths in one batch, with padding anywhere, are the rows run alone."""
    model, ids, seeds = s.model(), s.ids(4), [5, 6, 7, 8]
    capacity = s.length + 4
    predicted = model.cache_bytes(capacity, 4, prompt=min(RAGGED_PROMPTS))
    for logits, pad_id, sides in (("all", 0, ("right", "left", "interior")), ("last", 33, ("interior",))):
        alone = [s.alone(ids[b], RAGGED[b], seeds[b], logits) for b in range(4)]
        for side in sides:
            cache = model.new_cache(4, capacity, seeds=seeds, prompts=RAGGED_PROMPTS)
            calls = [0] * 4
            for seen, lengths, out, valid_BT in s.ragged(cache, ids, side, pad_id=pad_id, logits=logits):
                for b, n in enumerate(lengths):
                    if not n:
                        continue
                    got = out[b][valid_BT[b]] if logits == "all" else out[b][None]
                    start, step = (seen[b], n) if logits == "all" else (calls[b], 1)
                    calls[b] += 1
                    same(
                        got[None], alone[b][None, start : start + step], 1e-11,
                        f"row {b} of a batch with padding ({side}) and alone",
                        at=range(seen[b] + n - step, seen[b] + n), row=b,
                        lengths=RAGGED, seeds=seeds, logits=logits,
                    )  # fmt: skip
                after = [a + n for a, n in zip(seen, lengths, strict=True)]
                equal(cache.seen, after, "cache.seen", lengths=RAGGED)
            equal(cache.live_bytes(), predicted, "live_bytes() at the end", lengths=RAGGED)


@law(covers="T4")
def decode_of_some_rows(s: Subject) -> None:
    """decode with valid_B: rows that are not valid stand still, the others are as if alone."""
    model, ids, seeds, starts = s.model(), s.ids(3), [1, 2, 3], [20, 3, 15]
    moves = [[True, step % 3 != 0, step % 2 == 0] for step in range(14)]
    alone = [
        s.alone(ids[b], [starts[b]] + [1] * sum(move[b] for move in moves), seeds[b], "last")
        for b in range(3)
    ]
    cache = model.new_cache(3, s.length + 4, seeds=seeds, prompts=starts)
    model.extend(*padded(ids, [0] * 3, starts, "left"), cache)
    seen = list(starts)
    for step, move in enumerate(moves):
        token_B = torch.stack([ids[b, seen[b]] if move[b] else torch.tensor(17) for b in range(3)])
        out = model.decode(token_B, cache, None if all(move) else torch.tensor(move))
        for b in range(3):
            if move[b]:
                want = alone[b][None, None, 1 + seen[b] - starts[b]]
                same(
                    out[None, b : b + 1], want, 1e-11, f"row {b} beside rows that stand still and alone",
                    at=[seen[b]], row=b, prompts=starts, step=step, seeds=seeds,
                )  # fmt: skip
                seen[b] += 1
        equal(cache.seen, seen, "cache.seen", prompts=starts, step=step)


@law(covers="T4", shapes=("conv",))
def rows_are_independent(s: Subject) -> None:
    """Permuting rows permutes results; a row does not depend on its neighbours or the batch size."""
    model, ids, seeds, cut = s.model(), s.ids(3), [11, 12, 13], CUTS["uneven"]
    whole = s.run(ids, cut, model.new_cache(3, s.length, seeds=seeds))
    for rows in ([2, 0, 1], [1], [0, 2]):
        cache = model.new_cache(len(rows), s.length, seeds=[seeds[r] for r in rows])
        what = f"rows {rows} as a batch of their own and among all three"
        same(s.run(ids[rows], cut, cache), whole[rows], 1e-11, what, cuts=cut, seeds=seeds)
    same(model.forward(ids[1:2]), model.forward(ids)[1:2], 1e-11, "row 1 of forward alone and among three")


@law(shapes=("conv",))
def fork_is_independent(s: Subject) -> None:
    """Two continuations of one context, fed in turns, do not meet; each is as if it were the only one."""
    model, cut, seeds, prompt = s.model(), [4, 1, 11], [1, 2], 25
    texts = [s.ids(2), torch.cat([s.ids(2)[:, :prompt], s.ids(2, seed=9)[:, prompt:]], 1)]
    caches = [model.new_cache(2, s.length, seeds=seeds)]
    model.extend(texts[0][:, :prompt], None, caches[0])
    caches.append(caches[0].fork())
    got: list[list[torch.Tensor]] = [[], []]
    parts = [text[:, prompt:].split(cut, 1) for text in texts]
    for call, n in enumerate(cut):
        for which in (0, 1):
            got[which].append(s.run(parts[which][call], [n], caches[which]))
    for which, text in enumerate(texts):
        equal(caches[which].seen, [s.length] * 2, "seen of a forked cache")
        fresh = model.new_cache(2, s.length, seeds=seeds)
        model.extend(text[:, :prompt], None, fresh)
        expected = s.run(text[:, prompt:], cut, fresh)
        same(
            torch.cat(got[which], 1), expected, 1e-12, f"the {('first', 'forked')[which]} continuation",
            at=range(prompt, s.length), batch=2, cuts=[prompt, *cut], seeds=seeds,
        )  # fmt: skip


@law()
def select_is_running_those_rows(s: Subject) -> None:
    """select with repeats, from a ragged batch: each new row goes on as its source row would alone."""
    model, ids, seeds = s.model(), s.ids(3), [4, 5, 6]
    lengths, rows, cut = [24, 4, 17], [2, 0, 2, 1, 0], [6, 1, 5]
    cache = model.new_cache(3, s.length + 4, seeds=seeds, prompts=lengths)
    model.extend(*padded(ids, [0] * 3, lengths, "right"), cache)
    chosen, more = cache.select(rows), s.ids(5, seed=2)[:, : sum(cut)]
    got = s.run(more, cut, chosen, "last")
    equal(cache.seen, lengths, "seen of the cache that was selected from")
    equal(chosen.seen, [lengths[r] + sum(cut) for r in rows], "seen of the selected rows")
    for i, r in enumerate(rows):
        text = torch.cat([ids[r, : lengths[r]], more[i]])
        expected = s.alone(text, [lengths[r], *cut], seeds[r], "last")[None, 1:]
        at = [lengths[r] + n - 1 for n in (6, 7, 12)]
        what = f"row {i}, selected from row {r}, and that row alone"
        same(
            got[i : i + 1],
            expected,
            1e-11,
            what,
            at=at,
            row=i,
            prompts=lengths,
            rows=rows,
            cuts=cut,
            seeds=seeds,
        )


@law(shapes=("conv",))
def the_same_again(s: Subject) -> None:
    """The same calls with the same seeds give the same bits, whatever the model served in between."""
    model, ids, cut, seeds = s.model(), s.ids(2), CUTS["uneven"], [7, 8]
    first = s.run(ids, cut, model.new_cache(2, s.length, seeds=seeds))
    s.run(s.ids(3, seed=5), CUTS["prompt"], model.new_cache(3, s.length))
    again = s.run(ids, cut, model.new_cache(2, s.length, seeds=seeds))
    if not torch.equal(first, again):
        same(again, first, 0.0, "a repeated run", batch=2, cuts=cut, seeds=seeds)
        raise Broken("a repeated run gives other values (NaN).", batch=2, cuts=cut)
