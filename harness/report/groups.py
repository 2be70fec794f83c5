"""Which rows may stand beside which: a `Group` is one run and one axis; nothing but `seeds.py` draws across.

    systems    random weights: what a shape costs; its answers mean nothing
    quality    trained weights: cost and answers of the same execution

Within a group, language modelling is split once more by text and protocol (`language.py`), and tasks by
the cells' own axes (`grid.py`). Cost numbers are taken from one suite (`cost_rows`), never pooled over
suites. Times are taken only from executions that were warmed up and repeated: a needle's prompt is run once
and cold. Bytes are exact wherever they are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from ..metrics import metric as metric_of
from ..store import StoreError
from .html import printable
from .load import Run
from .once import once
from .statistics import Spread, spreads

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


@dataclass(frozen=True)
class Group:
    """The rows of one run on one axis; `architectures` are spec strings in plan order.

    `dealt` is for a part of a run: colours are dealt among these instead of all that the run has.
    """

    run: Run
    axis: str
    rows: pd.DataFrame
    architectures: list[str]
    dealt: tuple[str, ...] = ()

    @property
    def drawn(self) -> list[str]:
        """What colours are dealt by."""
        return list(self.dealt) or self.run.architectures

    @cached_property
    def ok(self) -> pd.DataFrame:
        """Rows with a number."""
        return self.rows[(self.rows["status"] == "ok") & self.rows["value"].notna()]

    @property
    def failures(self) -> pd.DataFrame:
        """Rows that say why there is no number."""
        return self.rows[self.rows["status"] != "ok"]


@once
def groups(run: Run) -> list[Group]:
    """Quality first, then systems; only those that have rows."""
    rows = as_objects(run.rows)
    rows = rows.assign(
        family=of_each(rows["architecture"], family),
        suite_name=of_each(rows["suite"], family),
        context=of_each(rows["axes"], context_of).astype(float).fillna(NO_CONTEXT),
        depth=of_each(rows["axes"], lambda axes: axis_value(axes, "depth")).astype(float),
    )
    stated = of_each(rows["axes"], lambda axes: axis_value(axes, "batch")).astype(float)
    rows["num_requests"] = stated.fillna(rows["batch"].astype(float)).fillna(1.0)
    axes = sorted(rows["axis"].dropna().unique(), key=lambda axis: (axis != "quality", axis))
    return [
        Group(run, axis, part, [a for a in run.architectures if a in present])
        for axis in axes
        for part in [rows[rows["axis"] == axis]]
        for present in [set(part["architecture"])]
    ]


def as_objects(rows: pd.DataFrame) -> pd.DataFrame:
    """The same with texts as Python's own, which a page looks at one by one: from Arrow that takes long."""
    texts = [name for name in rows.columns if isinstance(rows[name].dtype, pd.StringDtype)]
    return rows.assign(**{name: _shared(rows[name]) for name in texts})


def of_each(texts: pd.Series, find: Callable[[str], object]) -> pd.Series:
    """What `find` says of each text, asked once for equal ones; None of an unknown one."""
    codes, names = pd.factorize(texts)
    found = np.array([*map(find, names), None], dtype=object)
    return pd.Series(found[codes], index=texts.index)


def _shared(texts: pd.Series) -> pd.Series:
    """Equal texts are one object, unknown ones NaN."""
    codes, names = pd.factorize(texts)
    known = np.append(np.asarray(names, dtype=object), np.nan)
    return pd.Series(known[codes], index=texts.index, dtype=object)


def family(spec: str) -> str:
    """`"tova:budget=64"` -> `"tova"`."""
    return spec.partition(":")[0]


@lru_cache(maxsize=65536)
def _axes(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"A row's axes are no JSON object: {printable(text)[:80]}.")
    return found


def axis_value(axes: str, name: str) -> float | None:
    """A numeric axis of a row, or None."""
    value = _axes(axes or "{}").get(name)
    return float(value) if isinstance(value, (int, float)) else None


def axis_text(axes: str, name: str) -> str | None:
    """An axis of a row in words, or None."""
    value = _axes(axes or "{}").get(name)
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def context_of(axes: str) -> float | None:
    """How many tokens a row's cell was about, or None where its suite does not say."""
    found = (axis_value(axes, name) for name in CONTEXT_AXES)
    return next((value for value in found if value is not None), None)


def context_name(context: float) -> str:
    """`1024.0` -> `"1,024 tokens"`."""
    return "no stated context" if context == NO_CONTEXT else f"{context:,.0f} tokens"


def is_timed(metric: str) -> bool:
    """Whether a metric depends on the moment, so that one cold execution is no measurement of it."""
    return metric == "foreign_cpu_share" or metric_of(metric).unit in ("s", "tokens/s")


@once
def timing_suites(group: Group) -> list[str]:
    """Spec strings of `decode` and of whatever else warmed up and repeated, in plan order."""
    timed = group.rows["repeat"].notna() | (group.rows["suite_name"] == TIMING_SUITE)
    return list(dict.fromkeys(group.rows.loc[timed, "suite"]))


@once
def failure_suites(group: Group, metric: str) -> set[str]:
    """Suites whose failed cells stand beside a cost metric: its own; without a timed one, those, too."""
    chosen, timed = set(cost_rows(group, metric)["suite"]), set(timing_suites(group))
    return chosen if chosen & timed else chosen | timed


@once
def cost_rows(group: Group, metric: str) -> pd.DataFrame:
    """Rows of a cost metric from one suite: `decode` if it reports it, else the first that does.

    Of a time only rows of warmed-up repeats; there may be none. Bytes of a suite that was not repeated are
    those of whatever batches its cases fell into: then each request counts with its part of its batch.
    """
    rows = group.ok[group.ok["metric"] == metric]
    if is_timed(metric):
        rows = rows[rows["repeat"].notna()]
    suites = list(dict.fromkeys(rows["suite"]))
    chosen = sorted(suites, key=lambda suite: family(suite) != TIMING_SUITE)[:1]
    rows = rows[rows["suite"].isin(chosen)]
    return rows if chosen and is_repeated(rows) else _per_request(rows, metric)


def is_repeated(rows: pd.DataFrame) -> bool:
    """Whether these are measurements at a batch size that was asked for, not by-products of answers."""
    return bool(rows["repeat"].notna().any() or (rows["suite_name"] == TIMING_SUITE).any())


def _per_request(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    if metric_of(metric).unit != "bytes":
        return rows
    rows = rows.loc[rows.index.repeat(rows["num_requests"].astype(int))]
    return rows.assign(value=rows["value"] / rows["num_requests"], num_requests=1.0)


@once
def costs(group: Group, metric: str) -> dict[tuple[str, float, float], Spread]:
    """(architecture, context, requests in the batch) -> median and quartiles."""
    rows = cost_rows(group, metric)
    keys = ["architecture", "context", "num_requests"]
    return spreads(rows, keys)


@once
def over_floor(group: Group, metric: str) -> dict[tuple[str, float, float], str]:
    """(architecture, context, requests in the batch) -> a time's distance to its floor, in words."""
    name = {"prefill_s": "prefill_over_floor", "decode_step_s": "decode_over_floor"}.get(metric)
    found = costs(group, name) if name else {}
    return {key: f"{metric_of(name).format(s.median)} of its floor" for key, s in found.items()}


@once
def needle_suites(group: Group) -> list[str]:
    """Spec strings of the suites that score needles, the one that leads first, then in plan order.

    A needle among others of its form leads: a single one is found by whoever still holds it. Trials of
    two suites are never pooled.
    """
    suites = dict.fromkeys(group.ok.loc[group.ok["metric"] == "accuracy_strict", "suite"])
    return sorted(suites, key=lambda suite: not is_keyed(suite))


def is_keyed(suite: str) -> bool:
    """Whether the needle that is asked for lies among others, told apart by made-up keys."""
    return "variant=keyed" in suite.partition(":")[2].split(",")


def told_apart(suites: Sequence[str]) -> dict[str, str]:
    """What each spec says that not all say, to stand in a short title: empty for one that says no more."""
    options = {suite: [o for o in suite.partition(":")[2].split(",") if o] for suite in suites}
    return {
        suite: ", ".join(o for o in own if not all(o in others for others in options.values()))
        for suite, own in options.items()
    }


def needle_judge(suite: str) -> tuple[str, str]:
    """(metric that judges, what to call it): strict, but of variant=city the substring, as YOCO's."""
    if "variant=city" in suite.partition(":")[2].split(","):
        return "accuracy_substring", "city, substring (official)"
    return "accuracy_strict", "strict"


@once
def needle(group: Group, suite: str) -> pd.DataFrame:
    """One line per architecture, length, depth: hits and scored trials, strict and substring, and of what
    judges the suite (`hits`, `trials`)."""
    rows = group.ok[(group.ok["suite"] == suite)]
    rows = rows[rows["metric"].isin(["accuracy_strict", "accuracy_substring"])]
    keys = ["architecture", "context", "depth"]
    sums = rows.groupby([*keys, "metric"], dropna=False)["value"].agg(["sum", "count"]).unstack("metric")
    found = pd.DataFrame(index=sums.index)
    for column, name in (("strict", "accuracy_strict"), ("substring", "accuracy_substring")):
        present = ("sum", name) in sums.columns
        found[f"{column}_hits"] = sums[("sum", name)].fillna(0.0) if present else 0.0
        found[f"{column}_trials"] = sums[("count", name)].fillna(0).astype(int) if present else 0
    judge = needle_judge(suite)[0].removeprefix("accuracy_")
    found["hits"], found["trials"] = found[f"{judge}_hits"], found[f"{judge}_trials"]
    return found.reset_index()


def not_exercised(rows: pd.DataFrame) -> set[tuple[str, float]]:
    """(architecture, context) where a policy that can evict never had to: a full cache's numbers."""
    rows = rows[
        ~rows["family"].isin(NEVER_EVICT)
        & (of_each(rows["prompt_mode"], lambda mode: mode.partition(",")[0]) != "parallel")
        & rows["requests_with_eviction"].notna()
    ]
    counts = rows.groupby(["architecture", "context"])
    most = counts["requests_with_eviction"].max()
    return set(most[most == 0].index)
