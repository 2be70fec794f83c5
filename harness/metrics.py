"""What every number is called, which unit it is stored in, which way is better, how it is printed.

Rows hold SI units and plain shares; nothing is scaled before it is printed, and it is printed by the
formatter that stands here, so that one quantity never shows two units:

    METRICS["prefill_s"].format(0.0123)          -> "12.3 ms"
    METRICS["cache_bytes_live"].format(1 << 20)  -> "1.00 MiB"
    METRICS["evicted_share"].format(0.5)         -> "50.0 %"

A metric that a new suite or architecture brings along need not be entered: `metric(name)` answers
with a plain number, and the report shows it in a table of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

#: What is printed where nothing was measured.
NOTHING = "–"


@dataclass(frozen=True)
class Metric:
    """One kind of number. `better` is "low", "high" or None where neither is a merit."""

    unit: str
    better: str | None
    label: str
    format: Callable[[float | None], str]


def _known(text: Callable[[float], str]) -> Callable[[float | None], str]:
    """A formatter that prints `NOTHING` for None, NaN and infinities."""

    @functools.wraps(text)  # under its own name another process finds it (harness.report.pool)
    def format(value: float | None) -> str:
        return NOTHING if value is None or not math.isfinite(value) else text(float(value))

    return format


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits and thousands separators: 1234.5 -> "1,234"."""
    if value == 0:
        return "0"
    rounded = abs(float(f"{value:.{digits - 1}e}"))  # 0.9996 has the decimals of 1, not of 0.9
    decimals = digits - 1 - math.floor(math.log10(rounded))
    return f"{value:.{digits - 1}e}" if decimals > 7 else f"{value:,.{max(decimals, 0)}f}"


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """In the largest unit of `steps` (descending) that rounds to at least 1, else in the smallest."""
    size, unit = next((step for step in steps if abs(value) >= 0.9995 * step[0]), steps[-1])
    return f"{significant(value / size)} {unit}"


@_known
def format_bytes(value: float) -> str:
    if abs(value) < 1024:
        return f"{value:,.0f} B"
    return _scaled(
        value, [(1024.0**n, f"{prefix}iB") for n, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))]
    )


@_known
def format_seconds(value: float) -> str:
    return "0 s" if value == 0 else _scaled(value, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs")])


@_known
def format_share(value: float) -> str:
    return f"{100 * value:.1f} %"


@_known
def format_times(value: float) -> str:
    return f"×{significant(value)}"


@_known
def format_count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else significant(value)


@_known
def format_number(value: float) -> str:
    return significant(value)


@_known
def format_flops(value: float) -> str:
    return _scaled(value, [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")])


@_known
def format_joules(value: float) -> str:
    return _scaled(value, [(1.0, "J/token"), (1e-3, "mJ/token"), (1e-6, "µJ/token")])


@_known
def format_rate(value: float) -> str:
    return f"{significant(value)} tok/s"


@_known
def format_bits(value: float) -> str:
    return f"{value:.3f}"


@_known
def format_score(value: float) -> str:
    """Shares that their field prints times 100, without a sign."""
    return f"{100 * value:.1f}"


METRICS: dict[str, Metric] = {
    # latency
    "load_s": Metric("s", "low", "load", format_seconds),
    "prefill_s": Metric("s", "low", "prefill", format_seconds),
    "prefill_wall_s": Metric("s", "low", "prefill, wall clock", format_seconds),
    "prefill_cpu_s": Metric("s", "low", "prefill, CPU time", format_seconds),
    "decode_step_s": Metric("s", "low", "decode step", format_seconds),
    "decode_step_cpu_s": Metric("s", "low", "decode step, CPU time", format_seconds),
    "foreign_cpu_share": Metric("share", "low", "load by other processes", format_share),
    "prompt_tokens": Metric("tokens", None, "prompt length, all requests", format_count),
    "new_tokens": Metric("tokens", None, "decoded tokens, all requests", format_count),
    "new_tokens_asked": Metric("tokens", None, "continuation asked for", format_count),
    "prefill_tokens_per_s": Metric("tokens/s", "high", "prefill rate", format_rate),
    "decode_tokens_per_s": Metric("tokens/s", "high", "decode rate", format_rate),
    # throughput end to end (harness.throughput)
    "prefill_plus_1024_tokens_per_s": Metric("tokens/s", "high", "prefill + 1,024 generated", format_rate),
    "e2e_tokens_per_s": Metric("tokens/s", "high", "prefill + all generated", format_rate),
    # memory
    "cache_bytes_live": Metric("bytes", "low", "live cache", format_bytes),
    "cache_bytes_predicted": Metric("bytes", "low", "predicted cache", format_bytes),
    "cache_payload_bytes": Metric("bytes", "low", "cache: keys and values", format_bytes),
    "cache_metadata_bytes": Metric("bytes", "low", "cache: positions, scores", format_bytes),
    "cache_state_bytes": Metric("bytes", "low", "cache: convolution, retention", format_bytes),
    "weights_bytes": Metric("bytes", "low", "weights", format_bytes),
    "compressor_bytes": Metric("bytes", "low", "compressor weights", format_bytes),
    "read_bytes_per_step": Metric("bytes", "low", "read per decode step", format_bytes),
    "weights_read_bytes": Metric("bytes", "low", "weights read per decode step", format_bytes),
    "baseline_allocate_bytes": Metric("bytes", None, "in use before the cache", format_bytes),
    "baseline_prefill_bytes": Metric("bytes", None, "in use before prefill", format_bytes),
    "peak_prefill_bytes": Metric("bytes", "low", "peak, prefill", format_bytes),
    "peak_prefill_reserved_bytes": Metric("bytes", "low", "peak reserved, prefill", format_bytes),
    "peak_decode_bytes": Metric("bytes", "low", "peak, decode", format_bytes),
    "peak_decode_reserved_bytes": Metric("bytes", "low", "peak reserved, decode", format_bytes),
    # memory while it ran, over what was in use before the worker (harness.validity.memory)
    "nvml_delta_prefill_bytes": Metric("bytes", "low", "GPU memory taken, prefill", format_bytes),
    "nvml_delta_decode_bytes": Metric("bytes", "low", "GPU memory taken, continuation", format_bytes),
    "rss_delta_prefill_bytes": Metric("bytes", "low", "memory taken, prefill", format_bytes),
    "rss_delta_decode_bytes": Metric("bytes", "low", "memory taken, continuation", format_bytes),
    # energy of the whole device (harness.validity.energy)
    "prefill_j_per_token": Metric("J/token", "low", "energy per prompt token", format_joules),
    "decode_j_per_token": Metric("J/token", "low", "energy per new token", format_joules),
    # the largest context that fits (harness.frontier_rows)
    "frontier_context": Metric("tokens", "high", "largest context", format_count),
    "frontier_context_predicted": Metric("tokens", "high", "largest context, predicted", format_count),
    "frontier_limit_bytes": Metric("bytes", None, "memory limit", format_bytes),
    "frontier_fit_context": Metric("tokens", None, "longest that fitted", format_count),
    "frontier_fit_bytes": Metric("bytes", None, "peak, longest that fitted", format_bytes),
    "frontier_fit_bytes_predicted": Metric("bytes", None, "predicted, longest that fitted", format_bytes),
    "frontier_failure_context": Metric("tokens", None, "shortest that failed", format_count),
    "frontier_failure_bytes": Metric("bytes", None, "held when memory ran out", format_bytes),
    "frontier_probes": Metric("count", None, "contexts tried", format_count),
    # work
    "prefill_flops": Metric("flop", "low", "prefill work", format_flops),
    "decode_flops": Metric("flop", "low", "decode work per step", format_flops),
    # against what this machine can do (harness.roofline)
    "prefill_mfu": Metric("share", "high", "MFU, prefill", format_share),
    "decode_mbu": Metric("share", "high", "MBU, decode", format_share),
    "prefill_floor_s": Metric("s", None, "floor, prefill", format_seconds),
    "decode_floor_s": Metric("s", None, "floor, decode step", format_seconds),
    "prefill_over_floor": Metric("ratio", "low", "prefill / floor", format_times),
    "decode_over_floor": Metric("ratio", "low", "decode step / floor", format_times),
    "prefill_launch_share": Metric("share", "low", "launch-bound share, prefill", format_share),
    "decode_launch_share": Metric("share", "low", "launch-bound share, decode", format_share),
    # a continuation that is scored or generated, not timed step by step
    "continuation_s": Metric("s", "low", "continuation", format_seconds),
    "continuation_wall_s": Metric("s", "low", "continuation, wall clock", format_seconds),
    "continuation_cpu_s": Metric("s", "low", "continuation, CPU time", format_seconds),
    "continuation_tokens": Metric("tokens", None, "continuation length", format_count),
    "peak_continuation_bytes": Metric("bytes", "low", "peak, continuation", format_bytes),
    "peak_continuation_reserved_bytes": Metric("bytes", "low", "peak reserved, continuation", format_bytes),
    # what a policy did
    "lococo_alpha": Metric("share", None, "LoCoCo α", format_number),
    "lococo_entropy": Metric("share", None, "LoCoCo softmax entropy", format_number),
    "budget_tokens": Metric("tokens", None, "budget", format_count),
    "compressions": Metric("count", None, "compressions", format_count),
    "evicted_tokens": Metric("tokens", None, "evicted tokens, all layers", format_count),
    "seen_tokens": Metric("tokens", None, "seen tokens", format_count),
    "evicted_share": Metric("share", None, "evicted share", format_share),
    # what a policy kept, per layer (harness.retained)
    "retained_recent_share": Metric("share", None, "kept: newest", format_share),
    "retained_first_share": Metric("share", None, "kept: first token", format_share),
    "retained_age_share": Metric("share", None, "kept, by age", format_share),
    # what became of the spans that a case watches (harness.held), and of what it said
    "watched_held_share": Metric("share", None, "held", format_share),
    "answer_tokens": Metric("tokens", None, "answer length", format_count),
    # needle
    "accuracy_strict": Metric("share", "high", "needle, strict", format_share),
    "accuracy_substring": Metric("share", "high", "needle, substring", format_share),
    "accuracy_any": Metric("share", "high", "any needle", format_share),
    "accuracy_all": Metric("share", "high", "all needles", format_share),
    "accuracy_mean": Metric("share", "high", "needles, mean", format_share),
    # further synthetic retrieval
    "ruler_all": Metric("share", "high", "all answers", format_share),
    "ruler_part": Metric("share", "high", "answers, mean", format_share),
    "recall_accuracy": Metric("share", "high", "recall", format_share),
    # SCROLLS; the gold answer's likelihood through the same cache
    "rouge1": Metric("share", "high", "ROUGE-1", format_score),
    "rouge2": Metric("share", "high", "ROUGE-2", format_score),
    "rougeL": Metric("share", "high", "ROUGE-L", format_score),
    "token_f1": Metric("share", "high", "token F1", format_score),
    "exact_match": Metric("share", "high", "exact match", format_score),
    "gold_nll_nats": Metric("nats", "low", "gold answer, NLL", format_number),
    "gold_bits_per_byte": Metric("bits/byte", "low", "gold answer, bits/byte", format_bits),
    "gold_tokens": Metric("tokens", None, "gold answer, tokens", format_count),
    "gold_bytes": Metric("bytes", None, "gold answer, bytes", format_count),
    # lm-eval
    "f1": Metric("share", "high", "F1", format_score),
    "f1_stderr": Metric("share", None, "F1, standard error", format_score),
    "acc": Metric("share", "high", "accuracy", format_share),
    "acc_norm": Metric("share", "high", "accuracy, by length", format_share),
    "acc_stderr": Metric("share", None, "accuracy, standard error", format_share),
    "acc_norm_stderr": Metric("share", None, "accuracy by length, standard error", format_share),
    "exact_match_stderr": Metric("share", None, "exact match, standard error", format_score),
    "perplexity": Metric("ppl", "low", "perplexity", format_number),
    "word_perplexity": Metric("ppl", "low", "word perplexity", format_number),
    "byte_perplexity": Metric("ppl", "low", "byte perplexity", format_number),
    "bits_per_byte_rolling": Metric("bits/byte", "low", "bits/byte, rolling windows", format_bits),
    "perplexity_stderr": Metric("ppl", None, "perplexity, standard error", format_number),
    "sample_len": Metric("count", None, "documents", format_count),
    "truncated_requests": Metric("count", None, "requests cut", format_count),
    # language modelling
    "nll_nats": Metric("nats", "low", "negative log-likelihood", format_number),
    "num_bytes": Metric("bytes", None, "bytes scored", format_count),
    "num_tokens": Metric("tokens", None, "tokens scored", format_count),
    "num_words": Metric("words", None, "words scored", format_count),
    "num_words_official": Metric("words", None, "words, official count", format_count),
    "block_nll_nats": Metric("nats", "low", "NLL without block starts", format_number),
    "block_tokens": Metric("tokens", None, "tokens without block starts", format_count),
    "bits_per_byte": Metric("bits/byte", "low", "bits/byte", format_bits),
    "token_ppl": Metric("ppl", "low", "token perplexity", format_number),
    "word_ppl": Metric("ppl", "low", "word perplexity", format_number),
    "bucket_nll_nats": Metric("nats", "low", "negative log-likelihood, by position", format_number),
    "bucket_tokens": Metric("tokens", None, "tokens scored, by position", format_count),
}


def metric(name: str, unit: str = "") -> Metric:
    """The entry of `name`; one that is unknown is a plain number in the unit its rows state.

    lm-eval's filters do not change what a metric is: `exact_match,strict-match` is an `exact_match`.
    """
    if name not in METRICS and "," in name:
        stem, _, rest = name.partition(",")
        filter = rest.removesuffix("_stderr")
        known = METRICS.get(stem if filter == rest else f"{stem}_stderr")
        if known is not None:
            return dataclasses.replace(known, label=f"{known.label}, {filter}")
    return METRICS.get(name) or Metric(unit, None, name, format_number)


def is_known(name: str) -> bool:
    """Whether it is entered, so that "neither way is better" is a statement and no ignorance."""
    stem, _, rest = name.partition(",")
    return name in METRICS or (stem + "_stderr" if rest.endswith("_stderr") else stem) in METRICS
