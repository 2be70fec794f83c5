"""The file: head, one part per run and axis, machine cards, failed cells, guide; figures beside it.

Nothing is loaded from anywhere: CSS and SVG stand in the page, the icon is a data URI so that no
browser asks for /favicon.ico. Two runs are two parts; they share the guide and nothing else, but where they
differ by the seed of their weights: the spread over seeds stands before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ..metrics import NOTHING, format_bytes, format_number
from ..store import write_atomic
from .all_numbers import failures_table
from .canvas import Chart
from .groups import AXIS_NAMES, Group, groups
from .guide import DEFINITIONS, LIMITS, QUESTION
from .html import details, escaped, paragraph, table_html, table_of
from .language import is_pg19
from .load import Run, load_run
from .palette import RAMP
from .section import Section
from .sections import sections
from .seeds import seed_section
from .style import css
from .timeline import timelines
from .training import folder_curves, run_curves, training_section

#: A piece of the page that is made when its figures are wanted.
Part = Callable[[], str]

ICON = (
    "data:image/svg+xml,%3Csvg viewBox='0 0 16 16' xmlns='http%3A//www.w3.org/2000/svg'%3E"
    "%3Cpath d='M3 13V3h2v10zM7 13V6h2v7zM11 13V9h2v4z' fill='%230a4f86'/%3E%3C/svg%3E"
)


def write(paths: list[Path], out: Path) -> Path:
    """Read the runs, draw them, write `out/index.html` and `out/figures/*.png`; returns the page."""
    runs = [load_run(path) for path in paths]
    _make_room(out)
    parts: list[Part] = [partial(_section_html, section, "") for section in seed_section(runs)]
    charts: list[Chart] = []
    for number, run in enumerate(runs):
        prefix = f"run{number + 1}-" if len(runs) > 1 else ""
        told, drawn = _run_part(run, prefix, titled=len(runs) > 1)
        parts += told
        charts += drawn
    body = "\n".join(part() for part in parts)
    files = {f"{chart.slug}.png": chart.png for chart in charts}
    _save(out, _document(runs, body), files)
    return out / "index.html"


def _make_room(out: Path) -> None:
    """A folder that cannot be written is refused before all the drawing; what a killed one left goes."""
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for part in out.glob("**/.partial-*"):
        part.unlink(missing_ok=True)


def _save(out: Path, page: str, figures: dict[str, bytes]) -> None:
    for name, content in figures.items():
        write_atomic(out / "figures" / name, content)
    write_atomic(out / "index.html", page.encode("utf-8"))


def slug_of(axis: str, number: int) -> str:
    """Part of file names and of ids: an axis that is known by name, whatever a row says by number."""
    return axis if axis in AXIS_NAMES else f"axis{number}"


def _run_part(run: Run, prefix: str, titled: bool) -> tuple[list[Part], list[Chart]]:
    """Its HTML, in parts that wait for their figures, and these."""
    html: list[Part] = []
    charts: list[Chart] = []
    if titled:
        html.append(lambda: f"<h2>Run {escaped(run.name)}</h2>{_facts(run)}")
    found = groups(run)
    for number, group in enumerate(found):
        suffix = f" ({AXIS_NAMES.get(group.axis, group.axis)})" if len(found) > 1 else ""
        for section in sections(group, f"{prefix}{slug_of(group.axis, number)}-"):
            html.append(partial(_section_html, section, suffix))
            charts += section.all_charts
    for section in training_section(run_curves(run), f"{prefix}training"):
        html.append(partial(_section_html, section, ""))
        charts += section.all_charts
    lines = timelines(f"{prefix}memory", run)
    lead = "One chart per suite." if lines else "No telemetry was recorded in this run."
    html.append(partial(_section_html, Section("Memory over time", lead, charts=lines), ""))
    html.append(lambda: _machine(run) + _failed(found) + _protocols(run))
    return html, charts + lines


def write_curves(folders: list[Path], out: Path) -> Path:
    """The same for folders of weights: how they were trained. Raises StoreError."""
    curves = folder_curves(folders)
    _make_room(out)
    sections = training_section(curves, "training")
    body = "\n".join(_section_html(section, "") for section in sections)
    charts = [chart for section in sections for chart in section.all_charts]
    files = {f"{chart.slug}.png": chart.png for chart in charts}
    _save(out, _plain_document(", ".join(f.name for f in folders), body), files)
    return out / "index.html"


def _plain_document(names: str, body: str) -> str:
    title, mark = "How the weights were trained", f'<p class="mark">kvmark · {escaped(names)}</p>'
    header = f"<header>{mark}\n<h1>{title}</h1></header>"
    return f"{_head(f'{title}: {names}')}{header}\n<main>\n{body}\n</main>\n</body>\n</html>\n"


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n"
        f'<link rel="icon" href="{ICON}">\n<style>\n{css()}</style>\n</head>\n<body>\n'
    )


def _document(runs: list[Run], body: str) -> str:
    title = "KV caches compared"
    head = _head(f"{title}: {', '.join(run.name for run in runs)}")
    names = ", ".join(f"{run.name} · {str(run.manifest.get('created', ''))[:10]}" for run in runs)
    facts = _facts(runs[0]) if len(runs) == 1 else ""
    header = (
        f'<header><p class="mark">kvmark · {escaped(names)}</p>\n<h1>{escaped(title)}: what a cache costs, '
        f"and what it forgets</h1>\n{paragraph(QUESTION, 'lead')}\n{facts}</header>\n"
    )
    footer = (
        "<footer><p>Drawn from the runs' files alone; drawn again it is the same file. The figures lie "
        "beside this page as PNG in <code>figures/</code>.</p></footer>"
    )
    return f"{head}{header}<main>\n{body}\n{_guide()}\n</main>\n{footer}\n</body>\n</html>\n"


def _facts(run: Run) -> str:
    """Text, machine and progress in a few lines at the head."""
    text, machine = run.manifest.get("text") or {}, run.manifest.get("machine") or {}
    read = _text_line(text) if text else _labels_line(run)
    facts = [("text", read), ("machine", _machine_line(machine)), ("code", _code_line(machine))]
    total = len(run.cells)
    done = f"{run.num_done} of {total} done" + ("" if run.num_done == total else ": this run is not finished")
    failed = run.rows.loc[run.rows["status"] != "ok", "cell"].nunique()
    facts.append(("cells", done + (f", {failed} failed" if failed else "")))
    rows = "".join(f"<dt>{name}</dt><dd>{escaped(line)}</dd>" for name, line in facts)
    return f'<dl class="facts">{rows}</dl>'


def _text_line(text: dict[str, Any]) -> str:
    remark = "" if is_pg19(text.get("label") or text.get("source")) else ", not PG-19 as published"
    size = f", {format_bytes(text['bytes'])}" if text.get("bytes") else ""
    return f"{text.get('source', 'unknown')}{remark}{size}, sha256 {text.get('sha256', 'unknown')}"


def _labels_line(run: Run) -> str:
    """Where no text was named: data of suites that have their own."""
    labels = run.rows["text"].dropna().unique()
    return "; ".join(map(str, labels)) or "none was read"


def _machine_line(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} cores" if machine.get("cores") else None
    memory = format_bytes(machine["memory_bytes"]) if machine.get("memory_bytes") else None
    gpu = machine.get("gpu") or "no GPU"
    parts = [machine.get("cpu_model"), cores, memory, gpu.get("name") if isinstance(gpu, dict) else gpu]
    return ", ".join(str(part) for part in parts if part)


def _code_line(machine: dict[str, Any]) -> str:
    commit = str(machine.get("commit") or "unknown")[:12]
    torch = (machine.get("packages") or {}).get("torch")
    dirty = " with uncommitted changes" if machine.get("dirty") else ""
    return f"commit {commit}{dirty}" + (f", torch {torch}" if torch else "")


def _section_html(section: Section, suffix: str) -> str:
    parts = [f"<section><h2>{escaped(section.title + suffix)}</h2>"]
    parts += [paragraph(section.lead)] if section.lead else []
    parts += [paragraph(alert, "alert") for alert in section.alerts]
    parts += [table_html(table) for table in section.tables]
    parts += [paragraph(note, "note") for note in section.notes]
    parts += [details(name, table_html(table)) for name, table in section.folded]
    if section.maps:
        parts.append(_scale())
    kind = "charts maps" if section.maps else "charts"
    if section.charts:
        parts.append(f'<div class="{kind}">{"".join(map(_figure, section.charts))}</div>')
    parts += [
        details(name, f'<div class="{kind}">{"".join(map(_figure, charts))}</div>')
        for name, charts in section.folded_charts
    ]
    return "\n".join([*parts, "</section>"])


def _figure(chart: Chart) -> str:
    svg = f'<div class="scroll" tabindex="0">{chart.svg}</div>' if chart.wide else chart.svg
    note = paragraph(chart.note, "note") if chart.note else ""
    kind = ' class="wide"' if chart.wide else ""
    return f"<figure{kind}>{svg}{note}{details('Table', table_html(chart.table))}</figure>\n"


def _scale() -> str:
    boxes = "".join(f'<i style="background:var(--ramp-{step})"></i>' for step in range(len(RAMP)))
    return f'<p class="scale">0 %<span>{boxes}</span>100 %</p>'


def _machine(run: Run) -> str:
    home = run.manifest.get("machine") or {}
    nodes = {key: card for key, card in (run.manifest.get("machines") or {}).items() if key != home.get("id")}
    cards = {"Machine card": home} | {f"Machine card of node {key}": card for key, card in nodes.items()}
    parts = []
    for title, card in cards.items():
        rows = [[name, _value(name, value)] for name, value in card.items()]
        table = table_html(table_of(["fact", "value"], rows))
        parts.append(f"<section><h2>{escaped(title)}</h2>{table}</section>")
    return "".join(parts)


def _protocols(run: Run) -> str:
    """How each suite says that it asks and scores, folded; nothing for a run that does not say."""
    suites = run.manifest.get("suites") or {}
    rows = [[spec, name, str(text)] for spec, notes in suites.items() for name, text in (notes or {}).items()]
    if not rows:
        return ""
    table = table_html(table_of(["suite", "note", "text"], rows))
    return f"<section><h2>Protocols</h2>{details('How each suite asks and scores', table)}</section>"


def _value(name: str, value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(key, value[key])}" for key in sorted(value))
    if isinstance(value, list):
        return ", ".join(_value(name, item) for item in value)
    if isinstance(value, (int, float)) and name.endswith("_bytes"):
        return format_bytes(value)
    return format_number(value) if isinstance(value, float) else str(value)


def _failed(found: Iterable[Group]) -> str:
    tables = [
        (f"<h3>{escaped(AXIS_NAMES.get(group.axis, group.axis))}</h3>", table)
        for group in found
        if (table := failures_table(group))
    ]
    body = "".join(title + table_html(table) for title, table in tables)
    return f"<section><h2>Failed cells</h2>{body or paragraph('None.')}</section>"


def _guide() -> str:
    terms = "".join(f"<dt>{escaped(term)}</dt><dd>{escaped(text)}</dd>" for term, text in DEFINITIONS)
    limits = "".join(f"<li>{escaped(text)}</li>" for text in LIMITS)
    return (
        f'<section><h2>Reading guide</h2><dl class="guide">{terms}</dl>'
        f"<h3>What these numbers do not mean</h3><ul>{limits}</ul></section>"
    )
