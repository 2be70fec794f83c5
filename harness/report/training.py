"""“Training”: how the weights of a run, or of folders of weights, were learned.

    a run      the short curve of each card, which `run.json` carries, so that any machine can draw it
    a folder   `NAME.curve.parquet`, every log entry, beside `NAME.json`; a training that is not finished
               has no card yet and is drawn all the same

Solid lines began with hand-set induction heads, dashed ones without; of dotted ones nobody says. What is
drawn are running means over training sequences: no figure of text that was held out. Compressors, which read
sequences of their own through a compressed cache, have charts of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..metrics import NOTHING, format_bits, format_rate, format_share
from ..store import StoreError, first_line
from .axis import millions
from .canvas import DASHES, Chart, Style, figure, legend, styles
from .compressors import compressor_section, layers, trained_on
from .html import Table, table_of
from .load import Run
from .remarks import HAND_SET
from .render import render
from .section import Section
from .seeded import but_seed
from .seeds import FEW_SEEDS

DRAWN = (
    ("bits_per_byte", "Bits/byte of the training text, running mean", format_bits),
    ("digit_accuracy", "Answers of hidden sentences, share of characters", format_share),
    ("dense_accuracy", "Dense recall, share of answers", format_share),
)
LEAD = (
    "Running means over the sequences that were trained on, against the tokens read so far: no figures of "
    "text that was held out. Solid lines began with hand-set induction heads, dashed ones with none; of "
    "dotted ones the start is not known (a training that is not finished does not tell it)."
)
COMPRESSORS = (
    " LoCoCo's compressors were trained on sequences of their own, which they read through the compressed "
    "cache: none of their numbers compares with a network's."
)
SPEED = (
    "Speed / matrix product: floating-point operations of the training in a second, as a share of what one "
    "square matrix product reached on the same machine, with the same threads and number type; between the "
    "last two entries of the log alone."
)
SPREAD = "Spread over seeds: mean (lowest to highest)."
INSIDE = " A difference of two layouts inside it is no finding."
#: The column of `mfu` (models/training_speed.py).
FAST = "speed /\nmatrix product"
#: Longest table of a chart's numbers, by lines; characters of a title's line.
MOST_LISTED, TITLE_PT = 40, 9.5


@dataclass(frozen=True)
class Curve:
    """One training: log entries (`tokens` and metrics) in order; `heads` None where nobody says."""

    name: str
    architecture: str
    heads: int | None
    seed: int | None
    points: list[dict[str, Any]]
    hardware: str = ""
    trained_on: str = ""  # of compressors
    recipe: str = ""  # whatever decided the weights, all but the seed; "" where nobody says

    @property
    def kind(self) -> str:
        """What a line of a chart stands for."""
        start = "start not known" if self.heads is None else "no hand-set start" if not self.heads else ""
        return ", ".join(filter(None, [self.architecture, start]))

    @property
    def dash(self) -> Any:
        return DASHES[2 if self.heads is None else 0 if self.heads else 1]

    @property
    def of_compressors(self) -> bool:
        return bool(self.trained_on or layers(self))

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(tokens, value) wherever it is known."""
        return [(p["tokens"], p[metric]) for p in self.points if _known(p.get(metric))]

    def last(self, metric: str) -> float:
        return (self.series(metric) or [(0, math.nan)])[-1][1]


def run_curves(run: Run) -> list[Curve]:
    """What the cards of a run's weights tell; nothing for a run that does not carry them."""
    found = []
    for name, card in (run.manifest.get("weights") or {}).items():
        points = ((card or {}).get("losses") or {}).get("curve") or []
        if points:
            found.append(_curve(name, card, points))
    return found


def folder_curves(folders: Iterable[Path]) -> list[Curve]:
    """Every curve in these folders. Raises StoreError where there is none, or one cannot be read."""
    folders, found = list(folders), []
    for folder in folders:
        files = sorted(folder.glob("*.curve.parquet"))
        if not files:
            raise StoreError(f"{folder} holds no curve of a training (NAME.curve.parquet).")
        for file in files:
            name = file.name.removesuffix(".curve.parquet")
            points = _entries(file)
            shown = name if len(folders) == 1 else f"{folder.name}/{name}"
            card = file.with_name(f"{name}.json")
            found.append(_curve(shown, _card(card) if card.exists() else None, points, name))
    return found


def _entries(path: Path) -> list[dict[str, Any]]:
    """A curve is a log and no table of rows: it has no version of a schema, only these two columns surely."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} is not a readable curve ({first_line(error)}).") from None
    if not {"step", "tokens"} <= set(table.column_names):
        raise StoreError(f"{path} is not the curve of a training: it has no steps and tokens.")
    return table.to_pylist()


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable JSON ({first_line(error)}).") from None
    if not isinstance(card, dict):
        raise StoreError(f"{path} is not the card of weights.")
    return card


def _curve(shown: str, card: dict[str, Any] | None, points: list, name: str = "") -> Curve:
    if card is None:
        return Curve(f"{shown} (not finished)", name or shown, None, None, points)
    heads = (card.get("recipe") or {}).get("induction_heads")
    if HAND_SET.search(str(card.get("notes") or "")):  # compressors: of the network below them
        heads = heads or 1
    spec = str(card.get("architecture") or name or shown)
    hardware = str(card.get("hardware") or "")
    recipe = json.dumps(but_seed(card), sort_keys=True)
    return Curve(shown, spec, heads, card.get("seed"), points, hardware, trained_on(card), recipe)


def training_section(curves: list[Curve], prefix: str) -> list[Section]:
    """Charts, what each ended with, and the spread over seeds; then what compressors mix. Nothing without a
    curve."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return []
    compressors = [curve for curve in curves if curve.of_compressors]
    found = Section("Training", LEAD + COMPRESSORS * bool(compressors))
    colours = styles(list(dict.fromkeys(curve.architecture for curve in curves)))
    parts = {"": [curve for curve in curves if not curve.of_compressors], "Compressors: ": compressors}
    for place, (whose, own) in enumerate(parts.items()):
        for number, (metric, title, text) in enumerate(DRAWN, place * len(DRAWN)):
            drawn = [curve for curve in own if _known(curve.last(metric))]
            if drawn:
                found.charts.append(_chart(f"{prefix}-{number}", whose + title, metric, text, drawn, colours))
    found.tables = [_ends(curves)] + [table for table in [_seeds(curves)] if table]
    return [found, *compressor_section(curves, f"{prefix}-mixed")]


def _chart(slug: str, title: str, metric: str, text, curves: list[Curve], colours: dict[str, Style]) -> Chart:
    kinds = {curve.kind: curve for curve in curves}
    looks = {kind: replace(colours[one.architecture], dash=one.dash, size=4.5) for kind, one in kinds.items()}
    fig, panel = figure(5.0, 4.0)
    panel.title, panel.title_size = title, TITLE_PT
    panel.x.set(0)
    if text is format_share:
        panel.y.set(-0.04, 1.04)
    panel.x.name, panel.x.format, panel.y.format = "tokens trained on", millions, text
    for curve in curves:
        points = curve.series(metric)
        tokens, values = [tokens for tokens, _ in points], [value for _, value in points]
        panel.plot(tokens, values, looks[curve.kind].line(1.2), (0, max(1, len(points) // 5)))
    legend(fig, {kind: style.line() for kind, style in looks.items()})
    drawing = render(fig, slug, title)
    rows = []
    for curve in curves:
        stride = max(1, -(-len(curve.points) * len(curves) // MOST_LISTED))
        picked = curve.points[::-1][::stride][::-1]  # from the end, so that the last is in
        rows += [[curve.name, f"{p['tokens']:,}", text(p.get(metric))] for p in picked]
    return Chart(slug, title, drawing, table_of(["weights", "tokens", title], rows))


def _ends(curves: list[Curve]) -> Table:
    """What each training ended with; digits by length where they were told apart."""
    names = {key for curve in curves for key in curve.points[-1]}
    lengths = sorted(int(key[7:]) for key in names if key.startswith("digits_") and key[7:].isdigit())
    rows = []
    for curve in curves:
        heads = NOTHING if curve.heads is None else "yes" if curve.heads else "no"
        row = [curve.name, curve.architecture, heads, NOTHING if curve.seed is None else f"{curve.seed}"]
        row += [f"{curve.points[-1]['tokens']:,}", *(text(curve.last(metric)) for metric, _, text in DRAWN)]
        row += [format_share(curve.last(f"digits_{length}")) for length in lengths]
        row += [format_rate(curve.last("tokens_per_s")), format_share(curve.last("mfu")), curve.hardware]
        rows.append(row)
    columns = ["weights", "architecture", "hand-set start", "seed", "tokens", "bits/byte\ntraining text"]
    columns += ["answers", "dense recall", *(f"answers\n{length:,} tokens" for length in lengths)]
    columns += ["tokens/s\nat the end", FAST, "hardware"]
    kept = [n for n in range(len(columns)) if n < 5 or any(row[n] not in ("", NOTHING) for row in rows)]
    rows = [[row[n] for n in kept] for row in rows]
    columns = [columns[n] for n in kept]
    table = table_of(columns, rows, "The last entry of each training.")
    return replace(table, notes=[SPEED] * (FAST in columns))


def _seeds(curves: list[Curve]) -> Table | None:
    """Mean and range over the seeds of one kind, trained alike (`seeded.but_seed`) on as many tokens."""
    same: dict[tuple[str, int, str], dict[int, Curve]] = {}
    for curve in curves:
        if curve.seed is not None:
            alike = same.setdefault((curve.kind, curve.points[-1]["tokens"], curve.recipe), {})
            alike.setdefault(curve.seed, curve)  # the same seed again is no further sample
    several = {key: members for key, members in same.items() if len(members) > 1}
    rows = []
    for (kind, tokens, _), members in several.items():
        row = [kind, f"{tokens:,}", ", ".join(map(str, members))]
        for metric, _, text in DRAWN:
            values = [value for member in members.values() if _known(value := member.last(metric))]
            ends = [sum(values) / len(values), min(values), max(values)] if values else []
            row.append("{} ({} to {})".format(*map(text, ends)) if values else NOTHING)
        rows.append(row)
    if not rows:
        return None
    columns = ["architecture", "tokens", "seeds", "bits/byte\ntraining text", "answers", "dense recall"]
    enough = all(len(members) >= FEW_SEEDS for members in several.values())
    return table_of(columns, rows, SPREAD + INSIDE * enough)


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)
