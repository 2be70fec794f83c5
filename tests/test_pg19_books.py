"""pg19 on genuine books with the shipped weights: what the cache scores is what a parallel forward scores."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import pytest
import torch
from suite_help import TOKENIZER, all_cases

import suites
from harness.execute import execute
from harness.loading import load_model
from harness.plan import Settings
from suites import Case, Context
from suites.documents import Document
from suites.text import Text, resolve

pytestmark = [
    pytest.mark.skipif("KVMARK_DATA" not in os.environ, reason="KVMARK_DATA is unset: no PG-19 books"),
]

WINDOW = 2048
#: One policy for each way to hold a budget -> bytes of the book, None: whole. `peers/bench_stream.py` has
#: them all, and their memory.
BOUNDED = {"window:budget=128": None, "tova:budget=128": 50_000, "lococo:budget=128": 50_000}


def long_book(num_bytes: int | None = None) -> Context:
    """The first book of 250 kB or more, or its beginning."""
    text = resolve(None)
    book = next(document for document in text.documents if len(document.text.encode()) >= 250_000)
    if num_bytes is not None:
        beginning = book.text.encode()[:num_bytes].decode(errors="ignore")
        book = Document(book.id, book.title, beginning)
    return Context(TOKENIZER, Text(text.kind, text.source, [book]))


@torch.inference_mode()
def in_parallel(model, case: Case) -> torch.Tensor:
    """Log-probability of every forced token, from a forward pass without a cache."""
    ids = torch.tensor([[*case.prompt, *case.forced]])
    return model(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


def differences(logprobs: Sequence[float], expected: torch.Tensor) -> list[tuple[float, float]]:
    """(mean, largest) absolute difference per window."""
    apart = (torch.tensor(logprobs, dtype=torch.float64) - expected.double()).abs()
    return [(part.mean().item(), part.max().item()) for part in apart.split(WINDOW)]


def assert_equal(found: list[tuple[float, float]]) -> None:
    assert max(mean for mean, _ in found) <= 1e-5 and max(largest for _, largest in found) <= 1e-3, found


@pytest.mark.full
def test_genuine_books_are_what_their_index_says():
    text = resolve(None)
    assert text.kind == "pg19" and "unverified" not in text.label
    suite = suites.load("pg19:bytes_per_book=0,books=2", Context(TOKENIZER, text))
    assert suite.notes()["is_pg19"] == "yes" and "official count only if" in suite.notes()["words"]
    for case, document in zip(suite.cases(suite.cells()[0]), text.documents, strict=False):
        assert TOKENIZER.decode(case.forced) == document.text and "\r\n" not in document.text


@pytest.mark.slow
def test_windows_of_a_book_equal_the_parallel_forward():
    """2,048 tokens from a fresh cache each: every fourth of the book, and its last one, which is ragged."""
    model = load_model("transformer", Settings())
    cases = all_cases(f"pg19:bytes_per_book=0,protocol=tova,chunk={WINDOW}", long_book())
    assert len(cases) > 120 and sum(len(case.forced) for case in cases) >= 250_000
    found = []
    chosen = [*cases[:-1:4], cases[-1]]
    for start in range(0, len(chosen), 16):
        batch = chosen[start : start + 16]
        answers, _ = execute(model, batch, TOKENIZER, "cpu")
        for case, answer in zip(batch, answers, strict=True):
            found += differences(answer.logprobs, in_parallel(model, case))
    assert_equal(found)


@pytest.mark.full
def test_a_carried_cache_equals_one_long_forward():
    model = load_model("transformer", Settings())
    (case,) = all_cases(f"pg19:bytes_per_book={8 * WINDOW}", long_book())
    (answer,), readings = execute(model, [case], TOKENIZER, "cpu")
    assert readings.scoring_mode == "cache-extend, segments of 512"
    assert_equal(differences(answer.logprobs, in_parallel(model, case)))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=pytest.mark.full if spec.startswith("lococo") else pytest.mark.slow)
        for spec in BOUNDED
    ],
)
def test_a_whole_book_streams_through_a_bounded_cache(spec):
    model = load_model(spec, Settings())
    where = long_book(BOUNDED[spec])
    suite = suites.load("pg19:bytes_per_book=0,bucket=16384", where)
    (case,) = suite.cases(suite.cells()[0])
    (answer,), readings = execute(model, [case], TOKENIZER, "cpu")
    score = suite.score(case, answer)
    raw = where.text.documents[0].text.encode()
    assert bytes(case.forced) == raw and score["num_tokens"] == len(answer.logprobs) == len(raw)
    assert len(raw) >= (49_990 if BOUNDED[spec] else 250_000)
    assert math.fsum(score["bucket_nll_nats"]) == pytest.approx(score["nll_nats"], nan_ok=True)
    assert sum(score["bucket_tokens"]) == len(raw) and len(score["bucket_tokens"]) == -(-len(raw) // 16384)
    # Per layer everything went but what the budget holds, and the slack that LoCoCo has on top.
    layers, held = model.shape.num_layers, 128 + (16 + 128) * spec.startswith("lococo")
    assert layers * (len(raw) - held) <= readings.evicted[0] <= layers * (len(raw) - 128)
    slot_bytes = 4 * sum(state.slot_elements for state in model.new_cache(1, 1).states.values())
    assert readings.live.payload <= slot_bytes * (held + 1)
    # LoCoCo mixes what is mixed again, far beyond the length that it was trained for: its keys may overflow.
    assert 0 < score["bits_per_byte"] < 20 or spec.startswith("lococo")
