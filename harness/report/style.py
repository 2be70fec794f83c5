"""The page's CSS: a quiet document, legible on a phone and at night.

Colours of the figures are variables (see canvas.py), so that one SVG serves both themes.
"""

from __future__ import annotations

from .palette import FAMILIES, OTHERS, RAMP
from .plot import INK

#: Everything that a theme decides: variable -> colour.
LIGHT = {
    "--ink": INK,
    "--muted": "#59636e",
    "--grid": "#d8dee4",
    "--line": "#e3e7eb",
    "--paper": "#fdfdfc",
    "--soft": "#f4f5f4",
    "--accent": "#0a4f86",
    "--best": "#e4f0e8",
    "--alert": "#a33a12",
    "--on-low": "#1b1f24",
    "--on-high": "#ffffff",
    **{name: colour for colour, name, _ in (*FAMILIES.values(), *OTHERS)},
}
DARK = {
    "--ink": "#dfe3e8",
    "--muted": "#98a2ad",
    "--grid": "#343b43",
    "--line": "#2b3138",
    "--paper": "#14171a",
    "--soft": "#1c2024",
    "--accent": "#7cbcf0",
    "--best": "#1d3328",
    "--alert": "#f09a73",
    "--on-low": "#e8edf2",
    "--on-high": "#0b1116",
    "--transformer": "#c9d1d9",
    "--yoco": "#2fc7a0",
    "--tova": "#58aef2",
    "--lococo": "#f7904a",
    "--window": "#d9bf3f",
    "--random": "#e39ac4",
    "--other-1": "#b79ad0",
    "--other-2": "#c79a8f",
    "--other-3": "#a9cb5f",
    "--other-4": "#9db8d2",
    "--other-5": "#e8808c",
    "--other-6": "#6cc7d4",
}


def css() -> str:
    """The whole style sheet."""
    light = LIGHT | {f"--ramp-{step}": colour for step, colour in enumerate(RAMP)}
    dark = DARK | {f"--ramp-{step}": colour for step, colour in enumerate(_dark_ramp())}
    return (
        f":root{{color-scheme:light dark;{_declare(light)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{_declare(dark)}}}}}\n{RULES}"
    )


def _declare(colours: dict[str, str]) -> str:
    return "".join(f"{name}:{colour};" for name, colour in colours.items())


def _dark_ramp() -> list[str]:
    """From just above the dark page to a bright blue, as many steps as the light ramp."""
    ends = list(zip((0x22, 0x28, 0x2E), (0x7F, 0xC4, 0xFA), strict=True))
    last = len(RAMP) - 1
    return [
        "#" + "".join(f"{round(low + (high - low) * step / last):02x}" for low, high in ends)
        for step in range(last + 1)
    ]


RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
  font:16px/1.58 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  font-variant-numeric:tabular-nums;overflow-wrap:break-word}
main,header,footer{max-width:66rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:3.25rem;padding-bottom:.5rem}
.mark{margin:0;color:var(--muted);font-size:.8rem;letter-spacing:.09em;text-transform:uppercase}
h1{margin:.35rem 0 .7rem;font-size:clamp(1.65rem,1.2rem + 2vw,2.35rem);line-height:1.18;font-weight:650;
  letter-spacing:-.018em;text-wrap:balance}
h2{margin:3.2rem 0 .5rem;padding-top:1.1rem;border-top:1px solid var(--line);font-size:1.3rem;line-height:1.3;
  font-weight:640;letter-spacing:-.008em}
h3{margin:2rem 0 .4rem;font-size:1.02rem;font-weight:640}
p{margin:.5rem 0;max-width:44rem}
.lead{font-size:1.13rem;line-height:1.5;color:var(--muted);max-width:42rem}
.note,caption,footer,.facts{color:var(--muted);font-size:.875rem}
.note{line-height:1.5}
.alert{border-left:3px solid var(--alert);padding:.15rem 0 .15rem .8rem;color:var(--ink);font-size:.94rem}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1.3rem 0 0;max-width:52rem}
.facts dt{color:var(--muted)}
.facts dd{margin:0;color:var(--ink);overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.8rem 0;max-width:100%}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-size:.875rem;line-height:1.4;min-width:min(100%,30rem)}
caption{text-align:left;padding:0 0 .4rem}
th,td{padding:.44rem .6rem .44rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th+th,td{padding-left:.6rem}
th.num,td.num{text-align:right;white-space:nowrap}
thead th{font-weight:600;vertical-align:bottom;border-bottom-color:var(--muted)}
tbody th{font-weight:500;overflow-wrap:anywhere;min-width:9rem;max-width:17rem;position:sticky;left:0;
  background:var(--paper)}
tbody tr:hover{background:var(--soft)}
td:not(.num){overflow-wrap:anywhere;min-width:7rem}
td.long{min-width:14rem}
td small,th small{display:block;color:var(--muted);font-weight:400;font-size:.74rem;line-height:1.35}
td.best{background:var(--best)}
td.failed{color:var(--alert)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr));gap:1.8rem 2.2rem;
  margin:1.3rem 0}
.maps{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:1.2rem 1.6rem}
figure{margin:0;min-width:0}
figure.wide{grid-column:1/-1}
figure svg{display:block;max-width:100%;height:auto}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
figure.wide svg{min-width:42rem;max-width:none;width:100%!important}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif!important;
  font-variant-numeric:tabular-nums}
details{margin:.35rem 0}
summary{cursor:pointer;color:var(--muted);font-size:.875rem;padding:.25rem 0;width:max-content;max-width:100%}
summary:hover{color:var(--accent)}
.scale{display:flex;align-items:center;gap:.6rem;color:var(--muted);font-size:.8rem;margin:.9rem 0}
.scale i{display:inline-block;width:1.5rem;height:.7rem}
dl.guide dt{font-weight:600;margin-top:.9rem}
dl.guide dd{margin:.1rem 0 0;max-width:44rem}
li{max-width:44rem;margin:.3rem 0}
a{color:var(--accent)}
footer{padding-top:1.2rem;padding-bottom:3.5rem;margin-top:3rem}
@media (max-width:40rem){header{padding-top:1.8rem}.facts{grid-template-columns:1fr;gap:0}
  .facts dd{margin-bottom:.5rem}h2{margin-top:2.4rem}}
@media print{details{display:block}.scroll{overflow:visible}}
"""
