"""The page's part about what was still held: a table, the same in words, and maps of layers by depth."""

from __future__ import annotations

from collections import Counter

from ..metrics import NOTHING, format_share
from .canvas import Chart
from .forensics import SHARED, Finding, findings, state_order, watched_suites
from .groups import NEVER_EVICT, Group, context_name, family
from .heatmap import FEW_COLUMNS, depth_name, share_map
from .html import Entry, Table, table_of
from .remarks import weights_told
from .section import Section

#: More different counts than this are not listed layer by layer.
MOST_LISTED = 4
UNKNOWN = "not known: slots hold mixtures"

LEAD = (
    "What the cache held of the tokens of the value that was asked for (not of the words around it) when "
    "the answer had been produced, in every layer whose slots have positions. Lost means: some head of some "
    "layer had lost some of these tokens, evicted by the policy, or left behind by the model's own window "
    "while no other layer held them. A miss is either lost or kept but not used; a hit may come although it "
    "was lost, because other heads, layers or later tokens still knew. Beside that strict rule stands the "
    "mean share of these tokens that was held. Where several values were asked for, all of them have to "
    "be held, and found."
)
MAPS = (
    " The maps show the mean share of the asked values' tokens that a layer held, over its heads and the "
    "trials, at the largest length{}; “shared” is a cache that belongs to no layer."
)


def held_sections(group: Group, prefix: str, few: bool = False) -> list[Section]:
    """One part per suite that watched what it hid; nothing where there is none.

    Suites with several kinds of cells have a folded table at their largest length, and no maps. Where `few`
    are wanted, the first suite alone has maps, at its largest length.
    """
    suites, sections = watched_suites(group), []
    for number, suite in enumerate(suites):
        found = findings(group, suite)
        if not found:
            continue
        part = Section(_title(suite, suites))
        part.lead = "" if sections else LEAD
        longest, last = _last(found)
        if any(finding.kind for finding in found):
            part.folded = [(f"At {context_name(longest)}", held_table(last))]
        else:
            part.tables, part.notes = [held_table(last)], [in_words(finding) for finding in last]
            part.charts = [] if few and number else _maps(f"{prefix}-{number}", last)
            for context in sorted({finding.context for finding in found} - {longest}, reverse=True):
                shorter = [finding for finding in found if finding.context == context]
                part.folded.append((f"At {context_name(context)}", held_table(shorter)))
                if maps := [] if few else _maps(f"{prefix}-{number}-{context:.0f}", shorter):
                    part.folded_charts.append((f"Maps at {context_name(context)}", maps))
        if len({(finding.context, depth) for finding in found for depth in finding.depths}) > 1:
            part.folded.append(("Misses by length and depth", misses_table(found)))
        if part.all_charts:
            told = MAPS.format(" (shorter ones folded)" * bool(part.folded_charts))
            part.lead, part.maps = (part.lead + told).strip(), True
        part.notes += weights_told(group)
        sections.append(part)
    return sections


def held_folded(group: Group) -> dict[str, list[tuple[str, Table]]]:
    """The table of each part at its largest length alone, by the part's title."""
    suites, tables = watched_suites(group), {}
    for suite in suites:
        if found := findings(group, suite):
            longest, last = _last(found)
            name = f"at {context_name(longest)} (shorter ones: in the run's rows)"
            tables[_title(suite, suites)] = [(name, held_table(last))]
    return tables


def _last(found: list[Finding]) -> tuple[float, list[Finding]]:
    """The largest length, and what was found there."""
    longest = max(finding.context for finding in found)
    return longest, [finding for finding in found if finding.context == longest]


def _title(suite: str, suites: list[str]) -> str:
    return "Evicted, or kept but not used?" + (f" {suite}" if len(suites) > 1 else "")


def held_table(found: list[Finding]) -> Table:
    """Hits and misses by what was still there, and where it was lost."""
    kinds, rows = any(finding.kind for finding in found), []
    for finding in found:
        row = [finding.architecture, *[finding.kind] * kinds, context_name(finding.context)]
        row.append(f"{len(finding.trials)}")
        row.append(f"{sum(trial.hit for trial in finding.trials)}")
        if finding.states:
            four = ((False, False), (False, True), (True, True), (True, False))
            row += [f"{finding.count(hit=hit, kept=kept)}" for hit, kept in four]
        else:
            row += [NOTHING] * 4
        row.append(format_share(finding.held()))
        rows.append([*map(Entry, row), Entry(where(finding))])
    columns = ["missed\nlost", "missed\nkept but not used", "found\nkept", "found\nalthough lost"]
    columns.append("held\nmean share")
    return table_of(
        ["architecture", *["cells"] * kinds, "length", "trials", "found", *columns, "where it was lost"], rows
    )


def misses_table(found: list[Finding]) -> Table:
    """Why the misses of each length and depth were misses."""
    kinds, rows = any(finding.kind for finding in found), []
    depths = sorted({depth for finding in found for depth in finding.depths})
    for finding in found:
        row = [finding.architecture, *[finding.kind] * kinds, context_name(finding.context)]
        rows.append([*map(Entry, row), *(_misses(finding, depth) for depth in depths)])
    columns = ["architecture", *["cells"] * kinds, "length", *(f"depth {depth_name(d)}" for d in depths)]
    return table_of(columns, rows)


def _misses(finding: Finding, depth: float) -> Entry:
    there = [trial for trial in finding.trials if trial.depth == depth]
    missed = [trial for trial in there if not trial.hit]
    if not there:
        return Entry(NOTHING)
    if not missed:
        return Entry("none missed", f"n = {len(there)}")
    kept = sum(trial.kept for trial in missed)
    told = f"{len(missed) - kept} lost, {kept} kept" if finding.states else f"{len(missed)} missed, not known"
    return Entry(told, f"n = {len(there)}")


def where(finding: Finding) -> str:
    """`layer 2 (3 of 3)`, and what is to be said where nothing was lost or nobody can know."""
    if not finding.states:
        return UNKNOWN
    parts = [_listed(finding.evicted, finding)] if finding.evicted else []
    if finding.windowed:
        parts.append(f"{_listed(finding.windowed, finding)}: beyond their own window, nothing was evicted")
    if parts:
        return "; ".join(parts)
    idle = family(finding.architecture) not in NEVER_EVICT and not any(t.acted for t in finding.trials)
    return f"nowhere; {names(finding.states)} held it" + "; not exercised" * idle


def in_words(finding: Finding) -> str:
    """The finding as sentences."""
    trials, told = finding.trials, []
    if not finding.states:
        told.append(f"whether the asked value was still held is {UNKNOWN}.")
    if finding.evicted:
        told.append(f"tokens of the asked value were evicted in {_listed(finding.evicted, finding)}.")
        late = sum(trial.acted and bool(trial.lost) and not trial.lost_before for trial in trials)
        told += [f"In {late} of these trials they went only while the answer was produced."] * bool(late)
    if finding.windowed:
        told.append(f"the asked value was beyond the own window of {_listed(finding.windowed, finding)}.")
    if kept := [s for s in finding.states if not finding.windowed[s] and not finding.evicted[s]]:
        told.append(f"Held in every trial: {names(kept)}.")
    if finding.states:
        gone, unused = finding.count(hit=False, kept=False), finding.count(hit=False, kept=True)
        still, used = finding.count(hit=True, kept=False), finding.count(hit=True, kept=True)
        told.append(f"Missed: {gone} lost, {unused} kept but not used.")
        told.append(f"Found: {still} although lost, {used} kept.")
    told[0] = told[0][0].lower() + told[0][1:]
    return f"{finding.architecture}, {context_name(finding.context)}: {' '.join(told)}"


def names(states: list[str]) -> str:
    """`["0", "1", "2", "shared"]` -> `"layers 0–2 and the shared cache"`."""
    runs: list[list[int]] = []
    for layer in (int(state) for state in states if state != SHARED):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    spans = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    several = sum(map(len, runs)) > 1
    parts = [f"layer{'s' * several} {', '.join(spans)}"] if runs else []
    return " and ".join(parts + ["the shared cache"] * (SHARED in states))


def _listed(lost: Counter[str], finding: Finding) -> str:
    """States by the number of trials in which they had lost it, or the worst of too many."""
    total, states = len(finding.trials), sorted(lost, key=state_order)
    counts = list(dict.fromkeys(lost[state] for state in states))
    if len(counts) > MOST_LISTED:
        worst = max(states, key=lambda state: lost[state])
        most = f"most often {names([worst])} ({lost[worst]} of {total})"
        return f"{len(states)} of {len(finding.states)} layers, {most}"
    alike = [(count, [state for state in states if lost[state] == count]) for count in counts]
    return ", ".join(f"{names(part)} ({count} of {total})" for count, part in alike)


def _maps(slug: str, found: list[Finding]) -> list[Chart]:
    """One per architecture that lost anything."""
    lossy = [finding for finding in found if finding.evicted or finding.windowed]
    return [_map(f"{slug}-{place}", one) for place, one in enumerate(lossy)]


def _map(slug: str, finding: Finding) -> Chart:
    """Layers across, depth down, and below it all depths together."""
    states, depths = finding.states, finding.depths
    lines = [*depths, None] if len(depths) > 1 else [None]
    labels = ["all" if depth is None else depth_name(depth) for depth in lines]
    shares = {
        (column, row): finding.held(state, depth)
        for column, state in enumerate(states)
        for row, depth in enumerate(lines)
    }
    told = {place: NOTHING if share is None else share for place, share in shares.items()}
    what = f"mean share of the asked values' tokens that {finding.architecture} still held"
    drawing = share_map(slug, finding.architecture, what, states, labels, told, ("layer", "depth"))
    rows = [
        [label, *(format_share(shares[column, row]) for column in range(len(states)))]
        for row, label in enumerate(labels)
    ]
    table = table_of(["depth", *(names([state]) for state in states)], rows)
    note, wide = f"{context_name(finding.context)}.", len(states) > FEW_COLUMNS
    return Chart(slug, finding.architecture, drawing, table, wide=wide, note=note)
