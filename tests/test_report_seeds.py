"""Runs whose weights differ by their seed alone: how far figures move, and which differences are larger."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded_tasks import Told, case, write_cells

from harness.report import build, load_run
from harness.report.seeds import is_beyond, seed_section

LN2 = math.log(2)
PG19, NEEDLE = "pg19:protocol=tova,chunk=2048", "needle:lengths=512+1024"
PIECES = {"context": 2048, "protocol": "tova"}
YOCO, RETENTION = "yoco:mixer=swa", "yoco:mixer=retention"
RECIPE = {"total_tokens": 2_000_000, "induction_heads": 2, "muon_lr": 0.02, "log_every_s": 30.0}
#: Bits per byte by architecture and seed: YOCO is lower by more than either moves, retention is not.
BITS = {"transformer": (2.30, 2.32, 2.34), YOCO: (2.20, 2.23, 2.21), RETENTION: (2.26, 2.33, 2.28)}
HITS = {"transformer": (10, 10, 10), YOCO: (6, 5, 7)}


def card(spec: str, number: int, **changes) -> dict:
    recipe = RECIPE | {"seed": number, "log_every_s": 30.0 + number} | changes.pop("recipe", {})
    told = {
        "sha256": f"{number}{spec}",
        "architecture": spec,
        "seed": number,
        "recipe": recipe,
        "notes": "tried",
    }
    told |= {"parameters": 800 + len(spec), "tokens": 2_000_000, "commit": "c0ffee", "trained_length": 2048}
    return told | changes


def write(folder: Path, number: int, place: int | None = None, weights: dict | None = None, **of) -> Path:
    """A run of networks of one seed: `bits` by architecture and seed over two books, `hits` of ten needles.

    `weights` are cards by architecture, or several names joined by "+"; by default one each.
    """
    bits, hits, text = of.pop("bits", BITS), of.pop("hits", {}), of.pop("text", "pg19:test@0123456789ab")
    books, place, cells = of.pop("books", 2), number if place is None else place, []
    for spec, values in bits.items():
        rows = []
        for n in range(books):  # Σ/Σ is the value that was asked for
            more = (0.1 if n % 2 else -0.1) * (books > 1)
            sums = {"nll_nats": (values[place] + more) * 100 * LN2, "num_bytes": 100, "num_tokens": 100}
            rows += [{**row, "axes": {"book": f"b{n}"}} for row in case(f"b{n}/0", **sums, num_words=9)]
        cells.append(Told(spec, PG19, PIECES, rows, text=text))
    for spec, counts in hits.items():
        for length in (512, 1024):
            found = counts[place] if length == 512 else 10
            rows = [r for t in range(10) for r in case(f"{length}-{t}", accuracy_strict=t < found)]
            cells.append(Told(spec, NEEDLE, {"length": length, "depth": 0.5}, rows))
    run = write_cells(folder, cells, name=folder.name)
    specs = dict.fromkeys([*bits, *hits])
    cards = weights or {spec: {spec.replace(":", "-"): card(spec, number, **of)} for spec in specs}
    for file in (folder / "cells").iterdir():
        table = pq.read_table(file)
        labels = ["+".join(f"{n}@{number}" for n in cards[s]) for s in table["architecture"].to_pylist()]
        at = table.column_names.index("weights")
        table = table.set_column(at, table.schema.field(at), pa.array(labels, table.schema.field(at).type))
        pq.write_table(table, file)
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    manifest["weights"] = {name: told for own in cards.values() for name, told in own.items()}
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run


def tables(*runs: Path) -> list:
    return [table for part in seed_section([load_run(run) for run in runs]) for table in part.tables]


def texts(table) -> dict[tuple[str, str], list[str]]:
    """(first column, context) -> the rest."""
    return {(row[0].text, row[1].text): [entry.text for entry in row[2:]] for row in table.rows}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("spread")
    return [write(folder / f"seed-{n}", n, hits=HITS) for n in range(3)]


def test_mean_range_and_every_seed_are_told(three):
    needles, _, bits, _ = tables(*three)
    row = texts(bits)["transformer", "2,048 tokens"]
    assert row == ["0, 1, 2", "2.320", "2.300 to 2.340", "0.040", "0: 2.300 · 1: 2.320 · 2: 2.340"]
    assert len(bits.rows) == 3 and bits.rows[0][0].note == "2,000,000 tokens of training"
    assert bits.caption == f"Bits/byte on PG-19, tova: {PG19}, on pg19:test, fp32."
    found = texts(needles)
    assert found[YOCO, "512 tokens"][:4] == ["0, 1, 2", "60.0 %", "50.0 % to 70.0 %", "20.0 pp"]
    assert found[YOCO, "1,024 tokens"][1] == "100.0 %"


def test_a_difference_is_a_finding_beyond_the_spread_only(three):
    _, needles, _, bits = tables(*three)
    found = {row[0]: row[1:] for row in ([e.text for e in row] for row in bits.rows)}
    assert found[f"{YOCO} − transformer"] == [
        "2,048 tokens", "0, 1, 2", "−0.107", "−0.130 to −0.090", "0.040",
        f"differs beyond the spread: {YOCO} is better",
    ]  # fmt: skip
    # Of retention one seed is worse than the transformer; to YOCO all agree, by less than seeds move it.
    assert found[f"{RETENTION} − transformer"][3:] == [
        "−0.060 to +0.010", "0.070", "does not differ beyond the spread",
    ]  # fmt: skip
    assert found[f"{RETENTION} − {YOCO}"][2:] == [
        "+0.077", "+0.060 to +0.100", "0.070", f"differs beyond the spread: {YOCO} is better",
    ]  # fmt: skip
    at = {row[1].text: [entry.text for entry in row] for row in needles.rows}
    assert at["512 tokens"][3:] == [
        "−40.0 pp", "−50.0 pp to −30.0 pp", "20.0 pp",
        "differs beyond the spread: transformer is better",
    ]  # fmt: skip
    assert at["1,024 tokens"][-1] == "does not differ beyond the spread"


def test_the_criterion():
    assert is_beyond([0.3, 0.2, 0.25], 0.2) and is_beyond([-0.3, -0.2, -0.25], 0.2)
    assert not is_beyond([0.3, 0.2, 0.25], 0.25)  # as much as seeds move one of them
    assert not is_beyond([0.9, 0.9, -0.01], 0.1)  # one seed says the contrary
    assert not is_beyond([0.9, 0.9, 0.0], 0.1)
    assert not is_beyond([0.9, 0.9], 0.1)  # two seeds


def test_two_seeds_tell_no_difference_and_the_page_says_so(three, tmp_path):
    _, needles, _, bits = tables(*three[:2])
    assert {row[-1].text for table in (needles, bits) for row in table.rows} == {"two seeds tell nothing"}
    text = build(three[:2], tmp_path).read_text(encoding="utf-8")
    head, _, rest = text.partition("<h2>Run seed-0</h2>")
    assert "<h2>Spread over seeds</h2>" in head and "at least three seeds agree" in head
    assert "Runs: seed-0, seed-1." in head and "Spread over seeds" not in rest


def test_a_seed_that_was_measured_twice_counts_once(three, tmp_path):
    again = write(tmp_path / "again", 0, place=2, hits=HITS)
    assert tables(three[0], again) == [] == tables(three[0])
    *_, bits = tables(three[0], again, three[1])
    assert {row[2].text for row in bits.rows} == {"0, 1"}


@pytest.mark.parametrize("changes", [
    {"tokens": 1_000_000}, {"recipe": {"muon_lr": 0.01}}, {"trained_length": 512}, {"data": {"shares": 1}},
    {"text": "pg19:test@ba9876543210"}, {"books": 1}, {"recipe": {}, "seed": None},
], ids=str)  # fmt: skip
def test_what_was_trained_or_measured_otherwise_is_no_spread(tmp_path, changes):
    first, other = write(tmp_path / "0", 0), write(tmp_path / "1", 1, **changes)
    assert tables(first, other) == []
    both = tables(first, other, write(tmp_path / "2", 2))
    assert {row[2].text for row in both[0].rows} == {"0, 2"}
    said = "not the same cases with 1" if changes.keys() & {"text", "books"} else ""
    assert {row[2].note for row in both[0].rows} == {said}


def test_the_data_of_another_seed_may_be_drawn_from_another_seed(tmp_path):
    runs = [write(tmp_path / f"{n}", n, data={"seed": n, "lengths": [256]}) for n in range(2)]
    assert len(tables(*runs)) == 2


def test_only_what_was_trained_alike_is_compared(tmp_path):
    """Compressors are compared with policies on the network below them; nobody with another recipe."""
    specs = ("transformer", "h2o:budget=64", "lococo:budget=64", YOCO)
    runs = []
    for seed in range(3):
        base = {"transformer": card("transformer", seed)}
        more = {"lococo-64": card("lococo:budget=64", seed, tokens=9, recipe={"muon_lr": 0.5})}
        long = {"yoco": card(YOCO, seed, recipe={"muon_lr": 0.5})}
        owned = dict(zip(specs, (base, base, base | more, long), strict=True))
        bits = {spec: (2 + n, 2 + n, 2.01 + n) for n, spec in enumerate(specs)}
        runs.append(write(tmp_path / f"{seed}", seed, weights=owned, bits=bits))
    values, differences = tables(*runs)
    assert len(values.rows) == 4 and values.rows[2][0].note == "2,000,000 + 9 tokens of training"
    assert [row[0].text for row in differences.rows] == [
        "h2o:budget=64 − transformer", "lococo:budget=64 − transformer", "lococo:budget=64 − h2o:budget=64",
    ]  # fmt: skip


def test_many_architectures_are_compared_with_the_first(tmp_path):
    specs = ["transformer", *(f"window:budget={2**n}" for n in range(7))]
    bits = {spec: (2.0 + n, 2.1 + n) for n, spec in enumerate(specs)}
    values, differences = tables(*(write(tmp_path / f"{n}", n, bits=bits) for n in range(2)))
    assert len(values.rows) == 8 and len(differences.rows) == 7
    assert all(row[0].text.endswith("− transformer") for row in differences.rows)
    assert differences.notes == ["More than 6 architectures: only the first is compared with the others."]


def test_other_commits_are_named(tmp_path):
    runs = [write(tmp_path / f"{n}", n, commit=f"{n}" * 40) for n in range(2)]
    (part,) = seed_section([load_run(run) for run in runs])
    assert "Trained at several commits of the code: 000000000000, 111111111111." in part.notes


def test_runs_without_seeds_in_their_cards_are_drawn_as_before(tmp_path):
    plain = write_cells(tmp_path / "plain", [Told("transformer", PG19, PIECES, case("b", nll_nats=1))])
    assert seed_section([load_run(plain), load_run(plain)]) == []
