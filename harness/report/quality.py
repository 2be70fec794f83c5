"""Quality against cache bytes: one point per architecture."""

from __future__ import annotations

import math

import pandas as pd

from .canvas import Chart
from .doubt import objects, score_doubts
from .groups import (
    Group,
    context_name,
    cost_rows,
    needle,
    needle_judge,
    needle_suites,
    not_exercised,
    told_apart,
)
from .language import language, language_sources
from .lines import against_bytes
from .remarks import weights_told
from .section import Section
from .statistics import complete, wilson


def quality_section(group: Group, prefix: str) -> Section:
    """A chart for each suite that scored answers and whose cache bytes are known."""
    charts, missing = [], []
    for number, (suite, own) in enumerate(told_apart(needle_suites(group)).items()):
        frame = needle(group, suite).groupby(["architecture", "context"])[["hits", "trials"]].sum()
        frame = frame[frame["trials"] > 0].reset_index().rename(columns={"trials": "n"})
        frame["value"] = frame["hits"] / frame["n"]
        ends = [wilson(h, n) for h, n in zip(frame["hits"], frame["n"], strict=True)]
        frame["low"], frame["high"] = [low for low, _ in ends], [high for _, high in ends]
        judge, name = needle_judge(suite)
        slug, title = f"{prefix}-needle-{number}", f"Needle, {name}{own and ', '}{own}"
        missing += _fewer(frame, title, "trials")
        frame = frame[complete(frame, ["context"])]
        charts += _against_bytes(slug, title, judge, frame, group, suite)
    for number, source in enumerate(language_sources(group)):
        frame = language(group, source).rename(columns={"bits_per_byte": "value", "texts": "n"})
        missing += [
            f"Not drawn on {source.name}: {line.architecture}, {line.spoilt}."
            for line in frame[frame["spoilt"] != ""].itertuples()
        ]
        frame = frame[frame["spoilt"] == ""]  # over other texts it is another number
        missing += _fewer(frame, source.name, "texts")
        frame = frame[complete(frame, ["context"])]
        frame = frame.assign(low=math.nan, high=math.nan).dropna(subset=["value"])
        slug, title = f"{prefix}-bits-{number}", f"Bits/byte on {source.name}"
        charts += _against_bytes(slug, title, "bits_per_byte", frame, group, source.suite)
    lead = "Each point is one architecture: to the left it holds less."
    if not charts:
        lead = "No quality score with known cache bytes in this run."
    notes = list(dict.fromkeys(missing)) + (weights_told(group) if charts else [])
    return Section("Quality against cache bytes", lead, charts=charts, notes=notes)


def _fewer(frame: pd.DataFrame, title: str, what: str) -> list[str]:
    """Who has no point because a part of its cells failed."""
    return [
        f"Not drawn on {title}: {line.architecture}, with {line.n} {what} at {context_name(line.context)}, "
        "fewer than others."
        for line in frame[~complete(frame, ["context"])].itertuples()
    ]


def _against_bytes(
    slug: str, title: str, name: str, frame: pd.DataFrame, group: Group, suite: str
) -> list[Chart]:
    """The chart at the largest context for which cache bytes are known, or none."""
    held = bytes_per_request(group, suite)
    frame = frame.assign(
        bytes=[held.get(key) for key in zip(frame["architecture"], frame["context"], strict=True)]
    )
    frame = frame.dropna(subset=["bytes"])
    if frame.empty:
        return []
    frame = frame[frame["context"] == frame["context"].max()]
    frame = frame.sort_values("architecture", key=lambda a: a.map(group.drawn.index))
    whole = f"{title}, {context_name(frame['context'].max())}"
    unused = not_exercised(group.ok[group.ok["suite"] == suite])
    doubtful = score_doubts(group, suite, ("nll_nats" if name == "bits_per_byte" else name,))
    places = list(zip(frame["architecture"], frame["context"], strict=True))
    frame = frame.assign(idle=[key in unused for key in places], doubt=objects(map(doubtful.get, places)))
    return [against_bytes(slug, whole, name, frame, group)]


def bytes_per_request(group: Group, suite: str) -> dict[tuple[str, float], float]:
    """Live cache of one request: as the suite itself saw it, else as the timing suite did."""
    rows = group.ok[group.ok["metric"] == "cache_bytes_live"]
    own = rows[rows["suite"] == suite]
    rows = own if len(own) else cost_rows(group, "cache_bytes_live")
    per_request = rows.assign(value=rows["value"] / rows["num_requests"])
    return per_request.groupby(["architecture", "context"])["value"].median().to_dict()
