"""What a cache costs: times, bytes, single decode steps, each over the context."""

from __future__ import annotations

from ..metrics import METRICS, NOTHING, format_share
from .canvas import Chart
from .doubt import cost_doubts, notes_of, signed
from .groups import (
    NO_CONTEXT,
    Group,
    context_name,
    cost_rows,
    costs,
    failure_suites,
    is_repeated,
    timing_suites,
)
from .html import Entry, Table, table_of
from .lines import against_context, against_position
from .remarks import timing_alerts, unshown_alerts, unshown_timings
from .section import Section
from .statistics import Spread
from .sweep import sweep_table

#: Joules per token, of the whole device.
ENERGY = ("prefill_j_per_token", "decode_j_per_token")
JOULES = "Energy of the whole device per token, from its counter."
#: Fewer steps than this are no curve.
LEAST_STEPS = 8
#: Above this share of foreign load the page says that its absolute times are loose.
BUSY_SHARE = 0.1


def cost_section(group: Group, prefix: str) -> Section:
    """The charts of the timing suite, or of whatever else counted bytes."""
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
            whole += "" if is_repeated(cost_rows(group, name)) else ", mean per request"
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
    found.tables, unknown = failed + sweep_table(group) + _energy(group), _no_energy(group)
    found.notes += unknown
    return found


def _energy(group: Group) -> list[Table]:
    """Joules per token where they are known, architectures and contexts down."""
    known = {name: costs(group, name) for name in ENERGY}
    names, places = [name for name in ENERGY if known[name]], {key for own in known.values() for key in own}
    order = {a: number for number, a in enumerate(group.architectures)}
    rows = [
        [a, context_name(c) + f", batch {n:,.0f}" * (n > 1)]
        + [_joules(group, name, known[name].get((a, c, n)), (a, c, n)) for name in names]
        for a, c, n in sorted(places, key=lambda place: (place[1], place[2], order[place[0]]))
    ]
    table = table_of(["architecture", "context", *(METRICS[n].label for n in names)], rows, JOULES)
    table.notes.extend(notes_of(d for name in names for d in cost_doubts(group, name).values()))
    return [table] if rows else []


def _joules(group: Group, name: str, spread: Spread | None, place: tuple[str, float, float]) -> str:
    text = NOTHING if spread is None else METRICS[name].format(spread.median)
    return signed(text, cost_doubts(group, name).get(place) if spread else None)


def _no_energy(group: Group) -> list[str]:
    """Why there are no joules per token, in a line; nothing where nobody asked for them."""
    asked = group.rows[group.rows["metric"].isin(ENERGY) & group.rows["value"].isna()]
    told = asked["message"].dropna().unique()
    if not len(told):
        return []
    more = f" (and {len(told) - 1} other reasons)" * (len(told) > 1)
    return [f"Energy per token is unknown in {asked['cell'].nunique()} cells: {told[0]}{more}"]


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
