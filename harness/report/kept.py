"""“Which tokens to keep”: policies at 1/4 and 1/8 of the context, in pairs against the window, and in words.

TOVA's protocol: pieces of a book, each from an empty cache. Perplexities are Σ/Σ over all books; their
intervals resample whole books, and what the words say rests on Student's interval of differences in pairs
(`statistics.student`): books were resampled and not trainings, so another network is never called better or
worse. Whoever never had to evict, or lacks a book, has no place in the order. Beside it stands what the
paper published (`PAPER`), which nobody measured here.
"""

from __future__ import annotations

import math

import pandas as pd

from ..metrics import METRICS, NOTHING
from .books import interval_text, signed
from .budgets import budget_of, in_bytes, policies, policy, whole
from .groups import Group, context_name, not_exercised
from .html import Entry, Table, table_of
from .language import (
    NOT_FINITE,
    Source,
    bits_difference,
    bits_interval,
    language_cases,
    language_sources,
    not_finite,
)
from .remarks import beyond_name, weights_told
from .section import Section
from .statistics import FEW_PAIRS, bootstrap, excludes_zero, language_totals, perplexity

PROTOCOL, PARTS, RIVAL = "tova", (4, 8), "window"
OTHER_NETWORK = "another network"
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
    "arXiv 2401.06104, Table 3). Window+4 is our window (4 sinks), H2O-head our h2o (by head), TOVA-layer "
    "our tova, Baseline our short, and 4,096 the whole cache. The table's row H2O-layer is left out: in the "
    "text that was read it repeats Window+1's numbers."
)
LEAD = (
    "Perplexity per token and bits per byte of books read in pieces, each from an empty cache, where a "
    "policy keeps 1/4 and 1/8 of their tokens (LoCoCo's budget is its memory: the block that it has not "
    "compressed yet comes on top). Small print: 95 % intervals; those of perplexity and bits per byte are "
    "resampled over whole books (bootstrap), those of differences are Student's, over the same books, in "
    "pairs, and they alone decide what is called better, worse or different from the next in the order. That "
    "is said of policies on one network; another network differs by its training, too, and one training "
    "tells nothing of that. Each comparison stands for itself: nothing is corrected for their number. "
    "Compare with the paper by order and not by value: network, text and what a token is are others there "
    "(7B parameters, whole books, tokens of several letters; here small networks, the text named below and "
    "bytes)."
)


def kept_section(group: Group) -> list[Section]:
    """One part where a text was read in pieces and several policies kept 1/4 or 1/8 of one."""
    found = Section("Which tokens to keep", LEAD)
    for source in language_sources(group):
        cases = language_cases(group, source)
        if source.protocol != PROTOCOL or cases.empty:
            continue
        context = cases["context"].max()
        cases, idle = cases[cases["context"] == context], _idle(group, source, context)
        for part in PARTS:
            own = _at(group, context / part)
            if len(own) > 1 and RIVAL in own:
                found.tables.append(_table(group, source, cases, own, idle, context, part))
                found.notes.append(_ordering(cases, own, idle, context, part))
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


def _idle(group: Group, source: Source, context: float) -> set[str]:
    """Who never had to evict there: its numbers are the whole cache's."""
    unused = not_exercised(group.ok[group.ok["suite"] == source.suite])
    return {spec for spec, other in unused if other == context}


def _table(
    group: Group,
    source: Source,
    cases: pd.DataFrame,
    own: dict[str, str],
    idle: set[str],
    context: float,
    part: int,
) -> Table:
    rows, window, ppl = [], _of(cases, own[RIVAL]), METRICS["token_ppl"].format
    weights = _weights(group)
    for spec in [*whole(group), *own.values()]:
        mine = _of(cases, spec)
        if mine.empty:
            rows.append([spec, _unscored(group, source, spec, context), *[NOTHING] * 4])
            continue
        totals, marks = language_totals(mine), ["not exercised"] * (spec in idle)
        row = [spec, Entry(ppl(totals["token_ppl"]), interval_text(_perplexity(mine), ppl))]
        bits = " · ".join(filter(None, [interval_text(bits_interval(mine)), *marks]))
        row.append(Entry(METRICS["bits_per_byte"].format(totals["bits_per_byte"]), bits))
        if spec == own[RIVAL]:
            rows.append([*row, NOTHING, NOTHING, f"{len(mine)}"])
            continue
        pair = _pair(mine, window, spec in idle, own[RIVAL] in idle, RIVAL)
        if not weights[own[RIVAL]] <= weights[spec]:
            pair[1] = OTHER_NETWORK
        rows.append([*row, *pair])
    columns = ["architecture", "token perplexity", "bits/byte", f"bits/byte minus\n{own[RIVAL]}", "in words"]
    caption = (
        f"{context / part:,.0f} of {context_name(context)}{beyond_name(group, context)} kept (1/{part}), "
        f"{source.suite} on {source.text}."
    )
    return table_of([*columns, "books"], rows, caption)


def _weights(group: Group) -> dict[str, set[str]]:
    """Architecture -> the weights that it runs on; compressors stand beside those of the network below."""
    labels = group.rows.groupby("architecture")["weights"].agg(lambda own: "+".join(own.dropna().unique()))
    return {architecture: set(label.split("+")) for architecture, label in labels.items()}


def _unscored(group: Group, source: Source, spec: str, context: float) -> Entry:
    """What became of an architecture that scored no book."""
    failed = group.failures[group.failures["suite"] == source.suite]
    failed = failed[(failed["architecture"] == spec) & (failed["context"] == context)]
    told = [*failed["status"].unique(), *[NOT_FINITE] * ((spec, context) in not_finite(group, source))]
    return Entry(", ".join(told) or NOTHING, failed=bool(told))


def _of(cases: pd.DataFrame, spec: str) -> pd.DataFrame:
    return cases[cases["architecture"] == spec]


def _perplexity(cases: pd.DataFrame) -> tuple[float, float]:
    low, high = bootstrap(cases[["nll_nats", "num_tokens"]].to_numpy(float), lambda s: s[0] / s[1])
    return perplexity(low), perplexity(high)


def _pair(
    mine: pd.DataFrame, theirs: pd.DataFrame, idle: bool, rival_idle: bool, rival: str
) -> list[str | Entry]:
    """The difference with its interval, the same in words, and over how many books."""
    value, ends, books = bits_difference(mine, theirs)
    if math.isnan(value):
        return [NOTHING, NOTHING, f"{len(mine)}"]
    words = "not exercised" if idle else f"{rival} not exercised" if rival_idle else told(ends, rival)
    shared = f"{books}" + f" of {len(mine)}" * (books < len(mine))
    return [Entry(signed(value), interval_text(ends, signed)), words, shared]


def told(ends: tuple[float, float], rival: str = RIVAL) -> str:
    """A paired interval of bits per byte in words."""
    if math.isnan(ends[0]):
        return "no interval"
    if not excludes_zero(ends):
        return f"cannot be told from {rival}"
    return f"better than {rival}" if ends[1] < 0 else f"worse than {rival}"


def _ordering(cases: pd.DataFrame, own: dict[str, str], idle: set[str], context: float, part: int) -> str:
    """From best to worst; neighbours whose paired interval holds 0 are not told apart.

    Ordered are those that had to evict and scored every book that anybody scored: sums of other books are
    other numbers.
    """
    books, ordered, left = cases["case"].nunique(), {}, {}
    for name, spec in own.items():
        mine = _of(cases, spec)
        if spec in idle:
            left.setdefault("never exercised", []).append(name)
        elif len(mine) < books:
            left.setdefault(f"without a score of each of the {books} books", []).append(name)
        else:
            ordered[name] = mine
    rest = "".join(f" Not ordered, {why}: {', '.join(names)}." for why, names in left.items())
    where = f"at {context / part:,.0f} tokens (1/{part})"
    if len(ordered) < 2:
        return f"No order {where}: fewer than two policies can be compared.{rest}"
    order = sorted(ordered, key=lambda name: language_totals(ordered[name])["bits_per_byte"])
    signs = "(< : fewer bits, ≈ : cannot be told apart)"
    found = f"As found {where}, bits per byte from best to worst"
    if books < FEW_PAIRS:
        return f"{found}: {', '.join(order)}. No intervals over fewer than {FEW_PAIRS} books.{rest}"
    chain, alike = order[0], []
    for first, second in zip(order, order[1:], strict=False):
        apart = excludes_zero(bits_difference(ordered[first], ordered[second])[1])
        chain += f" {'<' if apart else '≈'} {second}"
        alike += [] if apart else [f"{first} and {second}"]
    said = "Every neighbour differs: its paired 95 % interval excludes 0"
    if alike:
        said = (
            f"Neighbours that cannot be told apart (their paired 95 % interval holds 0): {'; '.join(alike)}"
        )
    return f"{found} {signs}: {chain}. {said}.{rest}"


def equal_bytes_section(group: Group) -> list[Section]:
    """LoCoCo against policies that were given its bytes; nothing where nobody was."""
    found = Section(
        "LoCoCo at equal cache bytes",
        "Each line compares one LoCoCo with a rival, a policy whose budget in bytes is what that LoCoCo has, "
        "its memory and the block that it has not compressed yet; both hold the same within 1 %, as counted "
        "in this run (else the line says so, and compares nothing). The difference in bits per byte is taken "
        "over the same books, in pairs, with Student's 95 % interval; below 0 LoCoCo is the better one. "
        "Nothing is corrected for the number of lines.",
    )
    for source in language_sources(group):
        cases = language_cases(group, source)
        if len(cases) and (rows := _rivals(group, source, cases)):
            context = cases["context"].max()
            columns = ["LoCoCo", "rival", "difference", "in words", "books", "bytes", "rival's bytes"]
            columns += ["bits/byte", "rival's bits/byte", "rival keeps"]
            where = f"{context_name(context)}{beyond_name(group, context)}"
            found.tables.append(table_of(columns, rows, f"{source.suite} on {source.text}, {where}."))
    found.notes = weights_told(group)
    return [found] if found.tables else []


def _rivals(group: Group, source: Source, cases: pd.DataFrame) -> list[list[str | Entry]]:
    """Of each LoCoCo: who holds its bytes, and who was given them and holds others."""
    from .quality import bytes_per_request

    held, rows = bytes_per_request(group, source.suite), []
    context = cases["context"].max()
    cases, idle = cases[cases["context"] == context], _idle(group, source, context)
    size, bits = METRICS["cache_bytes_live"].format, METRICS["bits_per_byte"].format
    given = [spec for spec in group.architectures if in_bytes(spec) is not None]
    for spec in [spec for spec in group.architectures if spec.partition(":")[0] == "lococo"]:
        mine, bytes_ = _of(cases, spec), held.get((spec, context))
        for other in given if bytes_ else []:
            theirs, its_bytes = _of(cases, other), held.get((other, context))
            equal = _equal(its_bytes, bytes_)
            if not (equal or _equal(in_bytes(other), bytes_)):
                continue
            numbers = [
                Entry(bits(language_totals(part)["bits_per_byte"]))
                if len(part)
                else _unscored(group, source, one, context)
                for one, part in ((spec, mine), (other, theirs))
            ]
            rival = policy(other)
            pair = _pair(mine, theirs, spec in idle, other in idle, rival)
            if its_bytes is None:
                pair = [NOTHING, f"bytes of {rival} not counted", NOTHING]
            elif not equal:
                pair = [NOTHING, f"{rival} holds other bytes", NOTHING]
            rows.append([spec, other, *pair, size(bytes_), size(its_bytes), *numbers, _tokens(group, other)])
    return rows


def _equal(bytes_: float | None, wanted: float) -> bool:
    return bytes_ is not None and abs(bytes_ / wanted - 1) <= 0.01


def _tokens(group: Group, spec: str) -> str:
    budget = budget_of(group, spec)
    return NOTHING if budget is None else f"{budget:,} tokens"
