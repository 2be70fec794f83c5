"""From one execution to rows: every number with its unit, its phase and everything that identifies it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .metrics import metric
from .plan import Cell, Settings
from .retained import Retained, averaged
from .store import Row, axes_json

if TYPE_CHECKING:
    from suites.suite import Answer, Case, Suite

    from .execute import Readings


def base_row(run: str, cell: Cell, settings: Settings, **known: Any) -> Row:
    """What all rows of a cell share; metric and value are filled in by `dataclasses.replace`."""
    return Row(
        run=run,
        cell=cell.key,
        architecture=cell.architecture,
        suite=cell.suite,
        metric="",
        value=math.nan,
        unit="",
        replicate=cell.replicate,
        axes=axes_json(cell.axes),
        axis="quality" if settings.shape is None else "systems",
        dtype=settings.dtype,
        device=settings.device,
        threads=settings.threads,
        **known,
    )


def failure_row(base: Row, status: str, message: str, phase: str | None) -> Row:
    """The row of a cell that ran out of memory, timed out or crashed."""
    return dataclasses.replace(
        base, metric="failure", value=math.nan, unit="", status=status, message=message, phase=phase
    )


def _number(base: Row, name: str, value: float | None, phase: str, **fields: Any) -> Row:
    number = math.nan if value is None else float(value)
    # A remark on the whole cell is no reason why a number is missing.
    fields.setdefault("message", None if math.isnan(number) else base.message)
    known = {"metric": name, "value": number, "unit": metric(name).unit, "phase": phase}
    return dataclasses.replace(base, **known, **fields)


def model_rows(base: Row, model: Any, load_s: float | None) -> Iterator[Row]:
    """Facts of the model in this cell: weights, compressor, and the time that loading took."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    yield _number(base, "weights_bytes", weights, "load")
    yield _number(base, "compressor_bytes", model.compressor_bytes(), "load")
    budget = getattr(getattr(model, "options", None), "budget", None)
    if budget is not None:
        yield _number(base, "budget_tokens", budget, "load")
    if load_s is not None:
        yield _number(base, "load_s", load_s, "load")


def cost_rows(base: Row, model: Any, readings: Readings, repeat: int | None) -> Iterator[Row]:
    """What one execution cost. `repeat` None: neither warmed up nor repeated."""
    batch, dtype = len(readings.prompt_tokens), model.embed.weight.dtype if hasattr(model, "embed") else None
    last = readings.capacity - 1

    def row(name: str, value: float | None, phase: str, **fields: Any) -> Row:
        return _number(base, name, value, phase, repeat=repeat, **fields)

    def peak(name: str, value: int | None, phase: str, **fields: Any) -> Row:
        if value is None:
            fields["message"] = readings.peak_reason
        return row(name, value, phase, **fields)

    prefill, prompt = readings.prefill, sum(readings.prompt_tokens)
    yield row("prompt_tokens", prompt, "prefill")
    if readings.baseline_allocate_bytes is not None:
        yield row("baseline_allocate_bytes", readings.baseline_allocate_bytes, "prefill")
    if prompt > batch:  # a prompt of one token per request is no prefill to speak of
        yield row("prefill_s", prefill.device_s, "prefill")
        yield row("prefill_wall_s", prefill.wall_s, "prefill")
        yield row("prefill_cpu_s", prefill.cpu_s, "prefill")
        if prefill.launch_share is not None:
            yield row("prefill_launch_share", prefill.launch_share, "prefill")
        yield row("prefill_tokens_per_s", prompt / prefill.device_s if prefill.device_s else None, "prefill")
        yield row("foreign_cpu_share", prefill.foreign_cpu_share, "prefill")
        yield peak("baseline_prefill_bytes", readings.baseline_prefill_bytes, "prefill")
        yield peak("peak_prefill_bytes", readings.peak_prefill_bytes, "prefill")
        if readings.peak_prefill_reserved_bytes is not None:
            yield row("peak_prefill_reserved_bytes", readings.peak_prefill_reserved_bytes, "prefill")
    for part in readings.parts:
        rest, mode = part.window, {"scoring_mode": part.scoring_mode}
        if part.phase == "decode":
            for step, seconds in enumerate(part.step_s):
                yield row("decode_step_s", seconds, "decode", step=step)
            yield row("new_tokens", batch * len(part.step_s), "decode")
            if part.step_s:
                steps, total_s = len(part.step_s), sum(part.step_s)
                yield row("decode_step_cpu_s", None if rest.cpu_s is None else rest.cpu_s / steps, "decode")
                yield row("decode_tokens_per_s", batch * steps / total_s, "decode")
            if part.launch_share is not None:
                yield row("decode_launch_share", part.launch_share, "decode")
            names = ("peak_decode_bytes", "peak_decode_reserved_bytes")
        else:
            yield row("continuation_s", rest.device_s, part.phase, **mode)
            yield row("continuation_cpu_s", rest.cpu_s, part.phase, **mode)
            yield row("continuation_tokens", part.num_tokens, part.phase, **mode)
            names = ("peak_continuation_bytes", "peak_continuation_reserved_bytes")
        yield row("continuation_wall_s", rest.wall_s, part.phase, **mode)
        yield peak(names[0], part.peak_bytes, part.phase, **mode)
        if part.peak_reserved_bytes is not None:
            yield row(names[1], part.peak_reserved_bytes, part.phase, **mode)
        where = "decode" if part.phase == "decode" else "continuation"
        yield row("foreign_cpu_share", rest.foreign_cpu_share, where, **mode)
    yield row("cache_bytes_live", readings.live.total, "continuation")
    yield row("cache_payload_bytes", readings.live.payload, "continuation")
    yield row("cache_metadata_bytes", readings.live.metadata, "continuation")
    yield row("cache_state_bytes", readings.live.state, "continuation")
    if repeat in (None, 0):
        longest = max(readings.prompt_tokens)
        yield row("cache_bytes_predicted", readings.predicted.total, "predicted")
        yield row("read_bytes_per_step", model.read_bytes(last, batch, dtype), "predicted")
        yield row("weights_read_bytes", model.read_bytes(last, 0, dtype), "predicted")  # of no request
        yield row("prefill_flops", model.prefill_flops(longest, batch), "predicted")
        yield row("decode_flops", model.decode_flops(last, batch), "predicted")


def asked_rows(base: Row, cases: Sequence[Case], repeat: int | None) -> Iterator[Row]:
    """How long the forced continuations are to be, as their cases say: what the tokens that were timed are
    held to. Nobody can say it of a text that is generated."""
    asked: dict[str, int] = {}
    for case in cases:
        if case.forced is not None:  # step by step the first is scored from the prompt's logits
            phase = "decode" if case.step_forced else "score"
            asked[phase] = asked.get(phase, 0) + len(case.forced) - case.step_forced
    for phase, number in asked.items():
        yield _number(base, "new_tokens_asked", number, phase, repeat=repeat)


def case_rows(
    base: Row, suite: Suite, cases: Sequence[Case], answers: Sequence[Answer], readings: Readings
) -> Iterator[Row]:
    """Scores of each case, what it said, and what the policy did to it."""
    for index, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        own = dataclasses.replace(
            base, case=case.id, axes=axes_json(dict(case.axes)), scoring_mode=readings.modes[index]
        )
        said = not_finite(case, answer)
        told = {"message": "; ".join(filter(None, (said, base.message)))} if said else {}
        for name, value in ({} if suite.driven else suite.score(case, answer)).items():
            if isinstance(value, Sequence):
                for bin, one in enumerate(value):
                    yield _number(own, name, one, "score", bin=bin, **told)
            else:
                yield _number(own, name, value, "score", **told)
        if case.forced is None:
            yield _number(own, "answer_tokens", len(answer.tokens), "generate", answer=answer.text)
        for held in readings.held[index]:
            fields = {"layer": held.layer, "bin": held.span}
            yield _number(own, "watched_held_share", held.share, held.phase, **fields)
        seen = len(case.prompt) + max(len(answer.tokens) - 1, 0)
        yield _number(own, "evicted_tokens", readings.evicted[index], "policy")
        yield _number(own, "seen_tokens", seen, "policy")
        for name, value in readings.statistics[index].items():
            yield _number(own, name, value, "policy")


def not_finite(case: Case, answer: Answer) -> str | None:
    """A sentence where the model stopped giving numbers; a score from then on means nothing."""
    at = next((at for at, found in enumerate(answer.logprobs) if not math.isfinite(found)), None)
    if at is None or not case.scored:
        return None
    return f"The model's logits were not finite (first at token {at + 1:,} of {len(answer.tokens):,})."


def retained_rows(base: Row, requests: Sequence[Retained]) -> Iterator[Row]:
    """What was kept of all requests of a cell, per layer."""
    for name, value, layer, bin in averaged(requests):
        yield _number(base, name, value, "policy", layer=layer, bin=bin)


def cell_rows(base: Row, results: Mapping[str, float], said: str | None = None) -> Iterator[Row]:
    """Metrics of a whole cell, as a driven suite returns them; `said` speaks against them all."""
    told = {"message": "; ".join(filter(None, (said, base.message)))} if said else {}
    for name, value in results.items():
        yield _number(base, name, value, "score", **told)


def with_evictions(rows: Sequence[Row], evicted: Sequence[int]) -> list[Row]:
    """Put the cell's eviction counts into all of its rows."""
    counts: Mapping[str, int] = {
        "evictions": sum(evicted),
        "requests": len(evicted),
        "requests_with_eviction": sum(n > 0 for n in evicted),
    }
    return [dataclasses.replace(row, **counts) for row in rows]
