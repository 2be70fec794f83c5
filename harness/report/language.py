"""Language modelling, as numbers: what was read, text by text and protocol by protocol.

Bits per byte of two texts do not compare, nor do those of two protocols (one cache for a whole book, or an
empty one for each piece): a `Source` is one suite, one text, one protocol, and nothing is summed over two.
A book read in pieces is one case again: pieces of a book are no independent samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from .groups import UNKNOWN_TEXT, Group, axis_text, family
from .statistics import LANGUAGE_COUNTS, bootstrap, language_totals

#: Further sums that a protocol may bring along: the official word count; tokens that its block rule counts.
MORE_COUNTS = ("num_words_official", "block_nll_nats", "block_tokens")


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


def language_sources(group: Group) -> list[Source]:
    """Wherever language was modelled, PG-19 first."""
    rows = group.ok[group.ok["metric"] == "nll_nats"]
    found = zip(rows["suite"], rows["text"].fillna(UNKNOWN_TEXT), _protocols(rows), strict=True)
    return sorted(map(Source._make, dict.fromkeys(found)), key=lambda source: not is_pg19(source.label))


def _protocols(rows: pd.DataFrame) -> pd.Series:
    return rows["axes"].map(lambda axes: axis_text(axes, "protocol") or "")


def source_rows(group: Group, source: Source) -> pd.DataFrame:
    """All rows with a number of a source."""
    rows = group.ok[(group.ok["suite"] == source.suite)]
    return rows[(rows["text"].fillna(UNKNOWN_TEXT) == source.label) & (_protocols(rows) == source.protocol)]


def language_cases(group: Group, source: Source) -> pd.DataFrame:
    """One line per architecture, context and book (`case`): sums over its pieces.

    Unscored pieces are left out. Replicates of a book are averaged.
    """
    rows = source_rows(group, source)
    rows = rows[rows["metric"].isin([*LANGUAGE_COUNTS, *MORE_COUNTS])]
    rows = rows.assign(case=_books(rows))
    keys = ["architecture", "context", "case", "metric"]
    sums = rows.groupby([*keys, "cell"], dropna=False)["value"].sum()
    cases = sums.groupby(keys, dropna=False).mean().unstack("metric")
    return cases.reindex(columns=[*LANGUAGE_COUNTS, *MORE_COUNTS]).dropna(subset=["nll_nats"]).reset_index()


def _books(rows: pd.DataFrame) -> pd.Series:
    """The book of each row; a case that names none is a text of its own."""
    return rows["axes"].map(lambda axes: axis_text(axes, "book")).fillna(rows["case"].astype(str))


def language(group: Group, source: Source) -> pd.DataFrame:
    """One line per architecture and context: Σ/Σ over its texts, and how many there were."""
    cases = language_cases(group, source)
    return pd.DataFrame(
        {"architecture": architecture, "context": context, "texts": len(part), **language_totals(part)}
        for (architecture, context), part in cases.groupby(["architecture", "context"], dropna=False)
    )


def bits_interval(cases: pd.DataFrame) -> tuple[float, float]:
    """95 % of bits per byte, resampled over the texts."""
    return bootstrap(cases[["nll_nats", "num_bytes"]].to_numpy(float), lambda s: s[0] / math.log(2) / s[1])


def bits_difference(cases: pd.DataFrame, base: pd.DataFrame) -> tuple[float, tuple[float, float], int]:
    """(bits per byte minus those of `base`, 95 % interval, texts) over the texts that both scored."""
    both = cases.merge(base, on="case", suffixes=("", "_base"))
    columns = both[["nll_nats", "num_bytes", "nll_nats_base", "num_bytes_base"]].to_numpy(float)

    def difference(sums: np.ndarray) -> np.ndarray:
        nll, num_bytes, base_nll, base_bytes = sums
        return (nll / num_bytes - base_nll / base_bytes) / math.log(2)

    if not (both["num_bytes"].sum() and both["num_bytes_base"].sum()):
        return math.nan, (math.nan, math.nan), 0
    return float(difference(columns.sum(0))), bootstrap(columns, difference), len(both)


def by_position(group: Group, source: Source) -> tuple[pd.DataFrame, float]:
    """(nats per token by first position and architecture, last position that all texts reach).

    From histograms `bucket_nll_nats`, `bucket_tokens` whose axis `bucket` says how many tokens a bin has;
    empty where there are none. Each value is Σ nats / Σ tokens over the texts that reach it.
    """
    rows = source_rows(group, source)
    rows = rows[rows["metric"].isin(["bucket_nll_nats", "bucket_tokens"]) & rows["bin"].notna()]
    if rows.empty:
        return pd.DataFrame(), math.nan
    size = rows["axes"].map(lambda axes: float(axis_text(axes, "bucket") or "nan"))
    rows = rows.assign(position=rows["bin"] * size, case=rows["case"].astype(str)).dropna(subset=["position"])
    sums = rows.groupby(["position", "architecture", "metric"])["value"].sum().unstack("metric")
    # Every case counts tokens from its own first one: pieces of a book lie upon each other.
    reach = rows.groupby("position")["case"].nunique()
    whole = float(reach.index[reach == reach.max()].max())
    return (sums["bucket_nll_nats"] / sums["bucket_tokens"]).unstack("architecture"), whole


def transformer_of(architectures: list[str]) -> str | None:
    """Whom differences are taken to: the first transformer."""
    return next((a for a in architectures if family(a) == "transformer"), None)
