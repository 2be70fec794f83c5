"""The verdict: one line per architecture, the strings that both the page and the terminal show.

Of several specs of one kind of suite the first is shown; `remarks.unshown` names the others.

Each column is read at one stated context: the one that most columns have (the largest of those), else
the largest of its own suite. Cost columns stand beside the transformer's as a factor, quality columns
as a difference.
"Best" is set in bold with everything that cannot be told from it, and only if something can:

    bytes       exact, so any difference counts
    latency     interquartile ranges disjoint, at least 3 repeats each
    needle      Wilson's 95 % intervals disjoint
    bits/byte   paired 95 % t-interval over the texts excludes 0 (`statistics.student`)

Whoever answered fewer trials or texts than the others is shown with that number and not compared; its
difference in bits per byte is over the texts that both scored. A dagger marks what is in doubt (`doubt.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pandas as pd

from ..metrics import METRICS, NOTHING, significant
from .doubt import Doubt, cost_doubts, doubts, notes_of, score_doubts, signed
from .groups import (
    COST_METRICS,
    NO_CONTEXT,
    Group,
    context_name,
    cost_rows,
    costs,
    failure_suites,
    family,
    is_keyed,
    is_repeated,
    needle,
    needle_judge,
    needle_suites,
    not_exercised,
)
from .html import Entry, Table
from .language import (
    NOT_FINITE,
    Source,
    bits_difference,
    is_pg19,
    language,
    language_cases,
    language_sources,
    source_rows,
)
from .once import once
from .statistics import excludes_zero, wilson

Differs = Callable[[str, str], bool]


@dataclass(frozen=True)
class Column:
    """One number per architecture and context, with the rule that tells two of them apart.

    `partial` are those that answered fewer cases than others: shown, but never called the best. So is
    what is invalid (`doubts`).
    """

    header: str
    better: str | None
    values: dict[tuple[str, float], float]
    entries: dict[tuple[str, float], Entry]
    rows: pd.DataFrame
    differs: Callable[[str, str, float], bool]
    relative: Callable[[str, str, float], str]
    partial: frozenset[tuple[str, float]] = frozenset()
    doubts: dict[tuple[str, float], Doubt] = field(default_factory=dict)

    @property
    def contexts(self) -> list[float]:
        """Contexts at which anything was measured or failed, ascending."""
        return sorted({context for _, context in self.entries})


def headline(group: Group) -> Table:
    """One line per architecture, each column at the context that its header states."""
    columns = _columns(group)
    stated = [set(column.contexts) - {NO_CONTEXT} for column in columns]
    number_of = Counter(context for own in stated for context in own)
    most = max(number_of, key=lambda context: (number_of[context], context), default=NO_CONTEXT)
    at = [most if most in own else max(own, default=NO_CONTEXT) for own in stated]
    return _table(group, columns, at)


def by_context(group: Group) -> list[tuple[float, Table]]:
    """(context, table of every number at that context), largest first."""
    columns = _columns(group)
    contexts = sorted({c for column in columns for c in column.contexts} - {NO_CONTEXT}, reverse=True)
    held = {context: [column for column in columns if context in column.contexts] for context in contexts}
    return [(c, _table(group, present, [c] * len(present))) for c, present in held.items()]


def _table(group: Group, columns: list[Column], at: list[float]) -> Table:
    fields = [_fields(group, column, c) for column, c in zip(columns, at, strict=True)]
    implementations = group.ok.groupby("architecture")["implementation"].unique()
    rows = []
    for architecture in group.architectures:
        names = sorted(str(name) for name in implementations.get(architecture, []) if isinstance(name, str))
        row = [column[architecture] for column in fields]
        rows.append([Entry(architecture), *row, Entry(", ".join(names) or NOTHING)])
    # One context for all columns is said once, above them.
    shared = len(set(at)) == 1
    contexts = ["" if shared else f"\nat {context_name(c)}" for c in at]
    headers = [column.header + context for column, context in zip(columns, contexts, strict=True)]
    caption = f"At {context_name(at[0])}." if shared else "Each column at the context below its name."
    if set(at) == {NO_CONTEXT}:
        caption = "Means over all requests."
    found = [
        column.doubts.get((a, c)) for column, c in zip(columns, at, strict=True) for a in group.architectures
    ]
    return Table(["architecture", *headers, "implementation"], rows, caption, notes_of(found))


def _fields(group: Group, column: Column, context: float) -> dict[str, Entry]:
    """The column's entries at one context: relative to the transformer, best marked."""
    present = {a: column.values[a, context] for a in group.architectures if (a, context) in column.values}
    base = next((a for a in present if family(a) == "transformer"), None)
    best, idle = _best(present, column, context), not_exercised(column.rows)
    found = {}
    for architecture in group.architectures:
        entry = column.entries.get((architecture, context), Entry(NOTHING))
        notes = [entry.note] if entry.note else []
        if architecture in present and base not in (None, architecture):
            notes.append(column.relative(architecture, base, context))
        if architecture in present and (architecture, context) in idle:
            notes.append("not exercised")
        text = signed(entry.text, column.doubts.get((architecture, context)))
        note = " · ".join(filter(None, notes))
        found[architecture] = replace(entry, text=text, note=note, best=architecture in best)
    return found


def _best(present: dict[str, float], column: Column, context: float) -> set[str]:
    """The best and all that cannot be told from it; nobody if that is everybody."""
    wrong = {a for (a, c), doubt in column.doubts.items() if c == context and doubt.verdict == "invalid"}
    present = {a: v for a, v in present.items() if (a, context) not in column.partial and a not in wrong}
    if column.better is None or len(present) < 2:
        return set()
    first = (min if column.better == "low" else max)(present, key=lambda a: present[a])
    alike = {a for a in present if a == first or not column.differs(first, a, context)}
    return alike if len(alike) < len(present) else set()


@once
def _columns(group: Group) -> list[Column]:
    columns = [column for metric in COST_METRICS if (column := _cost_column(group, metric))]
    columns += [_needle_column(group, suite) for suite in needle_suites(group)[:1]]
    columns += [_language_column(group, source) for source in language_sources(group)[:1]]
    return [column for column in columns if column.entries]


def _cost_column(group: Group, name: str) -> Column | None:
    """One cost at the smallest batch; a rate only of a true batch, else it repeats the step's time."""
    entry, rows = METRICS[name], cost_rows(group, name)
    batch = rows["num_requests"].min()
    if name == "decode_tokens_per_s" and not batch > 1:
        return None
    spreads = {(a, c): s for (a, c, n), s in costs(group, name).items() if n == batch}
    exact = entry.unit == "bytes"

    def differs(first: str, second: str, context: float) -> bool:
        a, b = spreads[first, context], spreads[second, context]
        if exact:
            return a.median != b.median
        return min(a.n, b.n) >= 3 and (a.q3 < b.q1 or b.q3 < a.q1)

    entries = {key: Entry(entry.format(s.median)) for key, s in spreads.items()}
    header = entry.label + (f"\nbatch {batch:.0f}" if batch > 1 else "")
    header += "" if is_repeated(rows) else "\nper request"
    better = None if name == "cache_bytes_predicted" else entry.better
    values = {key: s.median for key, s in spreads.items()}
    entries |= _failures(group, failure_suites(group, name), entries)
    doubtful = {(a, c): doubt for (a, c, n), doubt in cost_doubts(group, name).items() if n == batch}
    beside = _by_value(values, _factor)
    return Column(header, better, values, entries, rows, differs, beside, doubts=doubtful)


def _needle_column(group: Group, suite: str) -> Column:
    judge, name = needle_judge(suite)
    hits = needle(group, suite).groupby(["architecture", "context"], dropna=False)[["hits", "trials"]]
    totals = {key: (h, int(n)) for key, (h, n) in zip(hits.sum().index, hits.sum().to_numpy(), strict=True)}
    intervals = {key: wilson(*total) for key, total in totals.items()}

    def differs(first: str, second: str, context: float) -> bool:
        (low, high), (low2, high2) = intervals[first, context], intervals[second, context]
        return high < low2 or high2 < low

    values = {key: h / n for key, (h, n) in totals.items() if n}
    entries = {
        key: Entry(
            METRICS[judge].format(value),
            f"{100 * intervals[key][0]:.0f}–{100 * intervals[key][1]:.0f} %, n = {totals[key][1]}",
        )
        for key, value in values.items()
    }
    entries |= _failures(group, {suite}, entries)
    rows = group.ok[(group.ok["metric"] == judge) & (group.ok["suite"] == suite)]
    partial = _partial({key: n for key, (_, n) in totals.items()})
    header = f"needle, {name}" + "\nkeyed, among others" * is_keyed(suite)
    beside, doubtful = _by_value(values, _points), score_doubts(group, suite)
    return Column(header, "high", values, entries, rows, differs, beside, partial, doubtful)


def _language_column(group: Group, source: Source) -> Column:
    totals = language(group, source).set_index(["architecture", "context"])
    cases = dict(list(language_cases(group, source).groupby(["architecture", "context"])))

    def differs(first: str, second: str, context: float) -> bool:
        _, ends, _ = bits_difference(cases[first, context], cases[second, context])
        return excludes_zero(ends)

    def relative(architecture: str, base: str, context: float) -> str:
        own, other = cases[architecture, context], cases[base, context]
        value, _, texts = bits_difference(own, other)
        fewer = f" on {texts} texts" * (texts < max(len(own), len(other)))
        return "" if math.isnan(value) else f"{value:+.3f}{fewer}".replace("-", "−")

    values = totals["bits_per_byte"].dropna().to_dict()
    counts, spoilt = totals["texts"].to_dict(), totals["spoilt"].to_dict()
    partial = _partial(counts)
    entries = {
        key: Entry(NOT_FINITE, said.removeprefix(NOT_FINITE).strip(), failed=True)
        for key, said in spoilt.items()
        if said
    }
    entries |= {
        key: Entry(
            METRICS["bits_per_byte"].format(value), spoilt[key] or f"{counts[key]} texts" * (key in partial)
        )
        for key, value in values.items()
    }
    entries |= _failures(group, {source.suite}, entries)
    rows = source_rows(group, source)
    rows = rows[rows["metric"] == "nll_nats"]
    header = f"bits/byte\n{source.name}" if is_pg19(source.label) else f"bits/byte\nnot PG-19: {source.name}"
    doubtful = doubts(rows, ["architecture", "context"], tolerated=0.0)
    return Column(header, "low", values, entries, rows, differs, relative, partial, doubtful)


def _partial(counts: dict[tuple[str, float], int]) -> frozenset[tuple[str, float]]:
    """Keys whose count is below the highest of their context."""
    most = {context: max(n for (_, c), n in counts.items() if c == context) for _, context in counts}
    return frozenset(key for key, n in counts.items() if n < most[key[1]])


def _failures(group: Group, suites: set[str], measured: dict) -> dict[tuple[str, float], Entry]:
    """The status of failed cells where nothing was measured; a cell that died is not an empty field."""
    rows = group.failures[group.failures["suite"].isin(suites)]
    keys = zip(rows["architecture"], rows["context"], rows["status"], strict=True)
    return {(a, c): Entry(status, failed=True) for a, c, status in keys if (a, c) not in measured}


def _by_value(
    values: dict[tuple[str, float], float], text: Callable[[float, float], str]
) -> Callable[[str, str, float], str]:
    """What stands beside one number, from it and the transformer's."""
    return lambda architecture, base, context: text(values[architecture, context], values[base, context])


def _factor(value: float, base: float) -> str:
    ratio = value / base if base else 0.0
    return f"×{ratio:.2f}" if 0.1 <= ratio < 10 else f"×{significant(ratio, 2)}"


def _points(value: float, base: float) -> str:
    return f"{100 * (value - base):+.0f} pp".replace("-", "−")
