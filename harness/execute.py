"""The one loop that everything runs through: prefill, then score or generate, through one cache.

    prefill    prompt ids on the device -> first next-token logits          (policy work included)
    forced     the continuation goes through the same cache, each token scored once from the logits
               before it: many per call through `extend`, or one per call through `decode`
    generate   greedy, until every request met a stop string or its limit

Cost and quality come from this same execution: the cache that is timed is the cache that answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import Cache, CacheBytes
from suites.suite import Answer, Case
from suites.tokenizer import Tokenizer

from .clock import PeakMemory, Stopwatch, Window
from .retained import Retained, retained

#: Tokens per `extend` when a continuation is scored: bounds the logits to (batch x this x vocabulary).
SCORE_SEGMENT = 512


@dataclass
class Readings:
    """What one execution of a batch of cases cost, and what its policy did."""

    prefill: Window
    continuation: Window
    step_s: list[float] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    capacity: int = 0
    predicted: CacheBytes = field(default_factory=CacheBytes)
    live: CacheBytes = field(default_factory=CacheBytes)
    peak_prefill_bytes: int | None = None
    peak_continuation_bytes: int | None = None
    baseline_prefill_bytes: int | None = None
    peak_prefill_reserved_bytes: int | None = None
    peak_continuation_reserved_bytes: int | None = None
    peak_reason: str | None = None  # why a peak is unknown
    evicted: list[int] = field(default_factory=list)
    statistics: dict[str, list[float]] = field(default_factory=dict)
    retained: list[Retained] = field(default_factory=list)  # per layer and request that lost something
    scoring_mode: str = ""


def execute(
    model: Architecture,
    cases: Sequence[Case],
    tokenizer: Tokenizer,
    device: str,
    *,
    prefill_chunk: int | None = None,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> tuple[list[Answer], Readings]:
    """Run the cases as one batch (ragged lengths allowed; all forced alike or all generating).

    Raises ValueError for a mixed batch; lets out-of-memory errors pass to the worker.
    """
    kinds = {(case.forced is not None, case.step_forced) for case in cases}
    if len(kinds) != 1:
        raise ValueError("a batch must be all forced in the same way or all generating.")
    watch, peak = Stopwatch(device), PeakMemory(device)
    with torch.inference_mode():
        on_phase("allocate")
        capacity = max(case.num_tokens for case in cases)
        seeds, prompts = [case.seed for case in cases], [len(case.prompt) for case in cases]
        cache = model.new_cache(len(cases), capacity, device=device, seeds=seeds, prompts=prompts)
        tokens_BT, valid_BT = pad([case.prompt for case in cases], tokenizer.pad, device)
        on_phase("prefill")
        peak.reset()
        with watch.window() as prefill:
            logits_BV = _prefill(model, tokens_BT, valid_BT, cache, prefill_chunk)
        readings = Readings(prefill, Window(), capacity=capacity)
        readings.baseline_prefill_bytes = peak.baseline_bytes
        readings.peak_prefill_bytes, readings.peak_reason = peak.read(), peak.reason
        readings.peak_prefill_reserved_bytes = peak.read_reserved()
        readings.prompt_tokens = [len(case.prompt) for case in cases]
        peak.reset()
        forced, stepwise = kinds.pop()
        if stepwise:
            on_phase("decode")
            readings.scoring_mode = "cache-step"
            answers = _decode_forced(model, cases, logits_BV, cache, watch, peak, readings)
        elif forced:
            on_phase("score")
            segment = min(SCORE_SEGMENT, prefill_chunk or SCORE_SEGMENT)
            readings.scoring_mode = f"cache-extend, segments of {segment}"
            with watch.window() as readings.continuation:
                answers = _score(model, cases, logits_BV, cache, tokenizer, device, segment)
        else:
            on_phase("generate")
            readings.scoring_mode = "cache-generate"
            with watch.window() as readings.continuation:
                answers = _generate(model, cases, logits_BV, cache, tokenizer)
        if not stepwise:
            _read_peak(peak, readings)
    readings.new_tokens = [len(answer.tokens) for answer in answers]
    readings.live = cache.live_bytes()
    readings.predicted = model.cache_bytes(capacity, len(cases), prompt=min(prompts))
    readings.evicted = cache.evicted()
    readings.statistics = cache.statistics()
    if any(readings.evicted):  # a layer's own sliding window takes tokens, too, and evicts none
        readings.retained = retained(cache.kept_positions(), cache.seen)
    on_phase("idle")
    return answers, readings


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: str) -> tuple[Tensor, Tensor | None]:
    """Right-pad token rows to one tensor; the mask is None when nothing had to be padded."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    tokens_BT = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], device=device)
    if min(lengths) == longest:
        return tokens_BT, None
    valid_BT = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return tokens_BT, valid_BT


def _prefill(
    model: Architecture, tokens_BT: Tensor, valid_BT: Tensor | None, cache: Cache, chunk: int | None
) -> Tensor:
    """Feed the prompt, at once or in chunks; logits after each row's last token."""
    T = tokens_BT.shape[1]
    logits_BV: Any = None
    for start in range(0, T, chunk or T):
        part = slice(start, start + (chunk or T))
        valid = None if valid_BT is None else valid_BT[:, part]
        new_BV = model.extend(tokens_BT[:, part], valid, cache)
        if valid is None or logits_BV is None:
            logits_BV = new_BV
        else:  # rows whose prompt ended in an earlier chunk keep the logits from there
            logits_BV = torch.where(valid.any(1, keepdim=True), new_BV, logits_BV)
    return logits_BV


def _logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Natural-log probability of each token under its logits, in at least fp32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def _score(
    model: Architecture,
    cases: Sequence[Case],
    logits_BV: Tensor,
    cache: Cache,
    tokenizer: Tokenizer,
    device: str,
    segment: int,
) -> list[Answer]:
    """Score each forced token once; segments of that many tokens go through the cache."""
    tokens_BT, valid_BT = pad([case.forced or () for case in cases], tokenizer.pad, device)
    T = tokens_BT.shape[1]
    scored = [_logprobs(logits_BV, tokens_BT[:, 0])[:, None]]
    for start in range(0, T - 1, segment):
        stop = min(start + segment, T - 1)
        # The last token of a row is never fed: its logits would score nothing.
        fed = None if valid_BT is None else valid_BT[:, start + 1 : stop + 1]
        logits_BTV = model.extend(tokens_BT[:, start:stop], fed, cache, logits="all")
        scored.append(_logprobs(logits_BTV, tokens_BT[:, start + 1 : stop + 1]))
    logprobs = torch.cat(scored, 1).tolist()
    return [
        Answer(tuple(case.forced or ()), tuple(row[: len(case.forced or ())]))
        for case, row in zip(cases, logprobs, strict=True)
    ]


def _decode_forced(
    model: Architecture,
    cases: Sequence[Case],
    logits_BV: Tensor,
    cache: Cache,
    watch: Stopwatch,
    peak: PeakMemory,
    readings: Readings,
) -> list[Answer]:
    """One decode per forced token but the last, each step timed; all rows have the same length."""
    tokens_BT = torch.tensor([case.forced for case in cases], device=logits_BV.device)
    keep = any(case.scored for case in cases)
    logits = [logits_BV]
    with watch.window() as readings.continuation, watch.steps() as steps:
        for t in range(tokens_BT.shape[1] - 1):
            logits_BV = model.decode(tokens_BT[:, t], cache)
            if keep:
                logits.append(logits_BV)
            steps.mark()
    readings.step_s = steps.step_s
    _read_peak(peak, readings)
    if not keep:
        return [Answer(tuple(c.forced or ()), (math.nan,) * len(c.forced or ())) for c in cases]
    scored = torch.stack([_logprobs(row, tokens_BT[:, t]) for t, row in enumerate(logits)], 1).tolist()
    return [Answer(tuple(case.forced or ()), tuple(row)) for case, row in zip(cases, scored, strict=True)]


def _read_peak(peak: PeakMemory, readings: Readings) -> None:
    readings.peak_continuation_bytes = peak.read()
    readings.peak_continuation_reserved_bytes = peak.read_reserved()


def _generate(
    model: Architecture, cases: Sequence[Case], logits_BV: Tensor, cache: Cache, tokenizer: Tokenizer
) -> list[Answer]:
    """Greedy until every row met a stop string, the end token or its limit. Finished rows stand still."""
    made: list[list[int]] = [[] for _ in cases]
    scores: list[list[float]] = [[] for _ in cases]
    running = [case.max_new_tokens > 0 for case in cases]
    while any(running):
        token_B = logits_BV.argmax(-1)
        logprob_B = _logprobs(logits_BV, token_B)
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
            logits_BV = model.decode(token_B, cache, valid_B)
    return [
        Answer(tuple(tokens), tuple(logprobs), _until_stop(tokenizer.decode(tokens), case.stop))
        for case, tokens, logprobs in zip(cases, made, scores, strict=True)
    ]


def _until_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
