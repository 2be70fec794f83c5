"""Language modelling, as the page shows it: a table per suite, text and protocol, a curve by position."""

from __future__ import annotations

import math

import pandas as pd

from ..metrics import METRICS, NOTHING
from .canvas import Chart
from .groups import Group, context_name, not_exercised
from .html import Entry, Table, table_of
from .language import (
    NOT_FINITE,
    Source,
    bits_difference,
    bits_interval,
    by_position,
    is_pg19,
    language_cases,
    language_sources,
    not_finite,
    transformer_of,
)
from .lines import by_position as position_chart
from .remarks import beyond_name, weights_told
from .section import Section
from .statistics import FEW_CASES, language_totals, perplexity

TITLE = "Language modelling, book by book"
LEAD = (
    "Sums over all texts, each token scored once through the cache; small print gives 95 % intervals, "
    "resampled over whole texts. The difference to the transformer is taken over the same texts, in pairs, "
    "with Student's interval (none below three texts). Numbers of two protocols do not compare and stand in "
    "tables of their own. A text whose likelihood was not finite is left out whole, for that architecture."
)


def book_section(group: Group, prefix: str) -> list[Section]:
    """A table per source, curves where positions were told apart; nothing where no language was modelled."""
    sources = language_sources(group)
    if not sources:
        return []
    found = Section(TITLE, LEAD)
    found.tables = [book_table(group, source) for source in sources]
    for number, source in enumerate(sources):
        found.charts += _curve(f"{prefix}-{number}", group, source)
    notes = [note for source in sources for note in _few(group, source)]
    found.notes = list(dict.fromkeys(notes)) + weights_told(group)
    return [found]


def book_tables(group: Group) -> dict[str, list[tuple[str, Table]]]:
    """The tables alone, by the part's title."""
    found = [book_table(group, source) for source in language_sources(group)]
    return {TITLE: [(table.caption, table) for table in found]}


def book_table(group: Group, source: Source) -> Table:
    """Bits per byte with its interval, the paired difference, perplexities; one line per architecture."""
    cases, base = language_cases(group, source), transformer_of(group.architectures)
    idle = not_exercised(group.ok[group.ok["suite"] == source.suite])
    bad = not_finite(group, source)
    contexts = sorted({*cases["context"], *(context for _, context in bad)})
    known = set(cases.columns[cases.notna().any()])
    columns = ["architecture"] + ["context"] * (len(contexts) > 1) + ["texts"]
    numbers = ["bits/byte"] + ["difference to\ntransformer"] * (base is not None)
    numbers += ["token perplexity", "word perplexity"]
    numbers += ["word perplexity\nofficial word count"] * ("num_words_official" in known)
    numbers += ["token perplexity\nwithout the first of each block"] * ("block_tokens" in known)
    columns += [name + f"\n{source.protocol}" * bool(source.protocol) for name in numbers]
    rows = []
    for architecture in group.architectures:
        for context in contexts:
            there = cases["context"] == context
            own = cases[there & (cases["architecture"] == architecture)]
            spoilt = bad.get((architecture, context))
            if own.empty and spoilt is None:
                continue
            named = Entry(context_name(context) + beyond_name(group, context))
            row = [Entry(architecture)] + [named] * (len(contexts) > 1)
            if own.empty:
                row += [Entry("0"), Entry(NOT_FINITE, "{} of {} texts".format(*spoilt), failed=True)]
                rows.append(row + [Entry(NOTHING)] * (len(columns) - len(row)))
                continue
            totals = language_totals(own)
            bits = METRICS["bits_per_byte"].format(totals["bits_per_byte"])
            note = [interval_text(bits_interval(own))] + ["not exercised"] * ((architecture, context) in idle)
            note += [] if spoilt is None else [f"{NOT_FINITE} in {spoilt[0]} of {spoilt[1]} texts"]
            row += [Entry(f"{len(own)}"), Entry(bits, " · ".join(filter(None, note)))]
            if base is not None:
                row.append(_difference(own, cases[there & (cases["architecture"] == base)], base))
            row += [Entry(METRICS[name].format(totals[name])) for name in ("token_ppl", "word_ppl")]
            if "num_words_official" in known:
                row.append(_perplexity(own, "nll_nats", "num_words_official"))
            if "block_tokens" in known:
                row.append(_perplexity(own, "block_nll_nats", "block_tokens"))
            rows.append(row)
    where = "" if len(contexts) > 1 else f", {context_name(contexts[0])}{beyond_name(group, contexts[0])}"
    protocol = f"protocol {source.protocol}" if source.protocol else "protocol not stated"
    read = source.text if is_pg19(source.label) else f"{source.text} (not PG-19)"
    return table_of(columns, rows, f"{source.suite}: {protocol}{where}, on {read}.")


def _difference(own: pd.DataFrame, base: pd.DataFrame, name: str) -> Entry:
    """Of bits per byte, over the texts that both scored."""
    if (own["architecture"] == name).all():
        return Entry(NOTHING)
    value, interval, texts = bits_difference(own, base)
    if math.isnan(value):
        return Entry(NOTHING)
    partly = "" if texts == len(own) else f"{texts} of {len(own)} texts"
    return Entry(signed(value), " · ".join(filter(None, [interval_text(interval, signed), partly])))


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def interval_text(ends: tuple[float, float], text=METRICS["bits_per_byte"].format) -> str:
    return "" if math.isnan(ends[0]) else " to ".join(map(text, ends))


def _perplexity(cases: pd.DataFrame, nats: str, count: str) -> Entry:
    """Only where every text was counted so: part of a sum is another number."""
    if cases[[nats, count]].isna().any(axis=None) or not cases[count].sum():
        return Entry(NOTHING)
    return Entry(METRICS["word_ppl"].format(perplexity(cases[nats].sum() / cases[count].sum())))


def _few(group: Group, source: Source) -> list[str]:
    texts = language_cases(group, source).groupby(["architecture", "context"])["case"].nunique()
    if texts.empty:
        return []
    most = int(texts.max())
    if most >= FEW_CASES:
        return []
    if most == 1:
        return ["One text: there is nothing to resample, so no interval is given."]
    return [f"{most} texts: an interval over so few means little; it cannot leave what it has seen."]


def _curve(slug: str, group: Group, source: Source) -> list[Chart]:
    nats, whole = by_position(group, source)
    if len(nats) < 2:
        return []
    reached = f"All texts reach beyond {whole:,.0f} tokens; further on fewer are summed."
    note = "" if whole == nats.index.max() else reached
    return [position_chart(slug, f"Nats per token by position, {source.name}", nats, group, note)]
