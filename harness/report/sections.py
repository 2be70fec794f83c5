"""The parts of the page that belong to one run and one axis, each a `Section` in the page's order.

A section without data does not vanish in silence: it says in one line what was not measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from ..metrics import METRICS, NOTHING, format_share, metric
from .canvas import Chart
from .groups import (
    LANGUAGE_COUNTS,
    NO_CONTEXT,
    Group,
    axis_value,
    cost_rows,
    costs,
    failure_suites,
    is_pg19,
    language,
    language_sources,
    needle,
    needle_suites,
    timing_suites,
)
from .heatmap import suite_heatmaps
from .html import Entry, Table, table_of
from .lines import against_bytes, against_context, against_position
from .remarks import alerts, timing_alerts, unshown_alerts, unshown_timings, weight_notes
from .statistics import wilson
from .verdict import by_context, context_name, headline

#: Fewer steps than this are no curve.
LEAST_STEPS = 8
#: Above this share of foreign load the page says that its absolute times are loose.
BUSY_SHARE = 0.1


@dataclass
class Section:
    """A heading with what stands below it; `folded` tables are closed until asked for."""

    title: str
    lead: str = ""
    alerts: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[tuple[str, Table]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    maps: bool = False


def sections(group: Group, prefix: str) -> list[Section]:
    """Everything that the page shows of one group, in order; `prefix` keeps file names apart."""
    return [
        _verdict(group),
        *_needles(group, f"{prefix}needle"),
        _costs(group, f"{prefix}cost"),
        _quality(group, f"{prefix}quality"),
        _numbers(group),
    ]


def _verdict(group: Group) -> Section:
    table = headline(group)
    others = by_context(group)
    folded = [(f"At {context_name(c)}", t) for c, t in others if t != table]
    return Section(
        "Verdict",
        "Small print compares with the transformer. Bold marks the best value and all that cannot be told "
        "from it; the reading guide says how.",
        alerts=alerts(group),
        tables=[table] if len(table.columns) > 2 else [],
        folded=folded,
        notes=weight_notes(group) or _random_note(group),
    )


def _random_note(group: Group) -> list[str]:
    return [] if group.axis == "quality" else ["Random weights: costs only, the answers mean nothing."]


def _needles(group: Group, prefix: str) -> list[Section]:
    suites = needle_suites(group)
    if not suites:
        return [Section("Needles by length and depth", "No needle suite was scored in this run.")]
    found = []
    for number, suite in enumerate(suites):
        title = "Needles by length and depth" + (f": {suite}" if len(suites) > 1 else "")
        lead = (
            "Strict accuracy in per cent; depth 0 % is the beginning of the text. A length in brackets was "
            "not exercised: nothing had to be evicted."
        )
        charts = suite_heatmaps(f"{prefix}-{number}", group, suite)
        found.append(Section(title, lead, charts=charts, notes=weight_notes(group), maps=True))
    return found


def _costs(group: Group, prefix: str) -> Section:
    charts = []
    for name, title in (
        ("prefill_s", "Prefill"),
        ("decode_step_s", "Decode step"),
        ("decode_tokens_per_s", "Decode rate"),
        ("cache_bytes_live", "Live cache"),
    ):
        data = costs(group, name)
        data = {key: value for key, value in data.items() if key[1] != NO_CONTEXT}
        if name == "decode_tokens_per_s":  # of one request it is the reciprocal of the step
            data = {key: value for key, value in data.items() if key[2] > 1}
        batches = sorted({key[2] for key in data})
        for batch in batches:
            whole = f"{title}, batch {batch:,.0f}" if len(batches) > 1 or batch > 1 else title
            slug = f"{prefix}-{name}-b{batch:.0f}"
            suites = failure_suites(group, name)
            charts.append(against_context(slug, whole, name, data, batch, group, suites))
    warnings = [*timing_alerts(group), *unshown_alerts(unshown_timings(group))]
    failed = _failed_timings(group)
    if not charts:
        return Section("Cost", "No costs were measured in this run.", alerts=warnings, tables=failed)
    steps = _steps(group, f"{prefix}-steps")
    lead = (
        "Median; whiskers from the first to the third quartile. A cross on the axis is a cell that failed. "
        + "The last chart is the median of each single step: work in bursts shows as spikes." * bool(steps)
    )
    notes = [] if steps else ["Too few decode steps were timed for a curve over positions."]
    found = Section("Cost", lead, charts=charts + steps, alerts=warnings + _busy(group), notes=notes)
    found.tables = failed
    return found


def _failed_timings(group: Group) -> list[Table]:
    """Where no cell gave a time, and so no chart has room for a cross: what became of each."""
    if not timing_alerts(group):
        return []
    rows = group.failures[group.failures["suite"].isin(timing_suites(group))]
    points = sorted({*zip(rows["context"], rows["num_requests"], strict=True)})
    keys = zip(rows["architecture"], rows["context"], rows["num_requests"], strict=True)
    status = dict(zip(keys, rows["status"], strict=True))
    table = [
        [a, *(Entry(status.get((a, *p), NOTHING), failed=(a, *p) in status) for p in points)]
        for a in group.architectures
        if a in set(rows["architecture"])
    ]
    columns = [context_name(c) + (f"\nbatch {n:,.0f}" if n > 1 else "") for c, n in points]
    return [table_of(["architecture", *columns], table, "Timed cells that failed.")] if table else []


def _busy(group: Group) -> list[str]:
    share = cost_rows(group, "foreign_cpu_share")["value"]
    if not len(share) or share.median() <= BUSY_SHARE:
        return []
    return [
        (
            f"Other processes used {format_share(share.median())} of all cores' time while the clock ran "
            f"(median; highest {format_share(share.max())}): compare the lines with each other, not with "
            "another page."
        )
    ]


def _steps(group: Group, slug: str) -> list[Chart]:
    """Single decode steps after the largest context, if there are enough for a curve."""
    rows = cost_rows(group, "decode_step_s")
    rows = rows[rows["step"].notna() & (rows["context"] != NO_CONTEXT)]
    rows = rows[rows["num_requests"] == rows["num_requests"].min()]
    if rows["step"].nunique() < LEAST_STEPS:
        return []
    context = rows["context"].max()
    rows = rows[rows["context"] == context]
    title = f"Decode steps after {context:,.0f} tokens"
    return [against_position(slug, title, rows.assign(position=context + rows["step"]), group)]


def _quality(group: Group, prefix: str) -> Section:
    charts = []
    for number, suite in enumerate(needle_suites(group)):
        frame = (
            needle(group, suite).groupby(["architecture", "context"])[["strict_hits", "strict_trials"]].sum()
        )
        frame = frame[frame["strict_trials"] > 0].reset_index()
        frame["value"] = frame["strict_hits"] / frame["strict_trials"]
        ends = [wilson(h, n) for h, n in zip(frame["strict_hits"], frame["strict_trials"], strict=True)]
        frame["low"], frame["high"] = [low for low, _ in ends], [high for _, high in ends]
        charts += _against_bytes(
            f"{prefix}-needle-{number}", "Needle, strict", "accuracy_strict", frame, group, suite
        )
    for number, source in enumerate(language_sources(group)):
        frame = language(group, source).rename(columns={"bits_per_byte": "value"})
        frame = frame.assign(low=math.nan, high=math.nan).dropna(subset=["value"])
        title = "Bits/byte on " + ("PG-19" if is_pg19(source[1]) else source[1].split("@")[0])
        charts += _against_bytes(f"{prefix}-bits-{number}", title, "bits_per_byte", frame, group, source[0])
    lead = "Each point is one architecture: to the left it holds less."
    if not charts:
        lead = "No quality score with known cache bytes in this run."
    return Section(
        "Quality against cache bytes", lead, charts=charts, notes=weight_notes(group) if charts else []
    )


def _against_bytes(
    slug: str, title: str, name: str, frame: pd.DataFrame, group: Group, suite: str
) -> list[Chart]:
    """The chart at the largest context for which cache bytes are known, or none."""
    held = _bytes_per_request(group, suite)
    frame = frame.assign(
        bytes=[held.get(key) for key in zip(frame["architecture"], frame["context"], strict=True)]
    )
    frame = frame.dropna(subset=["bytes"])
    if frame.empty:
        return []
    frame = frame[frame["context"] == frame["context"].max()]
    frame = frame.sort_values("architecture", key=lambda a: a.map(group.run.architectures.index))
    whole = f"{title}, {context_name(frame['context'].max())}"
    return [against_bytes(slug, whole, name, frame, group)]


def _bytes_per_request(group: Group, suite: str) -> dict[tuple[str, float], float]:
    """Live cache of one request: as the suite itself saw it, else as the timing suite did."""
    rows = group.ok[group.ok["metric"] == "cache_bytes_live"]
    own = rows[rows["suite"] == suite]
    rows = own if len(own) else cost_rows(group, "cache_bytes_live")
    per_request = rows.assign(value=rows["value"] / rows["num_requests"])
    return per_request.groupby(["architecture", "context"])["value"].median().to_dict()


def _numbers(group: Group) -> Section:
    """Every metric of every suite, folded; those that no registry knows stand apart."""
    rows = group.ok[~group.ok["metric"].isin(["failure", *LANGUAGE_COUNTS]) & group.ok["bin"].isna()]
    known = rows[rows["metric"].isin(METRICS)]
    folded = [
        (f"Every number of {suite}", _wide(part, group)) for suite, part in known.groupby("suite", sort=False)
    ]
    folded += [
        (f"{suite} on {label.split('@')[0]}: sums and perplexities", _language_table(group, (suite, label)))
        for suite, label in language_sources(group)
    ]
    unknown = rows[~rows["metric"].isin(METRICS)]
    tables = [_plain(unknown)] if len(unknown) else []
    lead = "Medians over everything but architecture and context; small print gives the range."
    scored = set(rows["metric"]) & {"accuracy_strict", "bits_per_byte"} or language_sources(group)
    notes = _unknown_values(group) + (weight_notes(group) if scored else [])
    return Section("All numbers", lead, tables=tables, folded=folded, notes=notes)


def _unknown_values(group: Group) -> list[str]:
    """Why a number that was asked for is not there, where its rows say so."""
    rows = group.rows[(group.rows["status"] == "ok") & group.rows["value"].isna()]
    rows = rows[rows["message"].notna()]
    found = []
    for message, part in rows.groupby("message", sort=False):
        labels = "; ".join(metric(name).label for name in dict.fromkeys(part["metric"]))
        owners = [a for a in group.architectures if a in set(part["architecture"])]
        whose = "" if owners == group.architectures else f" of {', '.join(owners)}"
        found.append(f"Unknown here ({labels}{whose}): {message}")
    return found


def _wide(rows: pd.DataFrame, group: Group) -> Table:
    """Architecture and context down, metrics across. Scores are means, everything else medians."""
    summed = rows["suite"].isin([suite for suite, _ in language_sources(group)]).any()
    skipped = ("bits_per_byte", "token_ppl", "word_ppl") if summed else ()  # they have a table of their own
    names = [name for name in METRICS if name in set(rows["metric"]) and name not in skipped]
    found = []
    for architecture in group.architectures:
        own = rows[rows["architecture"] == architecture]
        for context, part in own.groupby("context"):
            fields = [_range(part.loc[part["metric"] == name, "value"], name) for name in names]
            found.append([architecture, context_name(context), *fields])
    return table_of(["architecture", "context", *(METRICS[name].label for name in names)], found)


def _range(values: pd.Series, name: str) -> Entry:
    entry = METRICS[name]
    if values.empty:
        return Entry("–")
    if name.startswith("accuracy"):
        return Entry(entry.format(values.mean()), f"n = {len(values)}")
    low, high = entry.format(values.min()), entry.format(values.max())
    return Entry(entry.format(values.median()), f"{low} to {high}" if low != high else "")


def _language_table(group: Group, source: tuple[str, str]) -> Table:
    names = ["bits_per_byte", "token_ppl", "word_ppl", *LANGUAGE_COUNTS]
    frame = language(group, source)
    rows = [
        [line.architecture, context_name(line.context), f"{line.cases}"]
        + [METRICS[name].format(getattr(line, name)) for name in names]
        for line in frame.itertuples()
    ]
    return table_of(["architecture", "context", "texts", *(METRICS[name].label for name in names)], rows)


def _plain(rows: pd.DataFrame) -> Table:
    """Metrics that came with a new suite or architecture: mean, range and unit, whatever they mean."""
    found = []
    for (suite, name, architecture, context), part in rows.groupby(
        ["suite", "metric", "architecture", "context"], sort=False
    ):
        unit = str(part["unit"].iloc[0] or "")
        format = metric(name, unit).format
        values = part["value"]
        numbers = [format(values.mean()), format(values.min()), format(values.max()), f"{len(values)}"]
        found.append([architecture, suite, context_name(context), name, *numbers, unit])
    columns = ["architecture", "suite", "context", "metric", "mean", "lowest", "highest", "n", "unit"]
    return table_of(
        columns, found, "Other metrics: not in the registry of harness.metrics, shown as they are."
    )


def failures_table(group: Group) -> Table | None:
    """Every failed cell of a group with what is known about it."""
    rows = group.failures.drop_duplicates(subset=["cell", "status", "phase", "message"])
    if rows.empty:
        return None
    found = [
        [
            row.architecture,
            row.suite,
            _axes_text(row.axes),
            Entry(row.status, failed=True),
            row.phase,
            row.message,
        ]
        for row in rows.itertuples()
    ]
    fields = [[field if isinstance(field, Entry) else str(field or "–") for field in row] for row in found]
    return table_of(["architecture", "suite", "cell", "status", "phase", "message"], fields)


def _axes_text(axes: str) -> str:
    names = [name.split('"')[0] for name in (axes or "{}").split('"')[1::2]]
    pairs = [(name, axis_value(axes, name)) for name in names]
    return ", ".join(f"{name} {value:g}" for name, value in pairs if value is not None) or "–"
