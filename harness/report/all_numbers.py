"""All numbers, folded, and the cells that failed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from ..metrics import METRICS, NOTHING, metric
from ..roofline import DERIVED
from .groups import Group, axis_text, context_name, not_exercised
from .html import Entry, Table, table_of
from .language import MORE_COUNTS, Source, language, language_sources
from .remarks import weights_told
from .scored import of_tasks
from .section import Section
from .statistics import LANGUAGE_COUNTS

#: Metrics whose absence the costs and the roofline explain.
TOLD_ELSEWHERE = ("prefill_j_per_token", "decode_j_per_token", *DERIVED)


def numbers_section(group: Group, others: Group | None = None) -> Section:
    """Every metric of every suite, folded; those that no registry knows stand apart.

    `others` are architectures whose scores alone stand on the page: it is said of them.
    """
    summed = group.ok["metric"].isin(["failure", *LANGUAGE_COUNTS, *MORE_COUNTS])
    rows = group.ok[~summed & ~of_tasks(group.ok) & group.ok["bin"].isna()]
    known = rows[rows["metric"].isin(METRICS)]
    folded = [
        (f"Every number of {suite}", _wide(part, group)) for suite, part in known.groupby("suite", sort=False)
    ]
    folded += [
        (f"{source.suite} on {source.text}: sums and perplexities", _language_table(group, source))
        for source in language_sources(group)
    ]
    unknown = rows[~rows["metric"].isin(METRICS)]
    tables = [_plain(unknown)] if len(unknown) else []
    lead = "Medians over everything but architecture and context; small print gives the range."
    scored = set(rows["metric"]) & {"accuracy_strict", "bits_per_byte"} or language_sources(group)
    notes = _unknown_values(group) + _histograms(group) + (weights_told(group) if scored else [])
    notes += [] if others is None else [_elsewhere(group, others)]
    return Section("All numbers", lead, tables=tables, folded=folded, notes=notes)


def _elsewhere(group: Group, others: Group) -> str:
    left = [spec for spec in others.architectures if spec not in set(group.architectures)]
    return (
        f"Not in these tables: {', '.join(left)}. Their scores and live bytes stand above; what else was "
        "measured of them is in the run's rows (rows.parquet)."
    )


def _unknown_values(group: Group) -> list[str]:
    """Why a number that was asked for is not there, where its rows say so.

    Messages that differ in nothing but numbers (the token at which it happened) are one, told by the first.
    """
    rows = group.rows[(group.rows["status"] == "ok") & ~np.isfinite(group.rows["value"].astype(float))]
    rows = rows[rows["message"].notna() & ~rows["metric"].isin(TOLD_ELSEWHERE)]
    found = []
    for _, part in rows.groupby(rows["message"].str.replace(r"\d[\d,]*", "#", regex=True), sort=False):
        message = part["message"].iloc[0]
        if (alike := part["message"].nunique()) > 1:
            message += f" The first of {alike} such messages."
        labels = "; ".join(metric(name).label for name in dict.fromkeys(part["metric"]))
        owners = [a for a in group.architectures if a in set(part["architecture"])]
        whose = "" if owners == group.architectures else f" of {', '.join(owners)}"
        found.append(f"Unknown here ({labels}{whose}): {message}")
    return found


def _histograms(group: Group) -> list[str]:
    """What is in the rows by bins or layers, and so in no table here."""
    names = dict.fromkeys(group.ok.loc[group.ok["bin"].notna(), "metric"])
    labels = ", ".join(METRICS[name].label if name in METRICS else name for name in names)
    where = "they have bins (layers, positions, ages) and stand in the rows."
    return [f"Not listed here: {labels}; {where}"] * bool(names)


def _wide(rows: pd.DataFrame, group: Group) -> Table:
    """Architecture and context down, metrics across. Scores are means, everything else medians."""
    summed = rows["suite"].isin([source.suite for source in language_sources(group)]).any()
    skipped = ("bits_per_byte", "token_ppl", "word_ppl") if summed else ()  # they have a table of their own
    names = [name for name in METRICS if name in set(rows["metric"]) and name not in skipped]
    idle, found = not_exercised(rows), []
    parts = rows.groupby(["architecture", "context", "metric"])["value"]
    numbers = parts.agg(["mean", "min", "median", "max", "count"]).astype(float)
    numbers = {key: line for key, line in zip(numbers.index, numbers.to_numpy(), strict=True)}
    places = {(architecture, context) for architecture, context, _ in numbers}
    for architecture in group.architectures:
        for context in sorted(context for name, context in places if name == architecture):
            unused = (architecture, context) in idle
            fields = [_range(numbers.get((architecture, context, name)), name, unused) for name in names]
            found.append([architecture, context_name(context), *fields])
    return table_of(["architecture", "context", *(METRICS[name].label for name in names)], found)


def _range(numbers: np.ndarray | None, name: str, unused: bool) -> Entry:
    """The entry of (mean, lowest, median, highest, count)."""
    entry = METRICS[name]
    if numbers is None:
        return Entry(NOTHING)
    mean, lowest, median, highest, count = numbers
    if name.startswith("accuracy"):
        return Entry(entry.format(mean), f"n = {count:.0f}" + " · not exercised" * unused)
    low, high = entry.format(lowest), entry.format(highest)
    return Entry(entry.format(median), f"{low} to {high}" if low != high else "")


def _language_table(group: Group, source: Source) -> Table:
    names = ["bits_per_byte", "token_ppl", "word_ppl", *LANGUAGE_COUNTS]
    idle = not_exercised(group.ok[group.ok["suite"] == source.suite])
    rows = []
    for line in language(group, source).itertuples():
        unused = " · ".join(["not exercised"] * ((line.architecture, line.context) in idle) + [line.spoilt])
        numbers = [METRICS[name].format(getattr(line, name)) for name in names]
        row = [line.architecture, context_name(line.context), f"{line.texts}"]
        rows.append([*row, Entry(numbers[0], unused), *numbers[1:]])
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
    return ", ".join(f"{name} {axis_text(axes, name)}" for name in json.loads(axes or "{}")) or NOTHING
