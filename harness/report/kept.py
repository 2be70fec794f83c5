"""“Which tokens to keep”: policies at 1/4 and 1/8 of the context, in pairs against the window, and in words.

TOVA's protocol: pieces of a book, each from an empty cache. Perplexities are Σ/Σ over all books; intervals
resample whole books, differences in pairs. Beside it stands what the paper published (`PAPER`), which nobody
measured here.
"""

from __future__ import annotations

import math

import pandas as pd

from ..metrics import METRICS, NOTHING
from .books import interval_text, signed
from .budgets import budget_of, in_bytes, policies, whole
from .groups import Group, not_exercised
from .html import Entry, Table, table_of
from .language import NOT_FINITE, Source, bits_difference, bits_interval, language_cases, language_sources
from .remarks import weights_told
from .section import Section
from .statistics import bootstrap, language_totals

PROTOCOL, PARTS, RIVAL = "tova", (4, 8), "window"
#: TOVA, arXiv 2401.06104, Table 3: PG-19 perplexity of Llama-2-7B by tokens kept of 4,096.
PAPER_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
PAPER = {
    "Baseline (short context)": (17.65, 12.97, 10.39, 8.92, 8.04, 7.50, 7.16),
    "Window": (4812, 4025, 3276, 2185, 1001, 240, 7.16),
    "Window+1": (10.20, 8.97, 8.22, 7.76, 7.50, 7.33, 7.16),
    "Window+4": (10.28, 8.98, 8.19, 7.73, 7.46, 7.30, 7.16),
    "H2O-head": (10.22, 8.97, 8.21, 7.75, 7.49, 7.32, 7.16),
    "TOVA-head": (11.13, 9.55, 8.69, 7.90, 7.52, 7.27, 7.16),
    "TOVA-layer": (9.53, 8.32, 7.71, 7.41, 7.25, 7.17, 7.16),
}
PAPER_CAPTION = (
    "Paper, not measured here: perplexity per token of Llama-2-7B on PG-19, by tokens kept of 4,096 (TOVA, "
    "arXiv 2401.06104, Table 3). Window+4 is our window (4 sinks), TOVA-layer our tova, Baseline our short, "
    "and 4,096 the whole cache."
)
LEAD = (
    "Perplexity per token and bits per byte of books read in pieces, each from an empty cache, where a "
    "policy keeps 1/4 and 1/8 of their tokens. Small print: 95 % intervals, resampled over whole books; the "
    "difference to the window is taken over the same books, in pairs. Compare with the paper by order and "
    "not by value: network, text and what a token is are others there (7B parameters, whole books, tokens of "
    "several letters; here small networks, the text named below and bytes)."
)


def kept_section(group: Group) -> list[Section]:
    """One part where a text was read in pieces and several policies kept 1/4 or 1/8 of one."""
    found = Section("Which tokens to keep", LEAD)
    for source in language_sources(group):
        cases = language_cases(group, source)
        if source.protocol != PROTOCOL or cases.empty:
            continue
        context = cases["context"].max()
        cases = cases[cases["context"] == context]
        for part in PARTS:
            own = _at(group, context / part)
            if len(own) > 1 and RIVAL in own:
                found.tables.append(_table(group, source, cases, own, context, part))
                found.notes.append(_ordering(cases, own, context, part))
    if not found.tables:
        return []
    rows = [[name, *(f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in values)]
            for name, values in PAPER.items()]  # fmt: skip
    sizes = [f"{size:,}\npaper{', 1/4' * (size == 1024)}{', 1/8' * (size == 512)}" for size in PAPER_SIZES]
    found.tables.append(table_of(["policy, paper", *sizes], rows, PAPER_CAPTION))
    found.notes += weights_told(group)
    return [found]


def _at(group: Group, budget: float) -> dict[str, str]:
    """Policy -> its spec with exactly that budget."""
    return {n: s for n, specs in policies(group).items() for s in specs if budget_of(group, s) == budget}


def _table(
    group: Group, source: Source, cases: pd.DataFrame, own: dict[str, str], context: float, part: int
) -> Table:
    idle = not_exercised(group.ok[group.ok["suite"] == source.suite])
    rows, window, ppl = [], _of(cases, own[RIVAL]), METRICS["token_ppl"].format
    for spec in [*whole(group), *own.values()]:
        mine = _of(cases, spec)
        if mine.empty:
            rows.append([Entry(spec), Entry(NOT_FINITE, failed=True), *[Entry(NOTHING)] * 4])
            continue
        totals, marks = language_totals(mine), ["not exercised"] * ((spec, context) in idle)
        row = [
            spec,
            Entry(ppl(totals["token_ppl"]), interval_text(_perplexity(mine), ppl)),
        ]
        bits = " · ".join([interval_text(bits_interval(mine)), *marks])
        row.append(Entry(METRICS["bits_per_byte"].format(totals["bits_per_byte"]), bits))
        if spec == own[RIVAL]:
            rows.append([*row, NOTHING, NOTHING, f"{len(mine)}"])
            continue
        value, ends, books = bits_difference(mine, window)
        rows.append([*row, Entry(signed(value), interval_text(ends, signed)), told(ends), f"{books}"])
    columns = ["architecture", "token perplexity", "bits/byte", f"bits/byte minus\n{own[RIVAL]}", "in words"]
    caption = (
        f"{context / part:,.0f} of {context:,.0f} tokens kept (1/{part}), {source.suite} on {source.text}."
    )
    return table_of([*columns, "books"], rows, caption)


def _of(cases: pd.DataFrame, spec: str) -> pd.DataFrame:
    return cases[cases["architecture"] == spec]


def _perplexity(cases: pd.DataFrame) -> tuple[float, float]:
    low, high = bootstrap(cases[["nll_nats", "num_tokens"]].to_numpy(float), lambda s: s[0] / s[1])
    return _exp(low), _exp(high)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 or math.isnan(nats) else math.inf


def told(ends: tuple[float, float], rival: str = RIVAL) -> str:
    """A paired interval of bits per byte in words."""
    if math.isnan(ends[0]):
        return "no interval"
    if ends[0] <= 0 <= ends[1]:
        return f"cannot be told from {rival}"
    return f"better than {rival}" if ends[1] < 0 else f"worse than {rival}"


def _ordering(cases: pd.DataFrame, own: dict[str, str], context: float, part: int) -> str:
    """From best to worst; neighbours whose paired interval holds 0 are not told apart."""
    scored = {name: _of(cases, spec) for name, spec in own.items() if len(_of(cases, spec))}
    order = sorted(scored, key=lambda name: language_totals(scored[name])["bits_per_byte"])
    chain, alike = order[0], []
    for first, second in zip(order, order[1:], strict=False):
        _, (low, high), _ = bits_difference(scored[first], scored[second])
        apart = high < 0
        chain += f" {'<' if apart else '≈'} {second}"
        alike += [] if apart else [f"{first} and {second}"]
    text = f"As found at {context / part:,.0f} tokens (1/{part}), bits per byte from best to worst: {chain}."
    if not alike:
        return text + " Every neighbour differs: its paired 95 % interval excludes 0."
    return (
        text
        + f" Neighbours that cannot be told apart (their paired 95 % interval holds 0): {'; '.join(alike)}."
    )


def equal_bytes_section(group: Group) -> list[Section]:
    """LoCoCo against policies that were given its bytes; nothing where nobody was."""
    found = Section(
        "LoCoCo at equal cache bytes",
        "Each line compares one LoCoCo with a policy whose budget in bytes is what that LoCoCo holds, its "
        "memory and the block that it has not compressed yet. The difference is taken over the same books, "
        "in pairs; below 0 LoCoCo is the better one.",
    )
    for source in language_sources(group):
        if rows := _rivals(group, source):
            columns = ["LoCoCo", "bytes", "bits/byte", "against", "keeps", "its bytes", "its bits/byte"]
            columns += ["difference", "in words", "books"]
            found.tables.append(table_of(columns, rows, f"{source.suite} on {source.text}."))
    found.notes = weights_told(group)
    return [found] if found.tables else []


def _rivals(group: Group, source: Source) -> list[list[str | Entry]]:
    from .quality import bytes_per_request

    cases, held, rows = language_cases(group, source), bytes_per_request(group, source.suite), []
    if cases.empty:
        return []
    context = cases["context"].max()
    cases, size = cases[cases["context"] == context], METRICS["cache_bytes_live"].format
    bits = METRICS["bits_per_byte"].format
    for spec in [spec for spec in group.architectures if spec.partition(":")[0] == "lococo"]:
        mine, bytes_ = _of(cases, spec), held.get((spec, context))
        for other in group.architectures if bytes_ else []:
            given, theirs = in_bytes(other), _of(cases, other)
            if given is None or abs(given / bytes_ - 1) > 0.01:
                continue
            if mine.empty or theirs.empty:
                rows.append([spec, size(bytes_), Entry(NOT_FINITE, failed=True), other, *[NOTHING] * 6])
                continue
            value, ends, books = bits_difference(mine, theirs)
            numbers = [language_totals(part)["bits_per_byte"] for part in (mine, theirs)]
            rows.append(
                [
                    *(spec, size(bytes_), bits(numbers[0]), other, _tokens(group, other)),
                    *(size(held.get((other, context))), bits(numbers[1])),
                    *(Entry(signed(value), interval_text(ends, signed)), told(ends, "it"), f"{books}"),
                ]
            )
    return rows


def _tokens(group: Group, spec: str) -> str:
    budget = budget_of(group, spec)
    return NOTHING if budget is None else f"{budget:,} tokens"
