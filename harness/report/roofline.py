"""“Against what the machine can do”: each time beside the floor that its work sets (harness.roofline).

The lines are measured times, the dotted ones below them the floors of the same architectures: the gap is
what a better implementation could still gain. MFU is of the prefill, MBU of a decode step, launch-bound the
share of a step in which the device waited for the host.
"""

from __future__ import annotations

from typing import Any

from ..metrics import METRICS, NOTHING, format_bytes, significant
from .canvas import Chart, figure, legend, styles
from .doubt import cost_doubts, notes_of, signed
from .groups import NO_CONTEXT, Group, context_name, costs
from .html import Entry, Table, table_of
from .lines import log_axis, token_axis
from .plot import Pen
from .render import render
from .rings import explained, ringed
from .section import Section

#: (achieved, floor, title of the chart)
PHASES = (
    ("prefill_s", "prefill_floor_s", "Prefill and its floor"),
    ("decode_step_s", "decode_floor_s", "Decode step and its floor"),
)
SHOWN = (
    *("prefill_mfu", "prefill_over_floor", "prefill_launch_share"),
    *("decode_mbu", "decode_over_floor", "decode_launch_share"),
)
LEAD = (
    "Lines are medians of measured times, dotted lines the floors: what the work of that architecture takes "
    "at the measured ceilings of this machine, the longer one of computing and reading. The gap is the "
    "distance to the floor."
)
NONE = "This machine's ceilings were not measured in this run, so no floor is known"


def roofline_section(group: Group, prefix: str) -> list[Section]:
    """Two charts and a table; a line where ceilings are unknown, nothing where the run is older than they."""
    machine = group.run.manifest.get("machine") or {}
    if "ceilings" not in machine:
        return []
    ceilings, title = machine["ceilings"], "Against what the machine can do"
    charts = [chart for one in PHASES if (chart := _chart(f"{prefix}-{one[1]}", *one, group))]
    tables = _shares(group)
    if not tables and not charts:
        why = machine.get("ceilings_note") or _first_message(group)
        return [Section(title, f"{NONE}{f': {why}' if why else '.'}")] if not ceilings else []
    return [Section(title, LEAD, tables=tables, folded=_ceilings(ceilings), charts=charts)]


def _first_message(group: Group) -> str:
    rows = group.rows[group.rows["metric"].isin([floor for _, floor, _ in PHASES])]
    told = rows["message"].dropna()
    return str(told.iloc[0]) if len(told) else ""


def _chart(slug: str, name: str, floor: str, title: str, group: Group) -> Chart | None:
    """Measured times and floors over the context, at the smallest batch."""
    floors = {key: s for key, s in costs(group, floor).items() if key[1] != NO_CONTEXT}
    if not floors:
        return None
    batch = min(n for _, _, n in floors)
    floors = {(a, c): s.median for (a, c, n), s in floors.items() if n == batch}
    times = {(a, c): s.median for (a, c, n), s in costs(group, name).items() if n == batch}
    doubtful = {(a, c): d for (a, c, n), d in cost_doubts(group, name).items() if n == batch}
    entry, looks, contexts = METRICS[name], styles(group.drawn), sorted({c for _, c in floors})
    fig, panel = figure(5.0, 3.9)
    panel.title = title
    log_axis(panel.y, entry)
    token_axis(panel.x, contexts)
    shown = [a for a in group.architectures if any(a == key[0] for key in floors)]
    for a in shown:
        own = [(c, times[a, c]) for c in contexts if (a, c) in times]
        low = [(c, floors[a, c]) for c in contexts if (a, c) in floors]
        panel.plot(*zip(*low, strict=True), Pen(looks[a].color, 1.2, (1, 1.5), "d", 5.0))
        if own:
            panel.plot(*zip(*own, strict=True), looks[a].line())
        for context, value in own:
            ringed(panel, context, value, looks[a].points(), doubtful.get((a, context)))
    dotted = {"floor": Pen(width=1.2, dash=(1, 1.5), marker="d", size=5.0)}
    legend(fig, {a: looks[a].line() for a in shown} | dotted | explained(doubtful.values()))
    drawing = render(fig, slug, title)
    rows = [
        [
            a,
            context_name(c),
            _time(entry, times.get((a, c)), doubtful.get((a, c))),
            entry.format(floors[a, c]),
        ]
        for a in shown
        for c in contexts
        if (a, c) in floors
    ]
    table = table_of(["architecture", "context", entry.label, "floor"], rows)
    table.notes.extend(notes_of(doubtful.values()))
    return Chart(slug, title, drawing, table)


def _time(entry: Any, value: float | None, doubt: Any) -> str:
    return NOTHING if value is None else signed(entry.format(value), doubt)


def _shares(group: Group) -> list[Table]:
    """MFU, MBU, launch-bound share and distance to the floor, per architecture and context."""
    known = {name: costs(group, name) for name in SHOWN}
    names = [name for name in SHOWN if known[name]]
    if not set(names) - {"prefill_launch_share", "decode_launch_share"}:
        return []
    doubtful = {name: cost_doubts(group, name) for name in names}
    places = {place for name in names for place in known[name]}
    order = {a: number for number, a in enumerate(group.architectures)}
    several, rows = len({n for _, _, n in places}) > 1, []
    for a, context, batch in sorted(places, key=lambda place: (place[1], place[2], order[place[0]])):
        where = context_name(context) + (f", batch {batch:,.0f}" if several else "")
        numbers = [_number(name, known, doubtful, (a, context, batch)) for name in names]
        rows.append([Entry(a), Entry(where), *numbers])
    table = table_of(["architecture", "context", *(METRICS[name].label for name in names)], rows)
    table.notes.extend(notes_of(d for name in names for d in doubtful[name].values()))
    return [table]


def _number(name: str, known: dict, doubtful: dict, place: tuple[str, float, float]) -> Entry:
    spread = known[name].get(place)
    if spread is None:
        return Entry(NOTHING)
    return Entry(signed(METRICS[name].format(spread.median), doubtful[name].get(place)))


def _ceilings(ceilings: dict[str, Any] | None) -> list[tuple[str, Table]]:
    """What this machine reached, and how that was measured."""
    if not ceilings:
        return []
    rows = [
        ["matrix product", f"{significant(float(ceilings['flops_per_s']) / 1e9)} GFLOP/s", _how(ceilings)]
    ]
    for size, speed in sorted(
        (ceilings.get("read_bytes_per_s") or {}).items(), key=lambda pair: float(pair[0])
    ):
        rows.append(
            [f"read, working set of {format_bytes(float(size))}", f"{format_bytes(float(speed))}/s", ""]
        )
    table = table_of(["ceiling", "measured", "how"], rows)
    table.notes.extend(str(ceilings[name]) for name in ("measured", "note") if ceilings.get(name))
    return [("Ceilings of this machine", table)]


def _how(ceilings: dict[str, Any]) -> str:
    threads = f", {ceilings['threads']} threads" if ceilings.get("threads") else ""
    return f"{ceilings.get('dtype', 'unknown dtype')} on {ceilings.get('device', 'unknown')}{threads}"
