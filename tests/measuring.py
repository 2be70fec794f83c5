"""What MEASURING.md shows between its markers; `python tests/measuring.py` writes it.

<!-- output: COMMAND -->   what `kvmark COMMAND` prints
<!-- reasons -->           the table of harness.validity
<!-- gate -->              results/reference/gate-noise.csv
<!-- calibration -->       results/reference/gate-cpu/noise.json, as `kvmark calibrate` shows it
<!-- frontier -->          results/reference/frontier-cpu, as `kvmark frontier` shows it
<!-- doctor -->            of one machine at one time: kept; a test looks at names and statuses
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "MEASURING.md"
RECORDS = ROOT / "results" / "reference"
MARKED = re.compile(r"(<!-- (output: ([^\n]*?)|\w+) -->\n)(.*?)(<!-- /\w+ -->)", re.DOTALL)


def filled(text: str) -> str:
    """The document with everything between its markers made anew, but for what a machine says of itself."""
    return MARKED.sub(lambda found: found[1] + _between(found[2], found[3], found[4]) + found[5], text)


def _between(name: str, command: str | None, present: str) -> str:
    if command is not None:
        return _fenced(_printed(command))
    makers = {"reasons": _reasons, "calibration": _calibration, "frontier": _frontier}
    return makers[name]() if name in makers else present


def _fenced(text: str) -> str:
    return "```\n" + "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n```\n"


def _printed(command: str) -> str:
    from typer.testing import CliRunner

    from harness.cli import app

    return CliRunner().invoke(app, command.split()).stdout


def _reasons() -> str:
    from harness.validity import REASONS

    rows = [f"| {name} | {reason.severity} | {reason.sentence} |\n" for name, reason in REASONS.items()]
    return "".join(["| reason | makes a number | when |\n", "| --- | --- | --- |\n", *rows])


def _calibration() -> str:
    from harness import gate_show
    from harness.comparison import Calibration

    with gate_show.console.capture() as captured:
        gate_show.noise_table(Calibration.read(RECORDS / "gate-cpu" / "noise.json"), 0.05)
    return _fenced(captured.get())


def _frontier() -> str:
    from harness.frontier_show import markdown
    from harness.report import load_run

    return markdown(load_run(RECORDS / "frontier-cpu").rows).rstrip("\n") + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
