"""The suites: which Cases they yield, that these are always the same, and how answers are scored."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizer_help import write_byte_bpe, write_llama2c, write_sentencepiece

import suites
from models.spec import SpecError
from suites import Answer, Context
from suites.text import Document, Text, TextError, resolve
from suites.tokenizer import ByteTokenizer
from suites.tokenizers import open_tokenizer
from suites.words import EVALUATION_WORDS

TOKENIZER = ByteTokenizer()
PROSE = "".join(f"Sentence {number} of a naïve — and long — story.\n" for number in range(400))
NEEDS_PG19 = pytest.mark.skipif(
    "KVMARK_DATA" not in os.environ, reason="KVMARK_DATA is unset: no PG-19 books"
)


def context(*texts: str, seed: int = 0, tokenizer=TOKENIZER) -> Context:
    documents = [Document(str(number), str(number), text) for number, text in enumerate(texts)]
    return Context(tokenizer, Text("file", "file:story.txt", documents), seed)


#: Of checkpoints: with BOS and without, spaces in front, numbers that merge with the space before them.
OTHERS = {
    "bytes-bpe": lambda folder: open_tokenizer(write_byte_bpe(folder, 400), 1000, 0, (1,)),
    "no bos": lambda folder: open_tokenizer(write_byte_bpe(folder, 400, bos_token=None), 1000, 0, (1,)),
    "sentencepiece": lambda folder: open_tokenizer(write_sentencepiece(folder), 1000, 1, (2,)),
    "llama2c": lambda folder: open_tokenizer(write_llama2c(folder / "tok.bin"), 1000, 1, (2,)),
    "digits join": lambda folder: open_tokenizer(write_llama2c(folder / "tok.bin", JOINING), 1000, 1, (2,)),
}
#: The last digit is one token with the full stop behind it.
JOINING = [" ", ".", *"0123456789", *(f"{digit}." for digit in range(10))]


@pytest.fixture(params=OTHERS)
def other(request, tmp_path):
    return OTHERS[request.param](tmp_path)


def all_cases(spec: str, where: Context) -> list:
    suite = suites.load(spec, where)
    return [case for cell in suite.cells() for case in suite.cases(cell)]


# Registry


def test_the_folder_is_the_registry():
    assert {"decode", "needle", "pg19"} <= set(suites.names())
    for name in suites.names():
        assert suites.docline(name).endswith(".")


def test_a_file_dropped_in_the_folder_is_a_suite():
    file = suites.FOLDER / "toy_of_this_test.py"
    try:
        file.write_text('"""A toy."""\nfrom ..suite import Suite\n\n\nclass Workload(Suite):\n    pass\n')
        assert "toy_of_this_test" in suites.names()
        assert suites.docline("toy_of_this_test") == "A toy."
        assert suites.load("toy_of_this_test", context("")).options == suites.Suite.Options()
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("nedle", "needle"),
        ("needle:length=512", "lengths"),
        ("needle:trials=many", "trials"),
        ("needle:lengths=64", "128"),
        ("needle:depths=1.5", "between 0 and 1"),
        ("needle:trials=561", "560"),
        ("decode:new_tokens=0", "1 or more"),
        ("pg19:start=-1", "0 or more"),
    ],
)
def test_a_wrong_spec_is_one_sentence_naming_what_is_valid(spec, named):
    with pytest.raises(SpecError, match=named) as caught:
        suites.load(spec, context(PROSE))
    assert "\n" not in str(caught.value)


def test_options_are_typed_and_canonical():
    options = suites.options("needle:lengths=256+512,depths=0.5,trials=2")
    assert (options.lengths, options.depths, options.trials) == ((256, 512), (0.5,), 2)
    assert suites.canonical_spec("needle:trials=2,lengths=512+1024") == "needle:trials=2"


def test_suites_import_neither_torch_nor_the_harness():
    code = (
        "import sys, suites, suites.training_mix\n"
        "[suites.suite_class(name) for name in suites.names()]\n"
        "assert not {'torch', 'harness'} & set(sys.modules)"
    )
    root = Path(suites.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@pytest.mark.parametrize(
    "spec", ["decode:contexts=64", "needle:lengths=256,trials=2", "pg19:bytes_per_book=300"]
)
def test_cases_are_the_same_every_time_with_unique_ids(spec):
    cases = all_cases(spec, context(PROSE, PROSE[::-1]))
    assert cases == all_cases(spec, context(PROSE, PROSE[::-1]))
    assert len({case.id for case in cases}) == len(cases)
    assert len({case.seed for case in cases}) == len(cases)


def test_another_seed_gives_other_cases():
    for spec in ("decode:contexts=64", "needle:lengths=256,trials=2"):
        first, second = (all_cases(spec, context(PROSE, seed=seed)) for seed in (0, 1))
        assert not {case.id for case in first} & {case.id for case in second}
        assert not {case.prompt for case in first} & {case.prompt for case in second}


# decode


def test_decode_has_exact_lengths_in_ascending_size():
    suite = suites.load("decode:contexts=100+50,batches=3+1,new_tokens=8", Context(TOKENIZER, None))
    cells = suite.cells()
    assert [cell["context"] * cell["batch"] for cell in cells] == [50, 100, 150, 300]
    for cell in cells:
        cases = list(suite.cases(cell))
        assert len(cases) == cell["batch"]
        for case in cases:
            assert (len(case.prompt), len(case.forced), case.step_forced) == (cell["context"], 9, True)
            assert max(case.prompt + case.forced) < 256
    assert suite.score(case, Answer(case.forced, (0.0,) * 9)) == {}


# needle


@pytest.mark.parametrize("length", [128, 256, 515])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_needle_prompt_has_its_length_and_the_needle_at_its_depth(length, depth):
    for case in all_cases(f"needle:lengths={length},depths={depth},trials=5", context(PROSE, PROSE[7:])):
        axes, target = case.axes, case.target
        # Every other character of the prose may have three bytes, so a cut can cost two tokens.
        assert length - 2 <= axes["prompt_tokens"] == len(case.prompt) <= length
        assert case.prompt[0] == TOKENIZER.bos and case.forced is None
        assert TOKENIZER.decode(case.prompt[axes["digits_start"] : axes["digits_end"]]) == target["number"]
        text = TOKENIZER.decode(case.prompt)
        needle = f" The secret number of {target['word']} is {target['number']}. "
        question = (
            f" What is the secret number of {target['word']}? The secret number of {target['word']} is "
        )
        assert text.count(needle) == 1 and text.endswith(question)
        assert case.prompt[axes["depth_tokens"] :][: len(needle)] == tuple(needle.encode())
        prose_tokens = len(case.prompt) - 1 - len(needle) - len(question)
        assert abs(axes["depth_tokens"] - 1 - depth * prose_tokens) <= 2.5
        assert "�" not in text
        assert target["word"] in EVALUATION_WORDS and target["number"][0] != "0"


@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_needle_is_exact_in_any_tokens(other, depth):
    """The prompt is the text, encoded whole; it ends where the answer begins, and is as long as asked for."""
    cases = all_cases(
        f"needle:lengths=300,depths={depth},trials=4", context(PROSE, PROSE[7:], tokenizer=other)
    )
    assert max(len(case.prompt) for case in cases) >= 299
    for case in cases:
        axes, number = case.axes, case.target["number"]
        start, ids = (() if other.bos is None else (other.bos,)), list(case.prompt)
        assert tuple(ids[: len(start)]) == start
        text = other.decode(ids)
        question = f"? The secret number of {case.target['word']} is"
        assert text.rstrip(" ").endswith(question)
        # What the model is to say next completes the text as the tokenizer itself would write it.
        whole = text.rstrip(" ") + " " + number
        assert other.encode(whole)[: len(ids) - len(start)] == ids[len(start) :]
        assert 297 <= axes["prompt_tokens"] == len(ids) <= 300
        needle = f" The secret number of {case.target['word']} is {number}. "
        assert text.count(needle) == 1
        digits = other.decode(ids[axes["digits_start"] : axes["digits_end"]])
        assert number in digits and len(digits) <= len(number) + 2
        for left, right in ((1, 0), (0, -1)):  # not a token less
            cut = other.decode(ids[axes["digits_start"] + left : axes["digits_end"] + right])
            assert number not in cut
        assert other.decode(ids[: axes["depth_tokens"]]) in text[: text.index(needle) + 1]
        prose = len(ids) - len(start) - len(other.encode(needle + needle))
        assert abs(axes["depth_tokens"] - len(start) - depth * prose) <= 45


def test_decode_draws_from_all_that_stands_for_text(other):
    cases = all_cases("decode:contexts=3000", Context(other, None))
    ids = set(cases[0].prompt)
    assert ids <= set(other.plain_ids) and len(ids) > 0.9 * len(other.plain_ids)


def test_needle_trials_differ_and_do_not_depend_on_their_number():
    few = all_cases("needle:lengths=256,depths=0.5,trials=3", context(PROSE))
    many = all_cases("needle:lengths=256,depths=0.5,trials=30", context(PROSE))
    assert many[:3] == few
    assert len({case.target["word"] for case in many}) == len({case.target["number"] for case in many}) == 30
    assert len({case.prompt[1:40] for case in many}) > 20


def test_needle_prose_runs_on_over_documents_and_ends_with_the_text():
    short = context(*(PROSE[start : start + 100] for start in range(0, 1000, 100)))
    assert all(len(case.prompt) > 500 for case in all_cases("needle:trials=2,lengths=512", short))
    with pytest.raises(TextError, match="too short"):
        all_cases("needle:trials=1,lengths=4096", short)
    with pytest.raises(TextError, match="needs text"):
        all_cases("needle:trials=1", Context(TOKENIZER, None))


@pytest.mark.parametrize(
    ("generated", "strict", "substring"),
    [
        ("{}", 1, 1),
        ("{}. The", 1, 1),
        ("7 {}", 0, 1),
        ("3{}", 0, 1),
        ("{}5", 0, 1),
        ("", 0, 0),
        ("35", 0, 0),
        ("secret", 0, 0),
    ],
)
def test_strict_is_the_first_integer_and_substring_anywhere(generated, strict, substring):
    suite = suites.load("needle:lengths=256,depths=0.5,trials=1", context(PROSE))
    case = next(suite.cases(suite.cells()[0]))
    score = suite.score(case, Answer((), (), generated.format(case.target["number"])))
    assert score == {"accuracy_strict": strict, "accuracy_substring": substring}


# pg19


def test_pg19_scores_every_byte_of_every_book_exactly_once():
    whole = all_cases("pg19:bytes_per_book=0", context("short", PROSE, "the third", "never read"))
    assert [TOKENIZER.decode(case.forced) for case in whole] == ["short", PROSE, "the third"]
    assert [case.prompt for case in whole] == [(TOKENIZER.bos,)] * 3
    assert [case.target["num_bytes"] for case in whole] == [len(case.forced) for case in whole]
    assert suites.load("pg19:bytes_per_book=0", context("a", "bcd")).cells() == [{"context": 3}]


def test_pg19_cuts_between_characters():
    for size in range(1, 9):
        for start in range(4):
            text = "€äx€äx€äx"
            (case,) = all_cases(f"pg19:books=1,bytes_per_book={size + 3},start={start}", context(text))
            assert TOKENIZER.decode(case.forced) in text
            assert size - 1 <= len(case.forced) <= size + 3
    with pytest.raises(TextError, match="no byte 99"):
        all_cases("pg19:start=99", context("short"))


def test_pg19_metrics_are_those_of_the_definitions():
    suite = suites.load("pg19:books=1", context("one two three€"))
    (case,) = suite.cases(suite.cells()[0])
    score = suite.score(case, Answer(case.forced, (-math.log(2),) * 16))
    assert (score["num_bytes"], score["num_tokens"], score["num_words"]) == (16, 16, 3)
    assert score["nll_nats"] == pytest.approx(16 * math.log(2))
    assert score["bits_per_byte"] == pytest.approx(1)
    assert score["token_ppl"] == pytest.approx(2)
    assert score["word_ppl"] == pytest.approx(2 ** (16 / 3))
    assert suite.score(case, Answer(case.forced, (-1e4,) * 16))["word_ppl"] == math.inf
    with pytest.raises(ValueError, match="15 of 16 tokens"):
        suite.score(case, Answer(case.forced, (-1.0,) * 15))


def test_pg19_counts_the_bytes_of_the_tokens_it_scores(other):
    """Without BOS the first token is given, and its bytes are nobody's score."""
    text = "🙂 one two three. Sentence 12 — of a story.\n" * 3
    suite = suites.load("pg19:books=1", context(text, tokenizer=other))
    ((cell,), (case,)) = suite.cells(), suite.cases({"context": 0})
    given = list(case.prompt) if other.bos is None else []
    assert cell == {"context": len(other.encode(text))}
    assert [*given, *case.forced] == other.encode(text)
    rest = text.encode()[len(other.decode(given).encode()) :]
    score = suite.score(case, Answer(case.forced, (-1.0,) * len(case.forced)))
    assert score["num_bytes"] == len(rest) == (len(text.encode()) if other.bos is not None else len(rest))
    assert other.bos is not None or len(rest) == len(text.encode()) - 4, "an emoji is four tokens of a byte"
    assert score["num_words"] == len(rest.decode().split())
    assert score["bits_per_byte"] == pytest.approx(len(case.forced) / math.log(2) / len(rest))


def test_pg19_refuses_a_tokenizer_that_loses_text():
    class Lossy(ByteTokenizer):
        name = "lossy"

        def encode(self, text):
            return [id for id in super().encode(text) if id != ord("x")]

    where = context("all of it", "a fox", tokenizer=Lossy())
    with pytest.raises(TextError, match="lossy does not give document 1 back"):
        all_cases("pg19", where)

    class NoBos(ByteTokenizer):
        bos = None

    with pytest.raises(TextError, match="nothing is left to score"):
        all_cases("pg19", context("a", tokenizer=NoBos()))


def test_pg19_says_when_it_did_not_read_pg19():
    notes = suites.load("pg19", context(PROSE)).notes()
    assert notes["is_pg19"] == "no" and notes["text"].startswith("file:story.txt@")


@NEEDS_PG19
def test_genuine_books_are_what_their_index_says():
    text = resolve(None)
    assert text.kind == "pg19" and "unverified" not in text.label
    suite = suites.load("pg19:bytes_per_book=0,books=2", Context(TOKENIZER, text))
    assert suite.notes()["is_pg19"] == "yes"
    for case, document in zip(suite.cases(suite.cells()[0]), text.documents, strict=False):
        assert TOKENIZER.decode(case.forced) == document.text and "\r\n" not in document.text
