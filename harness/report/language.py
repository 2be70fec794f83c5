"""Language modelling, as numbers: what was read, text by text and protocol by protocol.

Bits per byte of two texts do not compare, nor do those of two protocols (one cache for a whole book, or an
empty one for each piece): a `Source` is one suite, one text, one protocol, and nothing is summed over two.
A book read in pieces is one case again: pieces of a book are no independent samples. A book in any piece of
which a model's likelihood was not finite is left out whole for that architecture, and counted (`not_finite`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from .groups import UNKNOWN_TEXT, Group, axis_text, family, of_each
from .once import once
from .statistics import LANGUAGE_COUNTS, NO_INTERVAL, bootstrap, language_totals, student

#: Further sums that a protocol may bring along: the official word count; tokens that its block rule counts.
MORE_COUNTS = ("num_words_official", "block_nll_nats", "block_tokens")
#: Of these, what a model's failure spoils: the size of a text stays what it is.
NATS = ("nll_nats", "block_nll_nats")
#: What stands in place of a number that no text gave.
NOT_FINITE = "not finite"


class Source(NamedTuple):
    """One suite reading one text by one protocol ("" where rows do not say)."""

    suite: str
    label: str
    protocol: str

    @property
    def text(self) -> str:
        """The label without its hash."""
        return self.label.partition("@")[0]

    @property
    def name(self) -> str:
        """For a heading: what was read, and how."""
        read = "PG-19" if is_pg19(self.label) else self.text
        return read + (f", {self.protocol}" if self.protocol else "")


def is_pg19(label: str | None) -> bool:
    """Whether a text label names PG-19 books whose checksums are known."""
    source = str(label or "").partition("@")[0]
    return source.startswith("pg19:") and "unverified" not in source


@once
def language_sources(group: Group) -> list[Source]:
    """Wherever language was modelled, finite or not, PG-19 first."""
    rows = group.rows[(group.rows["status"] == "ok") & (group.rows["metric"] == "nll_nats")]
    found = zip(rows["suite"], rows["text"].fillna(UNKNOWN_TEXT), _protocols(rows), strict=True)
    return sorted(map(Source._make, dict.fromkeys(found)), key=lambda source: not is_pg19(source.label))


def _protocols(rows: pd.DataFrame) -> pd.Series:
    return of_each(rows["axes"], lambda axes: axis_text(axes, "protocol") or "")


@once
def source_rows(group: Group, source: Source) -> pd.DataFrame:
    """All rows of a source that are no failures; values may be NaN."""
    rows = group.rows[(group.rows["status"] == "ok") & (group.rows["suite"] == source.suite)]
    return rows[(rows["text"].fillna(UNKNOWN_TEXT) == source.label) & (_protocols(rows) == source.protocol)]


@once
def language_cases(group: Group, source: Source) -> pd.DataFrame:
    """One line per architecture, context and book (`case`): sums over its pieces.

    Books that were not finite are left out whole. Replicates of a book are averaged.
    """
    rows = _counted(group, source)
    rows = rows[~rows["spoilt"] & rows["value"].notna()]
    keys = ["architecture", "context", "case", "metric"]
    sums = rows.groupby([*keys, "cell"], dropna=False)["value"].sum()
    cases = sums.groupby(keys, dropna=False).mean().unstack("metric")
    return cases.reindex(columns=[*LANGUAGE_COUNTS, *MORE_COUNTS]).dropna(subset=["nll_nats"]).reset_index()


@once
def not_finite(group: Group, source: Source) -> dict[tuple[str, float], tuple[int, int]]:
    """(architecture, context) -> (books that were not finite, all its books), where there are any."""
    rows = _counted(group, source)
    rows = rows[rows["metric"] == "nll_nats"]
    books = rows.groupby(["architecture", "context", "case"])["spoilt"].any()
    parts = books.groupby(["architecture", "context"])
    return {key: (int(part.sum()), len(part)) for key, part in parts if part.any()}


@once
def _counted(group: Group, source: Source) -> pd.DataFrame:
    """Rows of the sums with their book as `case`, and whether any piece of it was not finite (`spoilt`)."""
    rows = source_rows(group, source)
    rows = rows[rows["metric"].isin([*LANGUAGE_COUNTS, *MORE_COUNTS])]
    rows = rows.assign(case=_books(rows))
    bad = rows["metric"].isin(NATS) & ~np.isfinite(rows["value"].astype(float))
    return rows.assign(
        spoilt=bad.groupby([rows[n] for n in ("architecture", "context", "case")]).transform("any")
    )


def _books(rows: pd.DataFrame) -> pd.Series:
    """The book of each row; a case that names none is a text of its own."""
    return of_each(rows["axes"], lambda axes: axis_text(axes, "book")).fillna(rows["case"].astype(str))


@once
def language(group: Group, source: Source) -> pd.DataFrame:
    """One line per architecture and context: Σ/Σ over its finite texts, how many there were, and in words
    (`spoilt`) how many were not; all NaN where none was finite."""
    cases, bad = language_cases(group, source), not_finite(group, source)
    parts = dict(list(cases.groupby(["architecture", "context"], dropna=False)))
    return pd.DataFrame(
        {
            "architecture": key[0],
            "context": key[1],
            "texts": len(parts.get(key, ())),
            "spoilt": f"{NOT_FINITE} in {bad[key][0]} of {bad[key][1]} texts" if key in bad else "",
            **language_totals(parts.get(key, cases[:0])),
        }
        for key in sorted({*parts, *bad})
    )


def bits_interval(cases: pd.DataFrame) -> tuple[float, float]:
    """95 % of bits per byte, resampled over the texts."""
    return bootstrap(cases[["nll_nats", "num_bytes"]].to_numpy(float), lambda s: s[0] / math.log(2) / s[1])


def bits_difference(cases: pd.DataFrame, base: pd.DataFrame) -> tuple[float, tuple[float, float], int]:
    """(bits per byte minus those of `base`, 95 % t-interval, texts) over the texts that both scored."""
    both = cases.merge(base, on="case", suffixes=("", "_base"))
    columns = both[["nll_nats", "num_bytes", "nll_nats_base", "num_bytes_base"]].to_numpy(float)

    def difference(sums: np.ndarray) -> np.ndarray:
        nll, num_bytes, base_nll, base_bytes = sums
        return (nll / num_bytes - base_nll / base_bytes) / math.log(2)

    if not (both["num_bytes"].sum() and both["num_bytes_base"].sum()):
        return math.nan, NO_INTERVAL, 0
    return float(difference(columns.sum(0))), student(columns, difference), len(both)


def by_position(group: Group, source: Source) -> tuple[pd.DataFrame, float]:
    """(nats per token by first position and architecture, last position that all texts reach).

    From histograms `bucket_nll_nats`, `bucket_tokens` whose axis `bucket` says how many tokens a bin has;
    empty where there are none. Each value is Σ nats / Σ tokens over the texts that reach it. A curve
    ends before the first position at which any text of that architecture was not finite.
    """
    rows = source_rows(group, source)
    rows = rows[rows["metric"].isin(["bucket_nll_nats", "bucket_tokens"]) & rows["bin"].notna()]
    if rows.empty:
        return pd.DataFrame(), math.nan
    size = of_each(rows["axes"], lambda axes: float(axis_text(axes, "bucket") or "nan")).astype(float)
    rows = rows.assign(position=rows["bin"] * size, case=rows["case"].astype(str)).dropna(subset=["position"])
    bad = rows[~np.isfinite(rows["value"].astype(float))].groupby("architecture")["position"].min()
    finite = rows[~(rows["position"] >= rows["architecture"].map(bad))]
    sums = finite.groupby(["position", "architecture", "metric"])["value"].sum().unstack("metric")
    # Every case counts tokens from its own first one: pieces of a book lie upon each other.
    reach = rows.groupby("position")["case"].nunique()
    whole = float(reach.index[reach == reach.max()].max())
    return (sums["bucket_nll_nats"] / sums["bucket_tokens"]).unstack("architecture"), whole


def transformer_of(architectures: list[str]) -> str | None:
    """Whom differences are taken to: the first transformer."""
    return next((a for a in architectures if family(a) == "transformer"), None)
