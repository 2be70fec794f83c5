"""“Paper against measured”: the efficiency figures that a paper states, beside those of this run.

    plan          quantity                                 is measured as
    paper-yoco    memory, Transformer / YOCO               higher peak of both phases: allocator, or process
                  prefill, Transformer / YOCO              medians of prefill_s
                  prefill + 1,024 generated, YOCO / T.     prefill_plus_1024_tokens_per_s (harness.throughput)
                  memory of YOCO at 1,048,576 tokens       the same peak
    paper-tova    decode rate, budget / full cache         best decode_tokens_per_s of a sweep of batches
                  largest batch that fits                  (powers of two are tried)
    paper-lococo  cache, full / 128 slots                  cache_bytes_live
                  decode rate, LoCoCo / H2O                as for TOVA

The last column is what the floors alone would give: predicted bytes of weights and cache, predicted work at
this machine's ceilings (harness.roofline). Sources: YOCO (arXiv 2405.05254), what it reports of inference;
TOVA (arXiv 2401.06104), Table 1; LoCoCo (arXiv 2406.05317), abstract, and for its rates a figure known at
second hand. A figure that this run did not measure says so; it is never replaced by a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..metrics import format_bytes, significant
from ..throughput import PLUS_1024, best
from .groups import Group, context_name, costs
from .html import table_of
from .section import Section

#: Contexts of YOCO's figures, and the ratios it states there.
CONTEXTS = (32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)
YOCO_MEMORY = (1.95, 2.32, 3.01, 4.16, 6.39, 9.38)
YOCO_PREFILL = (2.87, 5.05, 8.36, 15.55, 30.3, 71.8)
YOCO_RATE = (2.72, 2.57, 2.77, 4.37, 9.56)
#: Budget -> decode rate over the full cache's, largest batch.
TOVA = {256: (8.5, 139), 512: (4.8, 70), 4096: (1.0, 8)}
UNMEASURED = "not measured"
CONDITIONS = {
    "paper-yoco": "3B with gated retention against a GQA Transformer on an H100 of 80 GB; rates at "
    "the largest batch that fits, here at batch 1. Its seconds contradict each other at 1M (71.8× of about "
    "300 s is less than its own figure at 512K), so ratios alone are compared. Its 12.4 GB are read as GiB: "
    "in decimal GB the Transformer's figure would not fit its own formula.",
    "paper-tova": "Llama-2-7B on a V100 of 32 GB, 512 sequences of 4,096 tokens, the largest batch that "
    "fits; here a batch doubles until memory runs out.",
    "paper-lococo": "3,482 tokens into 128 slots; the rates (33 and 32 tokens/s at 16K) are known at second "
    "hand and were not taken at this shape.",
}


@dataclass(frozen=True)
class Line:
    """One figure: what the paper states, what this run measured, what the floors would give."""

    name: str
    context: int
    paper: str
    measured: float | None
    floors: float | None
    show: Callable[[float], str]

    def cells(self) -> list[str]:
        shown = UNMEASURED if self.measured is None else self.show(self.measured)
        floors = "unknown" if self.floors is None else self.show(self.floors)
        return [self.name, context_name(self.context), self.paper, shown, floors]


def paper_section(group: Group) -> list[Section]:
    """A table for a run of a paper's plan, else nothing."""
    plan = (group.run.manifest.get("plan") or {}).get("name")
    if plan not in LINES:
        return []
    machine = group.run.manifest.get("machine") or {}
    where = (machine.get("gpu") or {}).get("name") or machine.get("device") or "an unknown device"
    lead = f"Paper: {CONDITIONS[plan]} Measured: this run, {where}, random weights."
    columns = ["quantity", "context", "paper", "measured", "floors alone (predicted)"]
    rows = [line.cells() for line in LINES[plan](group)]
    return [Section("Paper against measured", lead, tables=[table_of(columns, rows)])]


def _times(value: float) -> str:
    return f"{significant(value)}×"


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or not under else over / under


def _cost(group: Group, metric: str, spec: str, context: int) -> float | None:
    """Median at batch 1."""
    spread = costs(group, metric).get((spec, float(context), 1.0))
    return None if spread is None else spread.median


def _sum(*values: float | None) -> float | None:
    return None if None in values else sum(values)


def _peak(group: Group, spec: str, context: int) -> float | None:
    """The higher peak of both phases; unknown while one of them is."""
    both = [_cost(group, f"peak_{phase}_bytes", spec, context) for phase in ("prefill", "decode")]
    return None if None in both else max(both)


def _held(group: Group, spec: str, context: int) -> float | None:
    names = ("weights_bytes", "cache_bytes_predicted")
    return _sum(*(_cost(group, name, spec, context) for name in names))


def _yoco(group: Group) -> Iterator[Line]:
    full, yoco = "transformer", "yoco:mixer=retention"

    def of(find: Callable[[str, int], float | None]) -> list[float | None]:
        return [_ratio(find(full, c), find(yoco, c)) for c in CONTEXTS]

    peak, held = partial(_peak, group), partial(_held, group)
    prefill, floor, rate = (
        partial(_cost, group, name) for name in ("prefill_s", "prefill_floor_s", PLUS_1024)
    )
    parts = (
        ("memory, Transformer / YOCO", YOCO_MEMORY, of(peak), of(held)),
        ("prefill, Transformer / YOCO", YOCO_PREFILL, of(prefill), of(floor)),
        (
            "prefill + 1,024 generated, YOCO / Transformer",
            YOCO_RATE,
            [_ratio(1.0, one) for one in of(rate)],
            [None] * len(CONTEXTS),
        ),
    )
    for name, paper, measured, floors in parts:
        for context, stated, own, low in zip(CONTEXTS, paper, measured, floors, strict=False):
            yield Line(name, context, f"{stated:g}×", own, low, _times)
    last = CONTEXTS[-1]
    yield Line("memory, YOCO", last, "12.4 GB", peak(yoco, last), held(yoco, last), format_bytes)


def _swept(group: Group, column: str) -> dict[str, float]:
    """Architecture -> what `throughput.best` says of its sweep."""
    lines = best(group.rows)
    return dict(lines.loc[lines[column].notna(), ["architecture", column]].itertuples(index=False))


def _tova(group: Group) -> Iterator[Line]:
    rates, batches = _swept(group, "decode_tokens_per_s"), _swept(group, "largest_batch")
    for budget, (stated, _) in TOVA.items():
        if budget != 4096:
            own = _ratio(rates.get(f"tova:budget={budget},prompt=bulk"), rates.get("transformer"))
            yield Line(f"decode rate, TOVA of {budget} / full cache", 4096, f"{stated:g}×", own, None, _times)
    for budget, (_, batch) in TOVA.items():
        spec = "transformer" if budget == 4096 else f"tova:budget={budget},prompt=bulk"
        name = f"largest batch, {'full cache' if budget == 4096 else f'TOVA of {budget}'}"
        yield Line(name, 4096, f"{batch}", batches.get(spec), None, lambda value: f"{value:,.0f}")


def _lococo(group: Group) -> Iterator[Line]:
    full, lococo = "transformer", "lococo:budget=128"
    bytes_ = [_ratio(_cost(group, m, full, 3482), _cost(group, m, lococo, 3482)) for m in _CACHE]
    yield Line("cache, full / 128 slots", 3482, "27.2×", *bytes_, _times)
    rates = _swept(group, "decode_tokens_per_s")
    for budget in (128, 512):
        own = _ratio(rates.get(f"lococo:budget={budget}"), rates.get(f"h2o:budget={budget}"))
        yield Line(f"decode rate, LoCoCo / H2O of {budget}", 3482, "1.03× (second hand)", own, None, _times)


_CACHE = ("cache_bytes_live", "cache_bytes_predicted")
LINES: dict[str, Callable[[Group], Iterator[Line]]] = {
    "paper-yoco": _yoco,
    "paper-tova": _tova,
    "paper-lococo": _lococo,
}
