"""The colours of figures, and the CSS variables of the page that they stand for."""

from __future__ import annotations

from .plot import GRID, INK, MUTED, PAPER

#: family -> (light colour, CSS variable, marker); Okabe and Ito's palette, darkened where white asks for it.
FAMILIES = {
    "transformer": ("#3d444d", "--transformer", "s"),
    "yoco": ("#00876a", "--yoco", "o"),
    "tova": ("#0072b2", "--tova", "^"),
    "lococo": ("#d55e00", "--lococo", "D"),
    "window": ("#a88a00", "--window", "v"),
    "random": ("#c06a9a", "--random", "X"),
}
#: Families that are not ours take these in the order of their appearance.
OTHERS = (
    ("#7a5195", "--other-1", "P"),
    ("#8c564b", "--other-2", "*"),
    ("#5f7f1f", "--other-3", "h"),
    ("#4f6f8f", "--other-4", "<"),
    ("#8f1d2c", "--other-5", ">"),
    ("#0f7b8a", "--other-6", "p"),
)
#: One hue for shares from 0 to 1, in steps of a tenth; dark mode runs the other way.
RAMP = tuple(
    "#" + "".join(f"{round(low + (high - low) * step / 10):02x}" for low, high in zip(*ends, strict=True))
    for ends in [((0xF1, 0xF3, 0xF5), (0x0A, 0x4F, 0x86))]
    for step in range(11)
)
ON_LIGHT, ON_DARK = "#1b1f24", "#fefefe"

VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    ON_LIGHT: "var(--on-low)",
    ON_DARK: "var(--on-high)",
    **{colour: f"var({name})" for colour, name, _ in (*FAMILIES.values(), *OTHERS)},
    **{colour: f"var(--ramp-{step})" for step, colour in enumerate(RAMP)},
}
