"""Runs in which something is missing: the page is drawn all the same, and claims nothing."""

from __future__ import annotations

import math

import pytest
from recorded_tasks import Told, case, held, write_cells

import models
from harness.report import build, load_run
from harness.report.canvas import styles
from harness.report.groups import told_apart
from harness.report.markdown import markdown

SCROLLS = ("transformer", "scrolls", {"task": "qasper", "length": 64})
GOLD = {"gold_nll_nats": 3.0, "gold_tokens": 2, "gold_bytes": 3}
SPOILT = GOLD | {"gold_nll_nats": math.nan}
NEEDLE = ("needle", {"length": 64})
UNJUDGED = case("e", accuracy_strict=math.nan) + held("e", {0: 1.0})
PG19 = ("transformer", "pg19", {"context": 64})
LM_EVAL = ("tova:budget=4", "lm_eval", {"task": "piqa"})
BUCKET = [
    {"case": "a", "metric": name, "value": 4.0, "bin": 0, "axes": {"book": "a", "bucket": 64}}
    for name in ("bucket_nll_nats", "bucket_tokens")
]
DEEP = [
    row
    for trial in range(3)
    for row in case(f"{trial}", accuracy_strict=0, evicted_tokens=5)
    + held(f"{trial}", {layer: float((layer + trial) % 3 > 0) for layer in range(40)})
]


def counts(**changes: float) -> list[dict]:
    return case("a", **{"nll_nats": 5.0, "num_bytes": 4, "num_tokens": 4, "num_words": 1} | changes)


@pytest.mark.parametrize(
    ("cells", "said", "unsaid"),
    [
        ([Told(*SCROLLS, case("e", **GOLD))], "Gold answer", "times 100.<"),
        ([Told(*SCROLLS, case("e", token_f1=0.5, **SPOILT))], ">not finite<", ">nan<"),
        ([Told(*SCROLLS, case("e", **GOLD) + case("f", **SPOILT))], "1 not finite", ">nan<"),
        ([Told(*SCROLLS, case("e", **GOLD | {"gold_bytes": 0}))], "SCROLLS", ">Gold"),
        ([Told(*SCROLLS, status="oom"), Told(*LM_EVAL, status="crash")], ">crash<", "<h2>Long documents"),
        ([Told(*LM_EVAL, [{"metric": "acc", "value": math.nan}])], "<h2>lm-eval", "nan"),
        ([Told(*PG19, counts(num_words=0) + BUCKET)], "One text", "Nats per token by position"),
        ([Told(*PG19, counts(num_bytes=0))], "book by book", "nan"),
        ([Told("transformer", *NEEDLE, UNJUDGED)], "No needle suite", "<h2>Evicted"),
        ([Told("tova:budget=4", *NEEDLE, DEEP)], "layers 0–39 (1 of 3)", "Several"),
    ],
    ids=[
        *("gold", "not-finite", "partly-finite", "no-bytes", "failed", "nan"),
        *("one-bucket", "empty-text", "unjudged", "layers"),
    ],
)  # fmt: skip
def test_whatever_is_missing(tmp_path, cells, said, unsaid):
    run = write_cells(tmp_path / "run", cells)
    page = build([run], tmp_path / "out").read_text(encoding="utf-8").split("<h2>Reading guide")[0]
    assert said in page
    assert unsaid not in page.split("<main>")[1]
    assert "nan" not in markdown(load_run(run))


def test_suites_of_one_kind_are_told_apart_by_what_not_all_of_them_say():
    plain, magic, four = "needle:trials=4", "needle:trials=4,variant=magic", "needle:needles=4,trials=4"
    assert told_apart([plain, magic, four]) == {plain: "", magic: "variant=magic", four: "needles=4"}
    assert told_apart(["needle"]) == {"needle": ""} and told_apart(["needle:a=1"]) == {"needle:a=1": ""}


def test_every_architecture_of_ours_looks_different():
    looks = styles(models.names())
    assert len({(look.color, look.marker) for look in looks.values()}) == len(looks)
