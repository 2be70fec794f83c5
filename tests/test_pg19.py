"""pg19: its protocols cut books into pieces, every token is scored once, and the sums are the book's."""

from __future__ import annotations

import math
import os
from itertools import accumulate, pairwise

import pytest
import torch
from suite_help import OTHERS, PROSE, TOKENIZER, all_cases, context

import suites
from harness.execute import execute
from models.spec import SpecError
from suites import Answer, Context
from suites.data.pg19_books import official
from suites.text import Document, Text, TextError
from suites.tokenizer import ByteTokenizer

#: Characters of one to four bytes, runs that byte tokens cut anywhere, spaces in all numbers.
UGLY = "  two  spaces, ἀρχὴ ἥμισυ παντός… 🙂🙂🙂🙂🙂🙂🙂 \n\n\ttabs\u00a0 naïve �� end " * 3
SIZES = (1, 2, 3, 7, 64, 4096)


class NoBos(ByteTokenizer):
    bos = None


@pytest.fixture(params=OTHERS)
def other(request, tmp_path):
    return OTHERS[request.param](tmp_path)


def chunked(size: int) -> list[str]:
    return [f"protocol=tova,chunk={size}", f"protocol=lococo,length={size},block=1"]


# The whole book


def test_every_byte_of_every_book_is_scored_exactly_once():
    whole = all_cases("pg19:bytes_per_book=0", context("short", PROSE, "the third", "never read"))
    assert [TOKENIZER.decode(case.forced) for case in whole] == ["short", PROSE, "the third"]
    assert [case.prompt for case in whole] == [(TOKENIZER.bos,)] * 3
    assert [case.target["num_bytes"] for case in whole] == [len(case.forced) for case in whole]
    cells = suites.load("pg19:bytes_per_book=0", context("a", "bcd")).cells()
    assert cells == [{"context": 3, "protocol": "stream"}]
    assert len(all_cases("pg19:books=0", context("a", "b", "c", "d", "e"))) == 5


def test_the_default_is_what_committed_runs_hold():
    (case,) = all_cases("pg19:books=1", context(PROSE))
    assert suites.canonical_spec("pg19:protocol=stream,bucket=0") == "pg19"
    assert (case.id, case.prompt) == ("pg19/book=0/start=0/bytes=8192", (TOKENIZER.bos,))
    assert case.seed == 1007062349482633896
    assert case.axes == {"book": "0", "context": 8192, "protocol": "stream"}
    assert suites.load("pg19", context(PROSE)).most_together >= 16


def test_books_are_cut_between_characters():
    for size in range(1, 9):
        for start in range(4):
            text = "€äx€äx€äx"
            (case,) = all_cases(f"pg19:books=1,bytes_per_book={size + 3},start={start}", context(text))
            assert TOKENIZER.decode(case.forced) in text
            assert size - 1 <= len(case.forced) <= size + 3
    with pytest.raises(TextError, match="no byte 99"):
        all_cases("pg19:start=99", context("short"))


def test_bytes_are_those_of_the_tokens_that_are_scored(other):
    """Without BOS the first token is given, and its bytes are nobody's score."""
    text = "🙂 one two three. Sentence 12 — of a story.\n" * 3
    suite = suites.load("pg19:books=1", context(text, tokenizer=other))
    ((cell,), (case,)) = suite.cells(), suite.cases({"context": 0})
    given = list(case.prompt) if other.bos is None else []
    assert cell == {"context": len(other.encode(text)), "protocol": "stream"}
    assert [*given, *case.forced] == other.encode(text)
    rest = text.encode()[len(other.decode(given).encode()) :]
    score = suite.score(case, Answer(case.forced, (-1.0,) * len(case.forced)))
    assert score["num_bytes"] == len(rest) == (len(text.encode()) if other.bos is not None else len(rest))
    assert other.bos is not None or len(rest) == len(text.encode()) - 4, "an emoji is four tokens of a byte"
    assert score["num_words"] == len(rest.decode().split())
    assert score["bits_per_byte"] == pytest.approx(len(case.forced) / math.log(2) / len(rest))


def test_a_tokenizer_that_loses_text_is_refused():
    class Lossy(ByteTokenizer):
        name = "lossy"

        def encode(self, text):
            return [id for id in super().encode(text) if id != ord("x")]

    where = context("all of it", "a fox", tokenizer=Lossy())
    with pytest.raises(TextError, match="lossy does not give document 1 back"):
        all_cases("pg19", where)

    with pytest.raises(TextError, match="nothing is left to score"):
        all_cases("pg19", context("a", tokenizer=NoBos()))


# Pieces


@pytest.mark.parametrize("size", SIZES)
def test_pieces_partition_the_tokens_bytes_and_words_of_each_book(other, size):
    for tokenizer in (other, TOKENIZER):
        where = context(UGLY, PROSE[:700], "🙂🙂", tokenizer=tokenizer)
        wholes = all_cases("pg19:bytes_per_book=0", where)
        for protocol in chunked(size):
            cases = all_cases(f"pg19:bytes_per_book=0,{protocol}", where)
            assert len({case.id for case in cases}) == len({case.seed for case in cases}) == len(cases)
            for whole in wholes:
                mine = [case for case in cases if case.axes["book"] == whole.axes["book"]]
                assert [case.axes["chunk"] for case in mine] == list(range(len(mine)))
                assert sum((case.forced for case in mine), ()) == whole.forced
                assert {len(case.forced) for case in mine[:-1]} <= {size}
                for name, total in whole.target.items():
                    assert sum(case.target[name] for case in mine) == total, name
                    assert min(case.target[name] for case in mine) >= 0
                before = [whole.prompt, *(case.forced[-1:] for case in mine)]
                starts = before if tokenizer.bos is None else [(tokenizer.bos,)] * len(before)
                assert [case.prompt for case in mine] == starts[:-1]


@pytest.mark.parametrize("size", SIZES[:-1])
def test_a_character_belongs_to_the_piece_in_which_it_ends(other, size):
    """Against decoding the book anew up to every cut."""
    (whole,) = all_cases("pg19:books=1,bytes_per_book=0", context(UGLY, tokenizer=other))
    cases = all_cases(f"pg19:books=1,bytes_per_book=0,{chunked(size)[0]}", context(UGLY, tokenizer=other))
    given = list(whole.prompt) if other.bos is None else []
    cuts = accumulate((len(case.forced) for case in cases), initial=0)
    prefixes = [other.decode([*given, *whole.forced[:cut]]) for cut in cuts]
    ends = [len(os.path.commonprefix([text, prefixes[-1]]).encode()) for text in prefixes]
    ends = list(accumulate(ends, max))  # half a character can take those before it along
    assert [case.target["num_bytes"] for case in cases] == [b - a for a, b in pairwise(ends)]


def test_a_word_counts_where_it_begins():
    cases = all_cases("pg19:protocol=tova,chunk=4", context("one two\nthree four"))
    assert [TOKENIZER.decode(case.forced) for case in cases] == ["one ", "two\n", "thre", "e fo", "ur"]
    assert [case.target["num_words"] for case in cases] == [1, 1, 1, 1, 0]
    assert [case.axes["context"] for case in cases] == [4] * 5
    suite = suites.load("pg19:protocol=tova,chunk=4", context("x"))
    assert math.isnan(suite.score(cases[-1], Answer((), (-1.0, -1.0)))["word_ppl"])


@pytest.mark.parametrize("spec", ["stream", "tova,chunk=32", "lococo,length=48,block=16"])
def test_the_harness_scores_every_token_once_from_a_fresh_cache(network, spec):
    model = network("transformer", "plain", torch.float64, vocab=TOKENIZER.vocab_size)
    cases = all_cases(f"pg19:books=2,bytes_per_book=110,protocol={spec}", context(PROSE, PROSE[50:]))
    answers, readings = execute(model, cases, TOKENIZER, "cpu", prefill_chunk=16)
    assert readings.scoring_mode == "cache-extend, segments of 16"
    scored = {book: b"" for book in ("0", "1")}
    for case, answer in zip(cases, answers, strict=True):
        scored[case.axes["book"]] += bytes(answer.tokens)
        ids = torch.tensor([[TOKENIZER.bos, *case.forced]])
        expected = model(ids)[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        assert answer.logprobs == pytest.approx(expected.tolist(), abs=1e-9)
    texts = (PROSE.encode()[:110], PROSE[50:].encode()[:110])
    assert list(scored.values()) == [text.decode(errors="ignore").encode() for text in texts]


def test_a_budget_acts_within_pieces_and_never_across_them(network):
    """A piece has the same numbers alone as between others."""
    model = network("tova:budget=8", "plain", torch.float64, vocab=TOKENIZER.vocab_size)
    cases = all_cases("pg19:books=1,bytes_per_book=150,protocol=tova,chunk=40", context(PROSE))
    together, readings = execute(model, cases, TOKENIZER, "cpu")
    assert len(cases) == 4 and min(readings.evicted) > 0
    for case, answer in zip(cases, together, strict=True):
        (alone,), _ = execute(model, [case], TOKENIZER, "cpu")
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-9)


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("bytes_per_book=0", 1),
        ("bytes_per_book=65536", 2),
        ("bytes_per_book=0,protocol=tova", 32),
        ("bytes_per_book=0,protocol=lococo,length=65536", 2),
    ],
)
def test_long_streams_run_alone(spec, most):
    where = context("a", "b" * 250_000)
    assert suites.load(f"pg19:{spec}", where).most_together == most


# Numbers


def test_metrics_are_those_of_the_definitions():
    suite = suites.load("pg19:books=1", context("one two three€"))
    (case,) = suite.cases(suite.cells()[0])
    score = suite.score(case, Answer(case.forced, (-math.log(2),) * 16))
    assert (score["num_bytes"], score["num_tokens"], score["num_words"]) == (16, 16, 3)
    assert score["nll_nats"] == pytest.approx(16 * math.log(2))
    assert score["bits_per_byte"] == pytest.approx(1)
    assert score["token_ppl"] == pytest.approx(2)
    assert score["word_ppl"] == pytest.approx(2 ** (16 / 3))
    assert len(score) == 7
    assert suite.score(case, Answer(case.forced, (-1e4,) * 16))["word_ppl"] == math.inf
    with pytest.raises(ValueError, match="15 of 16 tokens"):
        suite.score(case, Answer(case.forced, (-1.0,) * 15))


@pytest.mark.parametrize("protocol", ["stream", "tova", "lococo"])
def test_buckets_are_of_positions_and_add_up(protocol):
    suite = suites.load(f"pg19:books=1,bytes_per_book=9,bucket=4,protocol={protocol}", context(PROSE))
    (case,) = suite.cases(suite.cells()[0])
    score = suite.score(case, Answer(case.forced, tuple(-float(n) for n in range(1, 10))))
    assert score["bucket_nll_nats"] == [1 + 2 + 3 + 4, 5 + 6 + 7 + 8, 9]
    assert score["bucket_tokens"] == [4, 4, 1]
    assert case.axes["bucket"] == 4 and sum(score["bucket_nll_nats"]) == score["nll_nats"]


def test_lococo_leaves_out_the_first_token_of_every_block_in_numbers_of_its_own():
    suite = suites.load("pg19:books=1,protocol=lococo,length=12,block=4", context("0123456789ab"))
    (case,) = suite.cases(suite.cells()[0])
    score = suite.score(case, Answer(case.forced, tuple(-float(n) for n in range(12))))
    assert (score["nll_nats"], score["num_tokens"]) == (66, 12)
    assert (score["block_nll_nats"], score["block_tokens"]) == (66 - 0 - 4 - 8, 9)


# What is said


@pytest.mark.parametrize("protocol", ["stream", "tova", "lococo"])
def test_rows_and_notes_name_the_protocol(protocol):
    suite = suites.load(f"pg19:protocol={protocol}", context(PROSE))
    assert suite.notes()["protocol"].startswith(f"{protocol}: ")
    for cell in suite.cells():
        assert cell["protocol"] == protocol
        assert {case.axes["protocol"] for case in suite.cases(cell)} == {protocol}
    assert suite.notes()["is_pg19"] == "no" and suite.notes()["text"].startswith("file:story.txt@")


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("start=-1", "0 or more"),
        ("bucket=-1", "0 or more"),
        ("chunk=0,protocol=tova", "1 or more"),
        ("chunk=64", "option of protocol=tova"),
        ("block=64", "option of protocol=lococo"),
        ("protocol=tova,length=8192", "option of protocol=lococo"),
        ("protocol=lococo,length=100", "multiple of block"),
        ("protocol=sliding", "stream"),
    ],
)
def test_wrong_options_are_one_sentence(spec, named):
    with pytest.raises(SpecError, match=named) as caught:
        suites.load(f"pg19:{spec}", context(PROSE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "whole"),
    [
        ("books=0,bytes_per_book=0", True),
        ("books=0,bytes_per_book=0,protocol=tova,chunk=8", True),
        ("books=50,bytes_per_book=0", True),
        ("books=49,bytes_per_book=0", False),
        ("books=0", False),
        ("books=0,bytes_per_book=0,start=1", False),
    ],
)
def test_official_words_only_of_what_is_scored_whole(spec, whole):
    assert official_words_of(spec, official("validation")) == (3_007_061 if whole else None)


def test_official_words_only_of_all_books_of_a_split():
    spec, books = "books=0,bytes_per_book=0", official("validation")
    assert official_words_of(spec, books | {list(books)[7]: "0" * 64}) is None
    assert official_words_of(spec, dict(list(books.items())[1:])) is None
    assert official_words_of(spec, books | {"1": "0" * 64}) is None
    assert official_words_of(spec, official("test")) == 6_966_499
    # Without BOS the first token of every book is given.
    assert official_words_of(spec, books, NoBos()) is None


def official_words_of(spec: str, books: dict[str, str], tokenizer=TOKENIZER) -> int | None:
    """What the scores add up to, None without any; the notes say the same."""
    texts = [" ".join(["word"] * (n + 1)) for n in range(len(books))]
    documents = [Document(id, "", text, books[id]) for id, text in zip(books, texts, strict=True)]
    suite = suites.load(f"pg19:{spec}", Context(tokenizer, Text("folder", "folder:x", documents)))
    cases = [case for cell in suite.cells() for case in suite.cases(cell)]
    scores = [suite.score(case, Answer((), (-1.0,) * len(case.forced))) for case in cases]
    found = [score["num_words_official"] for score in scores if "num_words_official" in score]
    assert len(found) in (0, len(scores))
    assert ("official count of" in suite.notes()["words"]) is bool(found)
    return round(math.fsum(found)) if found else None
