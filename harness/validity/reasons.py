"""Every reason for which a number is doubtful, and how much it costs the number."""

from __future__ import annotations

from dataclasses import dataclass

#: From the best to the worst.
VERDICTS = ("valid", "suspect", "invalid")


@dataclass(frozen=True)
class Reason:
    """`severity` is "suspect" or "invalid"; `sentence` says it to a human, without the numbers of a case."""

    severity: str
    sentence: str


REASONS = {
    "throttled": Reason("invalid", "The GPU slowed itself down for heat or by its power brake."),
    "power_capped": Reason("suspect", "The GPU ran at its power limit, which lowers its clock."),
    "clock_drift": Reason("suspect", "A clock of the GPU varied by more than 5 % while it was measured."),
    "foreign_gpu_process": Reason("suspect", "Another process held this GPU while it was measured."),
    "foreign_cpu_load": Reason(
        "suspect", "Other processes took more than 10 % of all cores' time (of CPU times: more than 30 %)."
    ),
    "foreign_cpu_overload": Reason("invalid", "Other processes took more than 60 % of all cores' time."),
    "few_repeats": Reason("suspect", "Fewer than 3 repeats: neither warm-up nor spread can be judged."),
    "not_warmed_up": Reason(
        "suspect", "The first and the last third of the repeats differ by more than 10 %."
    ),
    "spread": Reason("suspect", "The middle half of the repeats spreads over more than 10 % of the median."),
    "host_bound": Reason(
        "suspect", "The device mostly waited for the host, so the time is that of launching, not of the work."
    ),
    "token_counts": Reason("invalid", "Other numbers of tokens were processed than were asked for."),
    "live_above_predicted": Reason("invalid", "The live cache holds more bytes than were predicted."),
    "not_finite": Reason("invalid", "The model's logits were not finite."),
    "peak_unknown": Reason("suspect", "The system did not tell the peak of memory."),
}
