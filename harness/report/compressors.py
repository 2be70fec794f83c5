"""“What the compressors mix”: α and softmax entropy per layer, over the training of LoCoCo's compressors.

    a mixed slot   (1 - α) · one token, by score, as it is  +  α · learned mixture     (models/compressor.py)
    α              1/2 at first; the option alpha=bounded starts at 0.95 and keeps it between 0 and 1
    entropy        of the learned mixture, a softmax over the slots that are mixed, mean over mixed slots and
                   heads; its maximum is the logarithm of their number

Both are looked at for every log entry, on one sequence of the training mix, as if its cache were folded once
more (`alpha_n`, `entropy_n`, `entropy_share_n` of layer n). Curves without these columns are left out.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..metrics import NOTHING, format_bits, format_share, significant
from .axis import millions, percent
from .canvas import DASHES, Chart, Style, styles
from .figure import Entry as Named
from .figure import Figure
from .html import Entry, Table, table_of
from .palette import OTHERS
from .plot import Panel
from .render import render
from .section import Section

if TYPE_CHECKING:
    from .training import Curve

TITLE = "Training: what the compressors mix"
LEAD = (
    "A mixed slot is (1 − α) times one token, kept by its score, plus α times a learned mixture: at α = 0 "
    "nothing learned is used, at 1 nothing else, and above 1 or below 0 one of the two parts has negative "
    "weight. The mixture's entropy is a share of its maximum, the logarithm of how many slots are mixed: "
    "near 100 % all of them weigh alike, near 0 % one is picked. Both were seen on one sequence of the "
    "training mix."
)
TRAINED_ON = "What each was trained on."
BITS = (
    "Bits/byte is a running mean over all bytes of the training sequences that are no answers, predicted "
    "through the compressed cache. The first bytes of a sequence count, too, which were predicted before "
    "anything was mixed. It can be compared only between compressors trained on the same sequences, and is "
    "no held-out figure."
)
LAST = (
    "The last entry: α, and in small print the entropy of the learned mixture as a share of its maximum and "
    "in nats."
)
#: Longest table of a chart's numbers, characters of a title's line, layers in a row of the legend.
MOST_LISTED, LINE, COLUMNS = 40, 54, 4


def compressor_section(curves: list[Curve], prefix: str) -> list[Section]:
    """A chart of two panels per compressor, and tables; nothing where no curve tells of layers."""
    curves = [curve for curve in curves if layers(curve)]
    if not curves:
        return []
    found = Section(TITLE, LEAD)
    found.charts = [_chart(f"{prefix}-{number}", curve) for number, curve in enumerate(curves)]
    found.tables = [_trained(curves), _last(curves)]
    found.notes = [_seen(curve) for curve in curves]
    return [found]


def layers(curve: Curve) -> list[int]:
    """The layers of which α is known somewhere."""
    names = {key for point in curve.points for key in point}
    numbers = sorted(int(found[1]) for name in names if (found := re.fullmatch(r"alpha_(\d+)", name)))
    return [n for n in numbers if curve.series(f"alpha_{n}")]


def trained_on(card: dict[str, Any]) -> str:
    """Which sequences compressors saw, on which weights, as far as their card says; "" for other weights."""
    what, _, _ = str(card.get("notes") or "").partition(";")
    if not what.startswith("Compressors on "):
        return ""
    data = card.get("data") or {}
    shares = sorted((data.get("shares") or {}).items(), key=lambda named: -named[1])
    parts = [f"{format_share(share)} {name}" for name, share in shares if share]
    length = (card.get("recipe") or {}).get("sequence_tokens") or card.get("trained_length")
    length = length or max(data.get("lengths") or [0])
    sequences = f"sequences of up to {length:,} tokens" if length else ""
    return " · ".join(filter(None, [sequences, ", ".join(parts), what]))


def _chart(slug: str, curve: Curve) -> Chart:
    shown = layers(curve)
    looks = _looks(shown)
    names = {"alpha": "α, weight of the mixture", "entropy_share": "entropy, share of its maximum"}
    panels = []
    for metric, label in names.items():
        panel, low, high = Panel(), 0.0, 1.0
        for n, style in zip(shown, looks.values(), strict=True):
            points = curve.series(f"{metric}_{n}")
            tokens, values = [tokens for tokens, _ in points], [value for _, value in points]
            panel.plot(tokens, values, style.line(1.2), (0, max(1, len(points) // 5)))
            low, high = min([low, *values]), max([high, *values])
        panel.y.set(low - 0.04 * (high - low), high + 0.04 * (high - low))
        panel.y.name, panel.y.name_size = label, 9
        panel.x.set(0)
        panels.append(panel)
    panels[0].title, panels[0].title_size = in_lines(curve.name), 9.5
    panels[1].y.format = percent
    panels[1].x.name, panels[1].x.format = "tokens trained on", millions
    fig = Figure(5.0, 5.0 + 0.2 * (len(shown) // COLUMNS), panels, [1.0, 1.0])
    fig.entries, fig.columns = [Named(name, style.line()) for name, style in looks.items()], COLUMNS
    title = f"α and entropy by layer, {curve.name}"
    drawing = render(fig, slug, title)
    return Chart(slug, title, drawing, _numbers(curve, shown))


def _looks(shown: list[int]) -> dict[str, Style]:
    """Colours of no architecture that the page knows; beyond six layers the dashes tell."""
    found = styles([f"layer {n}" for n in shown])
    return {
        name: replace(style, size=4.5, dash=DASHES[place // len(OTHERS) % len(DASHES)])
        for place, (name, style) in enumerate(found.items())
    }


def in_lines(text: str) -> str:
    """A name in lines that a narrow figure holds, broken behind what joins its parts."""
    lines = [""]
    for part in re.findall(r"[^-,/]*[-,/]?", text):
        if lines[-1] and len(lines[-1]) + len(part) > LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _numbers(curve: Curve, shown: list[int]) -> Table:
    stride = max(1, -(-len(curve.points) // MOST_LISTED))
    columns = ["tokens", *(f"α\nlayer {n}" for n in shown), *(f"entropy\nlayer {n}" for n in shown)]
    rows = [
        [f"{point['tokens']:,}"]
        + [_alpha(point.get(f"alpha_{n}")) for n in shown]
        + [format_share(point.get(f"entropy_share_{n}")) for n in shown]
        for point in curve.points[::-1][::stride][::-1]  # from the end, so that the last is in
    ]
    return table_of(columns, rows)


def _trained(curves: list[Curve]) -> Table:
    rows = []
    for curve in curves:
        sequences, _, more = curve.trained_on.partition(" · ")
        tokens, bits = f"{curve.points[-1]['tokens']:,}", format_bits(curve.last("bits_per_byte"))
        rows.append([curve.name, Entry(sequences or NOTHING, more), tokens, bits])
    head = "bits/byte\ntraining text, through\nthe compressed cache"
    table = table_of(["weights", "trained on", "tokens", head], rows, TRAINED_ON)
    return replace(table, notes=[BITS])


def _last(curves: list[Curve]) -> Table:
    shown = sorted({n for curve in curves for n in layers(curve)})
    rows = []
    for curve in curves:
        row = [Entry(curve.name)]
        for n in shown:
            share, nats = curve.last(f"entropy_share_{n}"), curve.last(f"entropy_{n}")
            note = f"{format_share(share)} · {significant(nats, 2)} nats" if math.isfinite(share) else ""
            row.append(Entry(_alpha(curve.last(f"alpha_{n}")), note))
        rows.append(row)
    return table_of(["weights", *(f"layer {n}" for n in shown)], rows, LAST)


def _seen(curve: Curve) -> str:
    """What the last entry comes to, in a sentence."""
    shown = layers(curve)
    alphas = [curve.last(f"alpha_{n}") for n in shown]
    told = f"{curve.name}: α ends at {_range(alphas, _alpha)} over the layers"
    ends = [(curve.last(f"entropy_share_{n}"), curve.last(f"entropy_{n}")) for n in shown]
    ends = [(share, nats) for share, nats in ends if math.isfinite(share)]
    if not ends:
        return f"{told}; no entropy is known."
    shares = _range([share for share, _ in ends], format_share)
    slots = _range([math.exp(nats) for _, nats in ends], lambda value: significant(value, 2))
    return f"{told}, the entropy at {shares} of its maximum, as of an even mixture of {slots} slots."


def _range(values: list[float], text) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _alpha(value: float | None) -> str:
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")
