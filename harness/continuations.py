"""How cases go on after their prompt: scored in segments, scored step by step, or generated greedily.

    score          forced tokens through `extend`, many per call, each scored from the logits before it
    decode_forced  forced tokens through `decode`, one per call, each step timed
    generate       greedy `decode` until a stop string, the end token or the limit

All three feed the cache that the prompt filled, and never the last token: nothing would be read off it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import Cache
from models.replay import Replayed
from suites.suite import Answer, Case
from suites.tokenizer import Tokenizer

from .clock import StepTimer, Stopwatch


class Decode(Protocol):
    """One token per row -> next-token logits (B,V): `Architecture.decode` of one cache, or its replay."""

    def __call__(self, token_B: Tensor, valid_B: Tensor | None = None) -> Tensor: ...


def decoder(model: Architecture, cache: Cache, graphs: bool) -> Decode:
    """How the steps of a cache are made: as CUDA graphs, or plainly."""
    if graphs:
        return Replayed(model, cache)
    return lambda token_B, valid_B=None: model.decode(token_B, cache, valid_B)


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Right-pad token rows to one tensor; the mask is None when nothing had to be padded."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tokens_BT = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    if min(lengths) == longest:
        return tokens_BT, None
    valid_BT = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return tokens_BT, valid_BT


def score(
    model: Architecture,
    cases: Sequence[Case],
    logits_BV: Tensor,
    cache: Cache,
    tokenizer: Tokenizer,
    segment: int,
) -> list[Answer]:
    """Score each forced token once; segments of that many tokens go through the cache."""
    tokens_BT, valid_BT = pad([case.forced or () for case in cases], tokenizer.pad, logits_BV.device)
    T, device = tokens_BT.shape[1], logits_BV.device
    # One output for all segments: pieces kept between large temporaries would fragment the heap.
    wide = torch.promote_types(logits_BV.dtype, torch.float32)
    logprobs_BT = torch.empty(tokens_BT.shape, dtype=wide, device=device)
    greedy_BT = torch.empty(tokens_BT.shape, dtype=torch.bool, device=device)
    logprobs_BT[:, :1], greedy_BT[:, :1] = _marked(logits_BV[:, None], tokens_BT[:, :1])
    for start in range(0, T - 1, segment):
        stop = min(start + segment, T - 1)
        # The last token of a row is never fed: its logits would score nothing.
        fed = None if valid_BT is None else valid_BT[:, start + 1 : stop + 1]
        logits_BTV = model.extend(tokens_BT[:, start:stop], fed, cache, logits="all")
        part = slice(start + 1, stop + 1)
        logprobs_BT[:, part], greedy_BT[:, part] = _marked(logits_BTV, tokens_BT[:, part])
    return _answers(cases, logprobs_BT, greedy_BT)


def decode_forced(
    decode: Decode, cases: Sequence[Case], logits_BV: Tensor, watch: Stopwatch
) -> tuple[list[Tensor], StepTimer]:
    """One decode per forced token but the last, each step timed; all rows have the same length.

    Returns the logits before each token, if any case is scored, and the timer of the steps.
    """
    tokens_BT = torch.tensor([case.forced for case in cases], device=logits_BV.device)
    keep = any(case.scored for case in cases)
    logits = [logits_BV]
    with watch.steps() as steps:
        for t in range(tokens_BT.shape[1] - 1):
            logits_BV = decode(tokens_BT[:, t])
            if keep:
                logits.append(logits_BV.clone())  # a replayed step overwrites them
            steps.mark()
    return (logits if keep else []), steps


def score_steps(cases: Sequence[Case], logits: Sequence[Tensor]) -> list[Answer]:
    """Answers of `decode_forced`: NaN where nothing was kept."""
    if not logits:
        return [Answer(tuple(c.forced or ()), (math.nan,) * len(c.forced or ())) for c in cases]
    tokens_BT = torch.tensor([case.forced for case in cases], device=logits[0].device)
    return _answers(cases, *_marked(torch.stack(list(logits), 1), tokens_BT))


def generate(decode: Decode, cases: Sequence[Case], logits_BV: Tensor, tokenizer: Tokenizer) -> list[Answer]:
    """Greedy until every row met a stop string, the end token or its limit. Finished rows stand still."""
    made: list[list[int]] = [[] for _ in cases]
    scores: list[list[float]] = [[] for _ in cases]
    running = [case.max_new_tokens > 0 for case in cases]
    while any(running):
        token_B = logits_BV.argmax(-1)
        logprob_B = _marked(logits_BV, token_B)[0]
        for b, (token, logprob) in enumerate(zip(token_B.tolist(), logprob_B.tolist(), strict=True)):
            if not running[b]:
                continue
            made[b].append(token)
            scores[b].append(logprob)
            text = tokenizer.decode(made[b])
            stopped = token in tokenizer.eos or any(stop in text for stop in cases[b].stop)
            running[b] = not stopped and len(made[b]) < cases[b].max_new_tokens
        if any(running):
            valid_B = None if all(running) else torch.tensor(running, device=token_B.device)
            logits_BV = decode(token_B, valid_B)
    return [
        Answer(tuple(tokens), tuple(logprobs), _until_stop(tokenizer.decode(tokens), case.stop))
        for case, tokens, logprobs in zip(cases, made, scores, strict=True)
    ]


def _until_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def _marked(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Natural-log probability of each token, in at least fp32, and whether it is the likeliest one."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    found = wide.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return found, wide.argmax(-1) == tokens


def _answers(cases: Sequence[Case], logprobs_BT: Tensor, greedy_BT: Tensor) -> list[Answer]:
    """One Answer per row, without its padding."""
    rows = zip(cases, logprobs_BT.tolist(), greedy_BT.tolist(), strict=True)
    return [
        Answer(forced, tuple(logprobs[: len(forced)]), likeliest=tuple(greedy[: len(forced)]))
        for case, logprobs, greedy in rows
        for forced in [case.forced or ()]
    ]
