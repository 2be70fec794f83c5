"""Memory over time, one chart per suite, with what was going on at the bottom of it.

The jobs of a suite stand end to end, each from its own zero: a resumed run spans days and reboots, and
monotonic clocks of two boots do not compare. Two strips below the curve show the architecture at work
and the phase it was in. Memory is the device's per-process reading where a GPU was sampled, else the
process' resident set; the source is named, and power is drawn beside it where it was read.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ..metrics import format_bytes, format_number, format_seconds
from .axis import Ticks
from .canvas import Chart, short, styles
from .figure import Entry, Figure
from .groups import as_objects, family
from .html import Table, table_of
from .load import Run
from .palette import OTHERS
from .plot import Panel, Pen
from .render import render

#: (column, what it is): the first with a reading is drawn.
SOURCES = (
    ("gpu_process_bytes", "GPU memory of the process (NVML)"),
    ("gpu_used_bytes", "GPU memory in use on the device (NVML)"),
    ("rss_bytes", "resident set of the process"),
)
PHASES = {
    "load": "#b7bec6",
    "prefill": "#56789a",
    "decode": "#9fc0dd",
    "generate": "#9fc0dd",
    "score": "#c9b458",
    "idle": "none",
}
#: Spans shorter than this part of the chart are thinner than a line and left out of the strips.
SHORTEST_SPAN = 1 / 1500
#: Gaps between jobs as parts of the work: each of them, and all together.
WIDEST_GAP, ALL_GAPS = 0.01, 0.1
#: More stretches than this cannot be told apart across a chart: of each the lowest and the highest sample are
#: drawn, where there are more samples than that.
MOST_STRETCHES = 600
#: So many phases and families have room in the legend.
MOST_NAMES = 18


def timelines(prefix: str, run: Run) -> list[Chart]:
    """One wide chart per suite that was sampled, in plan order."""
    telemetry = as_objects(run.telemetry)
    samples = telemetry[telemetry["kind"] == "sample"]
    source = next((pair for pair in SOURCES if samples[pair[0]].notna().any()), None)
    if source is None:
        return []
    suite_of = {cell["key"]: str(cell["suite"]) for cell in run.cells}
    place = {key: number for number, key in enumerate(suite_of)}
    jobs: dict[str, list[pd.DataFrame]] = {}
    for _, job in telemetry.groupby("job", sort=False):
        if not job[source[0]].notna().any():  # its sampler was killed: marks alone draw nothing
            continue
        job = job.sort_values("t_s", kind="stable")
        suite = next((suite_of[cell] for cell in job["cell"].dropna() if cell in suite_of), "other jobs")
        jobs.setdefault(suite, []).append(job)
    for members in jobs.values():
        members.sort(
            key=lambda job: min((place.get(cell, len(place)) for cell in job["cell"].dropna()), default=0)
        )
    order, architectures = list(dict.fromkeys([*suite_of.values(), "other jobs"])), run.architectures
    return [
        _chart(f"{prefix}-{number}", suite, jobs[suite], source, architectures)
        for number, suite in enumerate(suite for suite in order if suite in jobs)
    ]


def _chart(
    slug: str, suite: str, jobs: list[pd.DataFrame], source: tuple[str, str], architectures: list[str]
) -> Chart:
    frame = _end_to_end(jobs)
    column, what = source
    title = f"{suite}: {what}"
    samples = frame[(frame["kind"] == "sample") & frame[column].notna()]
    powered = samples["power_w"].notna().any()
    panels = [Panel(title=title), *([Panel()] if powered else []), Panel(framed=False)]
    fig = Figure(9.6, 4.6 if powered else 3.4, panels, [6, 2, 1.2] if powered else [6, 1.2])
    stretch = (samples["x"].max() - samples["x"].min()) / MOST_STRETCHES
    stretch *= len(samples) > 2 * MOST_STRETCHES
    for _, job in samples.groupby("number"):
        panels[0].plot(*_thinned(job, column, stretch), Pen(width=1.1))
        if powered:
            panels[1].plot(*_thinned(job, "power_w", stretch), Pen(width=1.0))
    # Steps of a power of two, because that is how bytes are printed.
    highest = max(float(samples[column].max()), 1.0)
    step = 2.0 ** math.ceil(math.log2(highest / 5))
    panels[0].y.ticks = [n * step for n in range(int(1.05 * highest / step) + 1)]
    panels[0].y.format = Ticks(format_bytes)
    for panel in panels[:-1]:
        panel.y.set(0)
    if powered:
        panels[1].y.name = "W"
    _strips(fig, panels[-1], _spans(frame), architectures)
    drawing = render(fig, slug, title)
    return Chart(slug, title, drawing, _table(frame, column, powered), wide=True)


def _end_to_end(jobs: list[pd.DataFrame]) -> pd.DataFrame:
    """All jobs in one frame with `number` and `x`: seconds from the first job's start, gaps removed.

    What stands between two jobs instead is narrow, so that the axis still tells seconds of work.
    """
    parts, start = [], 0.0
    work_s = sum(job["t_s"].max() - job["t_s"].min() for job in jobs)
    gap = work_s * min(WIDEST_GAP, ALL_GAPS / len(jobs))
    for number, job in enumerate(jobs):
        parts.append(job.assign(number=number, x=job["t_s"] - job["t_s"].min() + start))
        start = parts[-1]["x"].max() + gap
    return pd.concat(parts, ignore_index=True)


def _thinned(job: pd.DataFrame, column: str, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """x and values of a job; of more than two in a stretch the lowest and the highest stand for all."""
    x, values = job["x"].to_numpy(), job[column].astype(float).to_numpy()
    x, values = x[~np.isnan(values)], values[~np.isnan(values)]
    if stretch > 0 and len(x):
        part = (x // stretch).astype(int)
        order, edges = np.lexsort((values, part)), np.flatnonzero(np.diff(part)) + 1
        begins, ends = np.append(0, edges), np.append(edges, len(x)) - 1
        kept = np.unique([0, len(x) - 1, *order[begins], *order[ends]])
        x, values = x[kept], values[kept]
    return x, values


def _spans(frame: pd.DataFrame) -> pd.DataFrame:
    """(number, architecture, phase, x, until): what each mark began, until the next mark of its job."""
    ends = frame.groupby("number")["x"].max()
    marks = frame[frame["kind"] == "mark"]
    until = marks.groupby("number")["x"].shift(-1)
    return marks.assign(until=until.fillna(marks["number"].map(ends)))[
        ["number", "architecture", "phase", "x", "until"]
    ]


def _strips(fig: Figure, panel: Panel, spans: pd.DataFrame, architectures: list[str]) -> None:
    looks = styles(architectures)
    extra = [name for name in spans["phase"].dropna().unique() if name not in PHASES]
    colours = PHASES | {name: OTHERS[n % len(OTHERS)][0] for n, name in enumerate(extra)}
    shortest = SHORTEST_SPAN * (spans["until"].max() - spans["x"].min()) if len(spans) else 0.0
    for y, column, colour_of in (
        (1, "architecture", {a: s.color for a, s in looks.items()}),
        (0, "phase", colours),
    ):
        for value, colour in colour_of.items():
            own = _merged(spans[spans[column] == value], shortest)
            if own and colour != "none":
                panel.boxes([(x, y + 0.08, width, 0.84) for x, width in own], colour)
    panel.y.set(0, 2)
    panel.y.ticks, panel.y.labels = [0.5, 1.5], ["phase", "architecture"]
    panel.x.name = "seconds of work, jobs end to end"
    seen = set(spans["phase"].dropna())
    shown = {name: c for name, c in colours.items() if name in seen and c != "none"}
    there = set(spans["architecture"].dropna())
    families = dict.fromkeys(family(a) for a in architectures if a in there)
    shown |= {name: next(looks[a].color for a in architectures if family(a) == name) for name in families}
    fig.entries = [Entry(short(name), color=colour) for name, colour in shown.items()][:MOST_NAMES]
    fig.columns, fig.handle = 9, 9.0


def _merged(spans: pd.DataFrame, shortest: float) -> list[tuple[float, float]]:
    """(start, width) of spans, those that touch joined, those too short to be seen dropped."""
    joined: list[list[float]] = []
    for start, until in zip(spans["x"], spans["until"], strict=True):
        if joined and start - joined[-1][1] <= shortest / 4:
            joined[-1][1] = max(until, joined[-1][1])
        else:
            joined.append([start, until])
    return [(start, until - start) for start, until in joined if until - start >= shortest]


def _table(frame: pd.DataFrame, column: str, powered: bool) -> Table:
    """Peak and duration per architecture and phase."""
    spans = _spans(frame).dropna(subset=["phase"])
    samples = frame[(frame["kind"] == "sample") & frame[column].notna()]
    x, numbers = samples["x"].to_numpy(), samples["number"].to_numpy()
    values, watts = (samples[name].astype(float).to_numpy() for name in (column, "power_w"))
    rows = []
    for (architecture, phase), part in spans.fillna({"architecture": "–"}).groupby(
        ["architecture", "phase"], sort=False
    ):
        inside = np.concatenate([_inside(x, numbers, span) for span in part.itertuples()])
        row = [architecture, phase, format_seconds(float((part["until"] - part["x"]).sum()))]
        row += [format_bytes(pd.Series(values[inside]).max()), f"{len(inside):,}"]
        rows.append([*row, format_number(pd.Series(watts[inside]).mean())] if powered else row)
    columns = ["architecture", "phase", "time", "highest sample", "samples"]
    return table_of([*columns, "mean power, W"] if powered else columns, rows)


def _inside(x: np.ndarray, numbers: np.ndarray, span: object) -> np.ndarray:
    """Places of the samples within a span, its ends among them; samples stand job by job, by time."""
    first, last = np.searchsorted(numbers, [span.number, span.number + 1])
    begin = np.searchsorted(x[first:last], span.x, "left")
    return first + np.arange(begin, np.searchsorted(x[first:last], span.until, "right"))
