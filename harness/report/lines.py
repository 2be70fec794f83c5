"""Charts with axes: a cost against the context, a step against its position, quality against bytes.

    against_context   median with whiskers from the first to the third quartile; a cell that failed is a
                      cross on the axis, at the context where its line ends
    against_position  median over the repeats of each decode step: bursts of work show here
    by_position       nats per token over the position in a text: what a long stream does to a cache
    against_bytes     one point per architecture: how much it holds, how well it answers

Both axes are logarithmic where they hold bytes, seconds or tokens.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ..metrics import METRICS, NOTHING, Metric, format_bits
from .canvas import MUTED, Chart, Style, drawing, figure, legend, render, styles, tick
from .groups import Group, not_exercised
from .html import Entry, Table, table_of
from .remarks import hand_set
from .statistics import Spread

Costs = dict[tuple[str, float, float], Spread]
#: Longest table of a position chart; beyond it every k-th step is listed.
MOST_STEPS_LISTED = 96


def against_context(
    slug: str, title: str, name: str, data: Costs, batch: float, group: Group, suites: set[str]
) -> Chart:
    """A cost metric over the context, one line per architecture."""
    entry = METRICS[name]
    looks = styles(group.drawn)
    failed = _failed(group, suites, {key for key in data if key[2] == batch})
    contexts = sorted({c for _, c, n in data if n == batch} | {c for _, c in failed})
    with drawing(slug):
        fig = figure(5.0, 3.9)
        axes = fig.subplots()
        for architecture in group.architectures:
            points = [(c, data[architecture, c, batch]) for c in contexts if (architecture, c, batch) in data]
            if points:
                _whiskers(axes, points, looks[architecture])
        log_axis(axes, entry, "y")
        _crosses(axes, failed, looks)
        token_axis(axes, contexts)
        axes.set_title(title)
        legend(
            fig, {a: looks[a] for a in group.architectures if any(a == key[0] for key in [*data, *failed])}
        )
        svg, png = render(fig, slug, title)
    return Chart(slug, title, svg, png, _context_table(entry, data, batch, contexts, failed, group, suites))


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
    with drawing(slug):
        fig = figure(5.0, 3.9)
        axes = fig.subplots()
        for number, architecture in enumerate(present):
            series = frame[architecture].dropna()
            style = looks[architecture].line() | {"linewidth": 1.1, "markersize": 5}
            stride = max(1, len(series) // 6)
            axes.plot(series.index, series, markevery=(number * stride // 8, stride), **style)
        if entry.unit == "s":
            log_axis(axes, entry, "y")
        else:
            axes.set_ylabel(entry.label)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(axis)
        axes.set_title(title)
        legend(fig, {a: looks[a] for a in present})
        svg, png = render(fig, slug, title)
    stride = -(-len(frame) // MOST_STEPS_LISTED)
    rows = [
        [f"{position:,.0f}", *(entry.format(row[a]) for a in present)]
        for position, row in frame.iloc[::stride].iterrows()
    ]
    notes = [f"Every {stride}th {what} is listed."] * (stride > 1) + [note] * bool(note)
    return Chart(slug, title, svg, png, table_of(["tokens before", *present], rows), note=" ".join(notes))


def against_bytes(slug: str, title: str, name: str, points: pd.DataFrame, group: Group) -> Chart:
    """Quality over live cache bytes; `points` has architecture, bytes, value, low, high (maybe NaN), idle."""
    entry, looks = METRICS[name], styles(group.drawn)
    with drawing(slug):
        fig = figure(5.0, 3.9)
        axes = fig.subplots()
        for point in points.itertuples():
            if pd.notna(point.low):
                axes.plot(
                    [point.bytes] * 2, [point.low, point.high], color=looks[point.architecture].color, lw=1.2
                )
            axes.plot(point.bytes, point.value, **looks[point.architecture].points() | {"markersize": 8})
        axes.set_xscale("log", base=2)
        log_axis(axes, METRICS["cache_bytes_live"], "x")
        axes.set_xlabel("live cache per request")
        if entry.unit == "share":
            axes.set_ylim(-0.04, 1.04)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(entry.format(value))))
        axes.set_title(title)
        remark = hand_set(group, points["architecture"])
        legend(fig, {a: looks[a] for a in points["architecture"]}, lines=False, remark=remark)
        svg, png = render(fig, slug, title)
    columns = ["architecture", "live cache", entry.label]
    rows = [
        [
            p.architecture,
            METRICS["cache_bytes_live"].format(p.bytes),
            Entry(entry.format(p.value), "not exercised" * p.idle),
        ]
        for p in points.itertuples()
    ]
    if points["low"].notna().any():
        columns.append("95 % interval")
        rows = [[*row, _interval(p, entry)] for row, p in zip(rows, points.itertuples(), strict=True)]
    return Chart(slug, title, svg, png, table_of(columns, rows))


def _interval(point: object, entry: Metric) -> str:
    return f"{entry.format(point.low)} to {entry.format(point.high)}" if pd.notna(point.low) else NOTHING


def _whiskers(axes: Axes, points: list[tuple[float, Spread]], style: Style) -> None:
    x = [context for context, _ in points]
    y = [s.median for _, s in points]
    errors = [[s.median - s.q1 for _, s in points], [s.q3 - s.median for _, s in points]]
    axes.errorbar(x, y, yerr=errors, elinewidth=1.0, capsize=2.5, **style.line())


def _crosses(axes: Axes, failed: dict[tuple[str, float], str], looks: dict[str, Style]) -> None:
    """A cross on the axis for each failed cell, side by side where several share a context."""
    bottom, at = axes.get_ylim()[0], {}
    for architecture, context in failed:
        shift = at[context] = at.get(context, -1) + 1
        axes.plot(
            context * 1.06**shift,
            bottom,
            color=looks[architecture].color,
            marker="x",
            markersize=9,
            markeredgewidth=2.4,
            clip_on=False,
            zorder=5,
        )
    axes.set_ylim(bottom=bottom)


def token_axis(axes: Axes, contexts: list[float], name: str = "context, tokens") -> None:
    """Logarithmic, with a tick at each of these numbers of tokens."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if len(contexts) > 6:
        axes.tick_params("x", rotation=45)
    low, high = min(contexts), max(contexts)
    axes.set_xlim(low / 1.25, high * 1.25)
    axes.set_xlabel(name)


def log_axis(axes: Axes, entry: Metric, which: str) -> None:
    """Logarithmic, with ticks at round numbers of the unit that is printed."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = sorted(getattr(axes, f"get_{which}lim")())
    axis.set_major_locator(FixedLocator(_round_numbers(low, high, 2 if entry.unit == "bytes" else 10)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(entry.format(value))))
    axes.tick_params(which, color=MUTED)


def _round_numbers(low: float, high: float, base: int) -> list[float]:
    """Ticks inside [low, high]: powers where there are enough, else finer steps between them."""
    powers = [
        float(base) ** n for n in range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    ]
    steps = (
        [(1.0,), (1.0, 1.5)] if base == 2 else [(1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)]
    )
    for factors in steps:
        found = [power * factor for power in powers for factor in factors if low <= power * factor <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 7)]
    return [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]


def _failed(group: Group, suites: set[str], measured: set) -> dict[tuple[str, float], str]:
    """(architecture, context) -> status of failed cells at contexts where no number exists."""
    done = {(a, c) for a, c, _ in measured}
    rows = group.failures[group.failures["suite"].isin(suites) & (group.failures["context"] > 0)]
    keys = zip(rows["architecture"], rows["context"], rows["status"], strict=True)
    return {(a, c): status for a, c, status in keys if (a, c) not in done}


def _context_table(
    entry: Metric,
    data: Costs,
    batch: float,
    contexts: list[float],
    failed: dict,
    group: Group,
    suites: set[str],
) -> Table:
    idle = not_exercised(group.ok[group.ok["suite"].isin(suites)])

    def field(architecture: str, context: float) -> Entry:
        if (architecture, context) in failed:
            return Entry(failed[architecture, context], failed=True)
        if (architecture, context, batch) not in data:
            return Entry(NOTHING)
        found = data[architecture, context, batch]
        notes = [f"{entry.format(found.q1)} to {entry.format(found.q3)}, n = {found.n}"] * (found.n > 1)
        notes += ["not exercised"] * ((architecture, context) in idle)
        return Entry(entry.format(found.median), " · ".join(notes))

    rows = [[a, *(field(a, c) for c in contexts)] for a in group.architectures]
    rows = [row for row in rows if any(not isinstance(f, Entry) or f.text != NOTHING for f in row[1:])]
    return table_of(["architecture", *(f"{c:,.0f} tokens" for c in contexts)], rows)
