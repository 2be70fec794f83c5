"""The one loop that everything runs through: prefill, then score or generate, through one cache.

    prefill    prompt ids on the device -> first next-token logits          (policy work included)
    forced     the continuation goes through the same cache, each token scored once from the logits
               before it: many per call through `extend`, or one per call through `decode`
    generate   greedy, until every request met a stop string or its limit

Cost and quality come from this same execution: the cache that is timed is the cache that answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from models.architecture import Architecture
from models.cache import Cache, CacheBytes
from suites.suite import Answer, Case
from suites.tokenizer import Tokenizer

from .clock import PeakMemory, Stopwatch, Window
from .continuations import decode_forced, decoder, generate, pad, score, score_steps
from .held import Held, held_spans
from .retained import Retained, retained

#: Tokens per `extend` when a continuation is scored: bounds the logits to (batch x this x vocabulary).
SCORE_SEGMENT = 512
#: Continuations that are scored together, or as many as there are requests where these are more: bounds
#: the copies of a prompt's cache.
SCORE_ROWS = 16
T = TypeVar("T")
_MODES = {"decode": "cache-step", "generate": "cache-generate"}


@dataclass
class Part:
    """What one kind of continuation cost: of the forced cases of a batch, or of the generating ones."""

    phase: str  # "score", "decode" or "generate"
    scoring_mode: str
    window: Window = field(default_factory=Window)
    num_tokens: int = 0
    step_s: list[float] = field(default_factory=list)
    launch_share: float | None = None  # of the steps; None on a CPU
    peak_bytes: int | None = None
    peak_reserved_bytes: int | None = None


@dataclass
class Readings:
    """What one execution of a batch of cases cost, and what its policy did; lists are per case."""

    prefill: Window
    prompt_tokens: list[int]  # per request: cases that share a prompt are one until it ends
    capacity: int
    parts: list[Part] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)
    statistics: list[dict[str, float]] = field(default_factory=list)
    held: list[list[Held]] = field(default_factory=list)  # of the spans that a case watches
    retained: list[Retained] = field(default_factory=list)  # per layer and case that lost something
    predicted: CacheBytes = field(default_factory=CacheBytes)
    live: CacheBytes = field(default_factory=CacheBytes)
    baseline_allocate_bytes: int | None = None
    baseline_prefill_bytes: int | None = None
    peak_prefill_bytes: int | None = None
    peak_prefill_reserved_bytes: int | None = None
    peak_reason: str | None = None  # why a peak is unknown

    @property
    def scoring_mode(self) -> str:
        """Of all parts."""
        return " + ".join(part.scoring_mode for part in self.parts)


def execute(
    model: Architecture,
    cases: Sequence[Case],
    tokenizer: Tokenizer,
    device: str,
    *,
    prefill_chunk: int | None = None,
    graphs: bool = False,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> tuple[list[Answer], Readings]:
    """Run the cases as one batch: lengths may differ, and some may be forced while others generate.

    Cases with the same prompt and seed are one request until their continuations part: the prompt is fed
    once, and each goes on with a copy of its cache. Raises ValueError where stepwise cases stand beside
    others; lets out-of-memory errors pass to the worker.
    """
    owner = requests(cases)
    first = [owner.index(request) for request in range(max(owner) + 1)]
    prompts = [cases[index].prompt for index in first]
    watch, peak = Stopwatch(device), PeakMemory(device)
    with torch.inference_mode():
        on_phase("allocate")
        in_use_bytes = peak.in_use()
        capacity, lengths = max(case.num_tokens for case in cases), [len(prompt) for prompt in prompts]
        seeds = [cases[index].seed for index in first]
        cache = model.new_cache(len(prompts), capacity, device=device, seeds=seeds, prompts=lengths)
        tokens_BT, valid_BT = pad(prompts, tokenizer.pad, device)
        on_phase("prefill")
        peak.reset()
        with watch.window() as prefill:
            logits_BV = _prefill(model, tokens_BT, valid_BT, cache, prefill_chunk)
        readings = Readings(prefill, lengths, capacity)
        readings.baseline_allocate_bytes, readings.baseline_prefill_bytes = in_use_bytes, peak.baseline_bytes
        readings.peak_prefill_bytes, readings.peak_reason = peak.read(), peak.reason
        readings.peak_prefill_reserved_bytes = peak.read_reserved()
        evicted, held = _per_case(cases), _per_case(cases)
        answers, statistics = _per_case(cases), _per_case(cases)
        for index, case in enumerate(cases):
            held[index] = held_spans("prefill", cache, owner[index], case.watched)
        chosen_of = _kinds(cases)
        for number, (kind, chosen) in enumerate(chosen_of.items()):
            on_phase(kind)
            segment = score_segment(model.block_tokens, prefill_chunk)
            part = Part(kind, f"cache-extend, segments of {segment}" if kind == "score" else _MODES[kind])
            readings.parts.append(part)
            most = max(SCORE_ROWS, len(prompts)) if kind == "score" else len(chosen)
            groups = _groups(cases, chosen, most)
            for turn, group in enumerate(groups):
                rows, mine = [owner[index] for index in group], [cases[index] for index in group]
                # The very last may use the cache itself; whoever comes before it must leave it as it is.
                last = (number, turn) == (len(chosen_of) - 1, len(groups) - 1)
                alone = last and rows == list(range(cache.batch))
                own, last_BV = (cache, logits_BV) if alone else (cache.select(rows), logits_BV[rows])
                found = _go_on(part, model, mine, last_BV, own, tokenizer, watch, peak, segment, graphs)
                gone, told = own.evicted(), own.statistics()
                for row, index in enumerate(group):
                    answers[index], evicted[index] = found[row], gone[row]
                    statistics[index] = {name: values[row] for name, values in told.items()}
                    held[index] += held_spans(kind, own, row, cases[index].watched)
                if any(gone):  # a layer's own sliding window takes tokens, too, and evicts none
                    readings.retained += retained(own.kept_positions(), own.seen)
                del own  # before the next copy is made
    modes = {part.phase: part.scoring_mode for part in readings.parts}
    readings.modes = [modes[kind_of(case)] for case in cases]
    readings.new_tokens = [len(answer.tokens) for answer in answers]
    readings.evicted, readings.statistics, readings.held = evicted, statistics, held
    readings.live = cache.live_bytes()
    readings.predicted = model.cache_bytes(capacity, len(prompts), prompt=min(lengths))
    on_phase("idle")
    return answers, readings


def requests(cases: Sequence[Case]) -> list[int]:
    """Which request each case belongs to, numbered in order: equal prompt and seed is one.

    A case that is timed step by step is always a request of its own.
    """
    numbers: dict[Any, int] = {}
    keys = [(case.prompt, case.seed, index if case.step_forced else -1) for index, case in enumerate(cases)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def kind_of(case: Case) -> str:
    """How a case goes on: the name of its phase."""
    if case.forced is None:
        return "generate"
    return "decode" if case.step_forced else "score"


def _kinds(cases: Sequence[Case]) -> dict[str, list[int]]:
    """Cases by kind, generating ones last."""
    found: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        found.setdefault(kind_of(case), []).append(index)
    if "decode" in found and len(found) > 1:
        raise ValueError("cases that are timed step by step cannot share a batch with others.")
    return dict(sorted(found.items(), key=lambda item: item[0] == "generate"))


def _per_case(cases: Sequence[Case]) -> list[Any]:
    return [None] * len(cases)


def _groups(cases: Sequence[Case], chosen: list[int], most: int) -> list[Sequence[int]]:
    """Forced cases in groups of at most `most`, of like length where there are several.

    The choices of a batch of questions differ in length: all at once, most of what is multiplied would be
    padding. And every one holds a copy of its prompt's cache.
    """
    if len(chosen) <= most:
        return [chosen]
    return even_parts(sorted(chosen, key=lambda index: -len(cases[index].forced or ())), most)


def even_parts(items: Sequence[T], most: int) -> list[Sequence[T]]:
    """Consecutive parts of at most `most` items, as few as can be, their sizes at most one apart."""
    size, longer = divmod(len(items), parts := -(-len(items) // most))
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return [items[start:stop] for start, stop in zip(starts, starts[1:], strict=False)]


def _go_on(
    part: Part,
    model: Architecture,
    cases: Sequence[Case],
    logits_BV: Tensor,
    cache: Cache,
    tokenizer: Tokenizer,
    watch: Stopwatch,
    peak: PeakMemory,
    segment: int,
    graphs: bool,
) -> list[Answer]:
    """Some cases of a part, from the first logits to their answers; what it cost is added to the part."""
    peak.reset()
    decode = decoder(model, cache, graphs)
    with watch.window() as window:
        if part.phase == "decode":
            logits, steps = decode_forced(decode, cases, logits_BV, watch)
            part.step_s, part.launch_share = steps.step_s, steps.launch_share
        elif part.phase == "score":
            answers = score(model, cases, logits_BV, cache, tokenizer, segment)
        else:
            answers = generate(decode, cases, logits_BV, tokenizer)
    part.window = window if part.num_tokens == 0 else part.window + window
    part.peak_bytes = _most(part.peak_bytes, peak.read())
    part.peak_reserved_bytes = _most(part.peak_reserved_bytes, peak.read_reserved())
    if part.phase == "decode":
        answers = score_steps(cases, logits)
    part.num_tokens += sum(len(answer.tokens) for answer in answers)
    return answers


def _most(*found: int | None) -> int | None:
    return max((number for number in found if number is not None), default=None)


def score_segment(block: int, chunk: int | None) -> int:
    """Tokens per `extend` when a continuation is scored: whole blocks of a policy that works in blocks.

    A chunk that the user chose is kept to, even where it is shorter than a block.
    """
    most = min(SCORE_SEGMENT, chunk or SCORE_SEGMENT)
    if most >= block:
        return most // block * block
    return block if chunk is None else min(block, chunk)


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
