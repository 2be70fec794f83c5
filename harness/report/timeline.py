"""Memory over time, one chart per suite, with what was going on at the bottom of it.

The jobs of a suite stand end to end, each from its own zero: a resumed run spans days and reboots, and
monotonic clocks of two boots do not compare. Two strips below the curve show the architecture at work
and the phase it was in. Memory is the device's per-process reading where a GPU was sampled, else the
process' resident set; the source is named, and power is drawn beside it where it was read.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MultipleLocator

from ..metrics import format_bytes, format_number, format_seconds
from .canvas import INK, OTHERS, Chart, drawing, figure, render, styles, tick
from .groups import family
from .html import Table, table_of
from .load import Run

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


def timelines(prefix: str, run: Run) -> list[Chart]:
    """One wide chart per suite that was sampled, in plan order."""
    samples = run.telemetry[run.telemetry["kind"] == "sample"]
    source = next((pair for pair in SOURCES if samples[pair[0]].notna().any()), None)
    if source is None:
        return []
    suite_of = {cell["key"]: str(cell["suite"]) for cell in run.cells}
    place = {key: number for number, key in enumerate(suite_of)}
    jobs: dict[str, list[pd.DataFrame]] = {}
    for _, job in run.telemetry.groupby("job", sort=False):
        job = job.sort_values("t_s", kind="stable")
        suite = next((suite_of[cell] for cell in job["cell"].dropna() if cell in suite_of), "other jobs")
        jobs.setdefault(suite, []).append(job)
    for members in jobs.values():
        members.sort(
            key=lambda job: min((place.get(cell, len(place)) for cell in job["cell"].dropna()), default=0)
        )
    order = list(dict.fromkeys([*suite_of.values(), "other jobs"]))
    return [
        _chart(f"{prefix}-{number}", suite, jobs[suite], source, run.architectures)
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
    with drawing(slug):
        fig = figure(9.6, 4.6 if powered else 3.4)
        ratios = [6, 2, 1.2] if powered else [6, 1.2]
        panels = fig.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
        for _, job in samples.groupby("number"):
            panels[0].plot(job["x"], job[column].astype(float), color=INK, linewidth=1.1)
            if powered:
                panels[1].plot(job["x"], job["power_w"].astype(float), color=INK, linewidth=1.0)
        panels[0].set_title(title)
        # Steps of a power of two, because that is how bytes are printed.
        highest = max(float(samples[column].max()), 1.0)
        panels[0].yaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2(highest / 5))))
        panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(format_bytes(value))))
        panels[0].set_ylim(bottom=0)
        if powered:
            panels[1].set_ylabel("W")
            panels[1].set_ylim(bottom=0)
        _strips(fig, panels[-1], _spans(frame), architectures)
        svg, png = render(fig, slug, title)
    return Chart(slug, title, svg, png, _table(frame, column, powered), wide=True)


def _end_to_end(jobs: list[pd.DataFrame]) -> pd.DataFrame:
    """All jobs in one frame with `number` and `x`: seconds from the first job's start, gaps removed."""
    parts, start = [], 0.0
    gap = 0.01 * sum(job["t_s"].max() - job["t_s"].min() for job in jobs)
    for number, job in enumerate(jobs):
        parts.append(job.assign(number=number, x=job["t_s"] - job["t_s"].min() + start))
        start = parts[-1]["x"].max() + gap
    return pd.concat(parts, ignore_index=True)


def _spans(frame: pd.DataFrame) -> pd.DataFrame:
    """(number, architecture, phase, x, until): what each mark began, until the next mark of its job."""
    ends = frame.groupby("number")["x"].max()
    marks = frame[frame["kind"] == "mark"]
    until = marks.groupby("number")["x"].shift(-1)
    return marks.assign(until=until.fillna(marks["number"].map(ends)))[
        ["number", "architecture", "phase", "x", "until"]
    ]


def _strips(fig: Figure, axes: Axes, spans: pd.DataFrame, architectures: list[str]) -> None:
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
                axes.broken_barh(own, (y + 0.08, 0.84), facecolor=colour, linewidth=0)
    axes.set_yticks([0.5, 1.5], ["phase", "architecture"])
    axes.set_ylim(0, 2)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("seconds of work, jobs end to end")
    seen = set(spans["phase"].dropna())
    handles = [Patch(color=c, label=name) for name, c in colours.items() if name in seen and c != "none"]
    families = dict.fromkeys(family(a) for a in architectures if a in set(spans["architecture"].dropna()))
    first = {name: next(looks[a].color for a in architectures if family(a) == name) for name in families}
    handles += [Patch(color=colour, label=name) for name, colour in first.items()]
    fig.legend(handles=handles, loc="outside lower left", ncols=9, columnspacing=1.1, handlelength=1.0)


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
    rows = []
    for (architecture, phase), part in spans.fillna({"architecture": "–"}).groupby(
        ["architecture", "phase"], sort=False
    ):
        inside = pd.concat(
            [
                samples[(samples["number"] == s.number) & samples["x"].between(s.x, s.until)]
                for s in part.itertuples()
            ]
        )
        row = [architecture, phase, format_seconds(float((part["until"] - part["x"]).sum()))]
        row += [format_bytes(inside[column].max()), f"{len(inside):,}"]
        rows.append([*row, format_number(inside["power_w"].mean())] if powered else row)
    columns = ["architecture", "phase", "time", "highest sample", "samples"]
    return table_of([*columns, "mean power, W"] if powered else columns, rows)
