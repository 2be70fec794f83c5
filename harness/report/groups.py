"""Which rows may stand beside which: a `Group` is one run and one axis, and nothing is drawn across.

    systems    random weights: what a shape costs; its answers mean nothing
    quality    trained weights: cost and answers of the same execution

Within a group, language modelling is split once more by the text that was read (`language_sources`):
bits per byte of two texts do not compare. Cost numbers are taken from one suite (`cost_rows`), never pooled
over suites. Times are taken only from executions that were warmed up and repeated: a needle's prompt is
run once and cold. Bytes are exact wherever they are counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from ..metrics import metric as metric_of
from .load import Run
from .statistics import Spread, language_totals, spread

#: These keep every token by design, so "not exercised" says nothing about them.
NEVER_EVICT = ("transformer", "yoco")
#: Names under which a suite's axes may state how many tokens the cache had to see.
CONTEXT_AXES = ("context", "length", "tokens")
#: Context of a row whose suite does not state one (a number, because NaN is no key).
NO_CONTEXT = -1.0
#: The suite whose business is timing; bytes of other suites are used only where it reports none.
TIMING_SUITE = "decode"
COST_METRICS = (
    "cache_bytes_live",
    "cache_bytes_predicted",
    "prefill_s",
    "decode_step_s",
    "decode_tokens_per_s",
)
TIME_METRICS = ("prefill_s", "decode_step_s", "decode_tokens_per_s")
AXIS_NAMES = {"quality": "trained weights", "systems": "random weights"}
UNKNOWN_TEXT = "unknown text"
LANGUAGE_COUNTS = ("nll_nats", "num_bytes", "num_tokens", "num_words")


@dataclass(frozen=True)
class Group:
    """The rows of one run on one axis; `architectures` are spec strings in plan order."""

    run: Run
    axis: str
    rows: pd.DataFrame
    architectures: list[str]

    @property
    def ok(self) -> pd.DataFrame:
        """Rows with a number."""
        return self.rows[(self.rows["status"] == "ok") & self.rows["value"].notna()]

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that say why there is no number."""
        return self.rows[self.rows["status"] != "ok"]


def groups(run: Run) -> list[Group]:
    """Quality first, then systems; only those that have rows."""
    rows = run.rows.assign(
        family=run.rows["architecture"].map(family),
        suite_name=run.rows["suite"].map(family),
        context=run.rows["axes"].map(context_of).astype(float).fillna(NO_CONTEXT),
        depth=run.rows["axes"].map(lambda axes: axis_value(axes, "depth")).astype(float),
    )
    stated = rows["axes"].map(lambda axes: axis_value(axes, "batch")).astype(float)
    rows["num_requests"] = stated.fillna(rows["batch"].astype(float)).fillna(1.0)
    axes = sorted(rows["axis"].dropna().unique(), key=lambda axis: (axis != "quality", axis))
    return [
        Group(run, axis, part, [a for a in run.architectures if a in present])
        for axis in axes
        for part in [rows[rows["axis"] == axis]]
        for present in [set(part["architecture"])]
    ]


def family(spec: str) -> str:
    """`"tova:budget=64"` -> `"tova"`."""
    return spec.partition(":")[0]


@lru_cache(maxsize=65536)
def _axes(text: str) -> dict[str, object]:
    return json.loads(text)


def axis_value(axes: str, name: str) -> float | None:
    """A numeric axis of a row, or None."""
    value = _axes(axes or "{}").get(name)
    return float(value) if isinstance(value, (int, float)) else None


def context_of(axes: str) -> float | None:
    """How many tokens a row's cell was about, or None where its suite does not say."""
    found = (axis_value(axes, name) for name in CONTEXT_AXES)
    return next((value for value in found if value is not None), None)


def is_timed(metric: str) -> bool:
    """Whether a metric depends on the moment, so that one cold execution is no measurement of it."""
    return metric == "foreign_cpu_share" or metric_of(metric).unit in ("s", "tokens/s")


def timing_suites(group: Group) -> list[str]:
    """Spec strings of `decode` and of whatever else warmed up and repeated, in plan order."""
    timed = group.rows["repeat"].notna() | (group.rows["suite_name"] == TIMING_SUITE)
    return list(dict.fromkeys(group.rows.loc[timed, "suite"]))


def failure_suites(group: Group, metric: str) -> set[str]:
    """Suites whose failed cells stand beside a cost metric: its own; without a timed one, those, too."""
    chosen, timed = set(cost_rows(group, metric)["suite"]), set(timing_suites(group))
    return chosen if chosen & timed else chosen | timed


def cost_rows(group: Group, metric: str) -> pd.DataFrame:
    """Rows of a cost metric from one suite: `decode` if it reports it, else the first that does.

    Of a time only rows of warmed-up repeats; there may be none.
    """
    rows = group.ok[group.ok["metric"] == metric]
    if is_timed(metric):
        rows = rows[rows["repeat"].notna()]
    suites = list(dict.fromkeys(rows["suite"]))
    chosen = sorted(suites, key=lambda suite: family(suite) != TIMING_SUITE)[:1]
    return rows[rows["suite"].isin(chosen)]


def costs(group: Group, metric: str) -> dict[tuple[str, float, float], Spread]:
    """(architecture, context, requests in the batch) -> median and quartiles."""
    rows = cost_rows(group, metric)
    keys = ["architecture", "context", "num_requests"]
    return {key: spread(part) for key, part in rows.groupby(keys, sort=True)}


def needle_suites(group: Group) -> list[str]:
    """Spec strings of the suites that score needles, in plan order; their trials are never pooled."""
    return list(dict.fromkeys(group.ok.loc[group.ok["metric"] == "accuracy_strict", "suite"]))


def needle(group: Group, suite: str) -> pd.DataFrame:
    """One line per architecture, length, depth: strict hits, substring hits, scored trials."""
    rows = group.ok[(group.ok["suite"] == suite)]
    rows = rows[rows["metric"].isin(["accuracy_strict", "accuracy_substring"])]
    keys = ["architecture", "context", "depth"]
    sums = rows.groupby([*keys, "metric"], dropna=False)["value"].agg(["sum", "count"]).unstack("metric")
    found = pd.DataFrame(index=sums.index)
    for column, name in (("strict", "accuracy_strict"), ("substring", "accuracy_substring")):
        present = ("sum", name) in sums.columns
        found[f"{column}_hits"] = sums[("sum", name)].fillna(0.0) if present else 0.0
        found[f"{column}_trials"] = sums[("count", name)].fillna(0).astype(int) if present else 0
    return found.reset_index()


def language_sources(group: Group) -> list[tuple[str, str]]:
    """(suite, label of the text it read) wherever language was modelled, PG-19 first."""
    rows = group.ok[group.ok["metric"] == "nll_nats"]
    pairs = dict.fromkeys(zip(rows["suite"], rows["text"].fillna(UNKNOWN_TEXT), strict=True))
    return sorted(pairs, key=lambda pair: not is_pg19(pair[1]))


def is_pg19(label: str | None) -> bool:
    """Whether a text label names PG-19 books whose checksums are known."""
    source = str(label or "").partition("@")[0]
    return source.startswith("pg19:") and "unverified" not in source


def language_cases(group: Group, source: tuple[str, str]) -> pd.DataFrame:
    """One line per architecture, context, case with its nll and counts; unscored cases are left out."""
    suite, label = source
    rows = group.ok[(group.ok["suite"] == suite) & (group.ok["text"].fillna(UNKNOWN_TEXT) == label)]
    rows = rows[rows["metric"].isin(LANGUAGE_COUNTS)]
    keys = ["architecture", "context", "cell", "case"]
    cases = rows.groupby([*keys, "metric"], dropna=False)["value"].mean().unstack("metric")
    return cases.reindex(columns=list(LANGUAGE_COUNTS)).dropna(subset=["nll_nats"]).reset_index()


def language(group: Group, source: tuple[str, str]) -> pd.DataFrame:
    """One line per architecture and context: Σ/Σ over its cases, and how many there were."""
    cases = language_cases(group, source)
    return pd.DataFrame(
        {"architecture": architecture, "context": context, "cases": len(part), **language_totals(part)}
        for (architecture, context), part in cases.groupby(["architecture", "context"], dropna=False)
    )


def not_exercised(rows: pd.DataFrame) -> set[tuple[str, float]]:
    """(architecture, context) where a policy that can evict never had to: a full cache's numbers."""
    rows = rows[
        ~rows["family"].isin(NEVER_EVICT)
        & (rows["prompt_mode"].astype("string").str.split(",").str[0] != "parallel")
    ]
    counts = rows.dropna(subset=["requests_with_eviction"]).groupby(["architecture", "context"])
    most = counts["requests_with_eviction"].max()
    return set(most[most == 0].index)
