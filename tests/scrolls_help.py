"""Small SCROLLS files of the tests' own, one row per reference."""

from __future__ import annotations

import json
from pathlib import Path

STORY = "".join(
    f"On day {n} the miller — a naïve man — sold {n * 7 % 31} sacks of flour.\n" for n in range(60)
)
OPTIONS = "Who sells flour?\n\n (A) the baker\n (B) the miller\n (C) the king\n (D) nobody"


def row(id: str, input: str, output: str, reference: int = 0) -> dict[str, str]:
    return {"id": id, "pid": f"{id}_{reference}", "input": input, "output": output}


def asked(id: str, query: str, *outputs: str, document: str = STORY) -> list[dict[str, str]]:
    """The rows of one example, with a query unless it is empty."""
    input = f"{query}\n\n{document}" if query else document
    return [row(id, input, output, number) for number, output in enumerate(outputs)]


#: One example of each task, as its rows look.
ROWS = {
    "gov_report": asked("gr1", "", "The miller sold flour for sixty days."),
    "summ_screen_fd": asked("fd1", "", "Day by day the miller sells flour."),
    "summ_screen_fd_surrogate_crd3": asked("crd1", "", "Day by day the miller sells flour."),
    "qmsum": asked("va-sq-1", "What did the miller sell?", "He sold sacks of flour."),
    "qasper": asked("q1", "What was sold?", "flour", "sacks of flour"),
    "narrative_qa": asked("n1", "Who is naïve?", "The miller", "a man"),
    "quality": asked("c1", OPTIONS, "the miller"),
    "contract_nli": asked("3_nda-1", "The miller may sell flour.", "Entailment"),
    "squality": asked(
        "s1", "What is the plot?", "He sells.\n\nDaily.", "Flour is sold.", "The miller sells."
    ),
}


def write(folder: Path, task: str, rows: list[dict[str, str]] | bytes) -> Path:
    """The task's file below a data folder; bytes are written as they are."""
    raw = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / "scrolls" / task / "validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path
