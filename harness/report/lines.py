"""Charts with axes: a cost against the context, a step against its position, quality against bytes.

    against_context   median with whiskers from the first to the third quartile; a cell that failed is a
                      cross on the axis, at the context where its line ends
    against_position  median over the repeats of each decode step: bursts of work show here
    by_position       nats per token over the position in a text: what a long stream does to a cache
    against_bytes     one point per architecture: how much it holds, how well it answers

Both axes are logarithmic where they hold bytes, seconds or tokens.
"""

from __future__ import annotations

import pandas as pd

from ..metrics import METRICS, NOTHING, Metric, format_bits
from .axis import Axis, Ticks
from .canvas import Chart, Style, figure, legend, styles
from .doubt import Doubt, cost_doubts, notes_of, signed
from .groups import Group, not_exercised, over_floor
from .html import Entry, Table, table_of
from .plot import Panel, Pen
from .remarks import hand_set
from .render import render
from .rings import explained, ringed
from .statistics import Spread

Costs = dict[tuple[str, float, float], Spread]
#: Longest table of a position chart; beyond it every k-th step is listed.
MOST_STEPS_LISTED = 96


def against_context(
    slug: str, title: str, name: str, data: Costs, batch: float, group: Group, suites: set[str]
) -> Chart:
    """A cost metric over the context, one line per architecture."""
    entry = METRICS[name]
    looks, doubtful = styles(group.drawn), cost_doubts(group, name)
    failed = _failed(group, suites, {key for key in data if key[2] == batch})
    contexts = sorted({c for _, c, n in data if n == batch} | {c for _, c in failed})
    fig, panel = figure(5.0, 3.9)
    panel.title = title
    log_axis(panel.y, entry)
    token_axis(panel.x, contexts)
    for architecture in group.architectures:
        points = [(c, data[architecture, c, batch]) for c in contexts if (architecture, c, batch) in data]
        if points:
            _whiskers(panel, points, looks[architecture])
            for context, point in points:
                doubt = doubtful.get((architecture, context, batch))
                ringed(panel, context, point.median, looks[architecture].points(), doubt)
    _crosses(panel, failed, looks)
    shown = [a for a in group.architectures if any(a == key[0] for key in [*data, *failed])]
    in_doubt = [doubtful.get(key) for key in data if key[2] == batch]
    legend(fig, {a: looks[a].line() for a in shown} | explained(in_doubt))
    drawing = render(fig, slug, title)
    return Chart(
        slug, title, drawing, _context_table(name, data, batch, contexts, failed, group, suites, doubtful)
    )


def against_position(slug: str, title: str, steps: pd.DataFrame, group: Group) -> Chart:
    """Time of each decode step; `steps` has architecture, position, value."""
    medians = steps.groupby(["position", "architecture"])["value"].median().unstack("architecture")
    entry = METRICS["decode_step_s"]
    return _positions(slug, title, medians, group, entry, "tokens before the step", "step")


def by_position(slug: str, title: str, nats: pd.DataFrame, group: Group, note: str) -> Chart:
    """Nats per token of each stretch of a text; `nats` has positions down and architectures across."""
    entry = Metric("nats/token", "low", "nats/token", format_bits)
    return _positions(slug, title, nats, group, entry, "tokens before, in the text", "stretch", note)


def _positions(
    slug: str,
    title: str,
    frame: pd.DataFrame,
    group: Group,
    entry: Metric,
    axis: str,
    what: str,
    note: str = "",
) -> Chart:
    """A line per architecture over positions (the frame's index); times on a logarithmic axis."""
    looks = styles(group.drawn)
    present = [a for a in group.architectures if a in frame]
    fig, panel = figure(5.0, 3.9)
    panel.title, panel.x.name, panel.x.format = title, axis, "{:,.0f}".format
    if entry.unit == "s":
        log_axis(panel.y, entry)
    else:
        panel.y.name = entry.label
    for number, architecture in enumerate(present):
        series = frame[architecture].dropna()
        stride = max(1, len(series) // 6)
        panel.plot(series.index, series, looks[architecture].line(1.1, 5), (number * stride // 8, stride))
    legend(fig, {a: looks[a].line() for a in present})
    drawing = render(fig, slug, title)
    stride = -(-len(frame) // MOST_STEPS_LISTED)
    rows = [
        [f"{position:,.0f}", *(entry.format(row[a]) for a in present)]
        for position, row in frame.iloc[::stride].iterrows()
    ]
    notes = [f"Every {stride}th {what} is listed."] * (stride > 1) + [note] * bool(note)
    return Chart(slug, title, drawing, table_of(["tokens before", *present], rows), note=" ".join(notes))


def against_bytes(slug: str, title: str, name: str, points: pd.DataFrame, group: Group) -> Chart:
    """Quality over live cache bytes, of points with architecture, bytes, value, low, high, idle, doubt."""
    entry, looks = METRICS[name], styles(group.drawn)
    fig, panel = figure(5.0, 3.9)
    panel.title, panel.x.name = title, "live cache per request"
    log_axis(panel.x, METRICS["cache_bytes_live"])
    score_axis(panel.y, entry)
    for point in points.itertuples():
        look = looks[point.architecture]
        if pd.notna(point.low):
            panel.whiskers([point.bytes], [(point.low, point.high)], Pen(look.color, 1.2), 0)
        panel.plot([point.bytes], [point.value], look.points(8))
        ringed(panel, point.bytes, point.value, look.points(8), point.doubt)
    remark = hand_set(group, points["architecture"])
    pens = {a: looks[a].points() for a in points["architecture"]}
    legend(fig, pens | explained(points["doubt"]), remark)
    drawing = render(fig, slug, title)
    columns = ["architecture", "live cache", entry.label]
    rows = [
        [
            p.architecture,
            METRICS["cache_bytes_live"].format(p.bytes),
            Entry(signed(entry.format(p.value), p.doubt), "not exercised" * p.idle),
        ]
        for p in points.itertuples()
    ]
    if points["low"].notna().any():
        columns.append("95 % interval")
        rows = [[*row, _interval(p, entry)] for row, p in zip(rows, points.itertuples(), strict=True)]
    table = table_of(columns, rows)
    table.notes.extend(notes_of(points["doubt"]))
    return Chart(slug, title, drawing, table)


def _interval(point: object, entry: Metric) -> str:
    return f"{entry.format(point.low)} to {entry.format(point.high)}" if pd.notna(point.low) else NOTHING


def _whiskers(panel: Panel, points: list[tuple[float, Spread]], style: Style) -> None:
    x = [context for context, _ in points]
    panel.whiskers(x, [(s.q1, s.q3) for _, s in points], Pen(style.color, 1.0), 2.5)
    panel.plot(x, [s.median for _, s in points], style.line())


def _crosses(panel: Panel, failed: dict[tuple[str, float], str], looks: dict[str, Style]) -> None:
    """A cross on the axis for each failed cell, side by side where several share a context."""
    at: dict[float, int] = {}
    for architecture, context in failed:
        shift = at[context] = at.get(context, -1) + 1
        pen = Pen(looks[architecture].color, marker="x", size=9, edge_width=2.4)
        panel.on_axis(context * 1.06**shift, pen)


def token_axis(axis: Axis, contexts: list[float], name: str = "context, tokens") -> None:
    """Logarithmic, with a tick at each of these numbers of tokens."""
    axis.log, axis.name, axis.ticks = 2, name, contexts
    axis.format = "{:,.0f}".format
    axis.degrees = 45 if len(contexts) > 6 else 0
    axis.set(min(contexts) / 1.25, max(contexts) * 1.25)


def log_axis(axis: Axis, entry: Metric) -> None:
    """Logarithmic, with ticks at round numbers of the unit that is printed."""
    axis.log = 2 if entry.unit == "bytes" else 10
    axis.format = Ticks(entry.format)


def score_axis(axis: Axis, entry: Metric) -> None:
    """Linear, a share from 0 to 1 wherever the scores lie."""
    if entry.unit == "share":
        axis.set(-0.04, 1.04)
    axis.format = Ticks(entry.format)


def _failed(group: Group, suites: set[str], measured: set) -> dict[tuple[str, float], str]:
    """(architecture, context) -> status of failed cells at contexts where no number exists."""
    done = {(a, c) for a, c, _ in measured}
    rows = group.failures[group.failures["suite"].isin(suites) & (group.failures["context"] > 0)]
    keys = zip(rows["architecture"], rows["context"], rows["status"], strict=True)
    return {(a, c): status for a, c, status in keys if (a, c) not in done}


def _context_table(
    name: str,
    data: Costs,
    batch: float,
    contexts: list[float],
    failed: dict,
    group: Group,
    suites: set[str],
    doubtful: dict[tuple[str, float, float], Doubt],
) -> Table:
    idle = not_exercised(group.ok[group.ok["suite"].isin(suites)])
    floors, entry = over_floor(group, name), METRICS[name]

    def field(architecture: str, context: float) -> Entry:
        if (architecture, context) in failed:
            return Entry(failed[architecture, context], failed=True)
        if (architecture, context, batch) not in data:
            return Entry(NOTHING)
        found = data[architecture, context, batch]
        notes = [f"{entry.format(found.q1)} to {entry.format(found.q3)}, n = {found.n}"] * (found.n > 1)
        notes += ["not exercised"] * ((architecture, context) in idle)
        notes += [floors[key] for key in [(architecture, context, batch)] if key in floors]
        doubt = doubtful.get((architecture, context, batch))
        return Entry(signed(entry.format(found.median), doubt), " · ".join(notes))

    rows = [[a, *(field(a, c) for c in contexts)] for a in group.architectures]
    rows = [row for row in rows if any(not isinstance(f, Entry) or f.text != NOTHING for f in row[1:])]
    table = table_of(["architecture", *(f"{c:,.0f} tokens" for c in contexts)], rows)
    table.notes.extend(notes_of(doubtful.get(key) for key in data if key[2] == batch))
    return table
