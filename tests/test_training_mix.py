"""Training batches: a pure function of (seed, step), weighted as stated, never with evaluation's words."""

import os
import re

import numpy as np
import pytest

from suites.needles.forms import FORMS
from suites.text import load_books, resolve
from suites.training import needles
from suites.training.mix import MIN_LENGTH, TrainingMix
from suites.training.needles import MAX_NEEDLES
from suites.training.recall import letters
from suites.training.sentences import FIXED, draw_template, kept_from_training
from suites.words import EVALUATION_WORDS, NEEDLE, QUESTION, ranked_words, training_words
from suites.workloads import ruler

DATA = os.environ.get("KVMARK_DATA")  # before a fixture hides it
STATED = re.compile(r" The secret number of ([a-z]+) is (\d{5})\. ")


@pytest.fixture(scope="module")
def books():
    """Python's documentation as one book: real prose that every machine has."""
    return ["\n".join(document.text for document in resolve(None).documents).encode()]


@pytest.fixture(autouse=True, scope="module")
def bundled_prose():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KVMARK_DATA", raising=False)
        yield


def one_kind(books, kind: int, **options) -> TrainingMix:
    return TrainingMix(books, shares=tuple(float(index == kind) for index in range(3)), **options)


def rows_of(mix: TrainingMix, steps: int):
    for step in range(steps):
        batch = mix.batch(step)
        for row, tokens in enumerate(batch.tokens_BT1):
            yield bytes(tokens[1:].astype(np.uint8)), batch, row


def test_a_batch_depends_on_seed_and_step_alone(books):
    first, second = TrainingMix(books, seed=3), TrainingMix(books, seed=3)
    for step in (5, 0, 5):
        ours, theirs = first.batch(step), second.batch(step)
        np.testing.assert_array_equal(ours.tokens_BT1, theirs.tokens_BT1)
        np.testing.assert_array_equal(ours.loss_weight_BT, theirs.loss_weight_BT)
    drawn = [TrainingMix(books, seed).batch(step).tokens_BT1 for seed in (3, 4) for step in (0, 1)]
    assert len({tokens.tobytes() for tokens in drawn}) == 4


def test_shapes_bos_and_length_shares(books):
    mix = TrainingMix(books)
    lengths = []
    for step in range(400):
        batch = mix.batch(step)
        rows, length = batch.loss_weight_BT.shape
        lengths.append(length)
        assert rows * length == 2048 and batch.tokens_BT1.shape == (rows, length + 1)
        assert (batch.tokens_BT1[:, 0] == 256).all() and batch.tokens_BT1[:, 1:].max() < 256
    shares = [lengths.count(length) / 400 for length in (256, 512, 1024, 2048)]
    np.testing.assert_allclose(shares, (0.4, 0.3, 0.2, 0.1), atol=0.08)


def test_loss_weights_sum_as_the_loss_is_defined(books):
    mix = TrainingMix(books)
    seen = set()
    for step in range(100):
        batch = mix.batch(step)
        weights, answers, dense = batch.loss_weight_BT, batch.answer_mask_BT, batch.dense_mask_BT
        assert not (answers & dense).any()
        for mask in (answers, dense):
            if mask.any():
                assert weights[mask].sum() == pytest.approx(0.5, abs=1e-4)
        ordinary = (weights > 0) & ~answers & ~dense
        np.testing.assert_allclose(weights[ordinary], 1 / weights.size)
        seen.add((bool(answers.any()), bool(dense.any())))
    assert len(seen) == 4


def test_prose_is_consecutive_bytes_of_a_book_and_all_ordinary(books):
    for row, batch, _ in rows_of(one_kind(books, 0), 5):
        assert row in books[0]
        assert batch.loss_weight_BT.sum() == pytest.approx(1, abs=1e-4)


def answers_of(batch, row):
    """Where each answer of a row begins and ends."""
    edges = np.flatnonzero(np.diff(batch.answer_mask_BT[row].astype(int), prepend=0, append=0))
    return edges.reshape(-1, 2).tolist()


def test_every_answer_was_stated_behind_its_key_and_is_scored_when_asked_for(books):
    kinds, most = set(), 0
    for row, batch, index in rows_of(one_kind(books, 1), 150):
        asked = answers_of(batch, index)
        most = max(most, row.count(b" The secret number of "))
        assert 1 <= len(asked) <= max(1, min(6, len(row) // 100))
        for start, end in asked:
            # The same key and mark before it, and the value was worth nothing then.
            first = row.index(row[start - 6 : end])
            assert first + 6 < start and not batch.answer_mask_BT[index, first : first + 6].any()
            value = slice(first + 6, first + 6 + end - start)
            assert (batch.loss_weight_BT[index, value] == 0).all()
            assert (batch.loss_weight_BT[index, start:end] > 0).all()
            text = row[start:end].decode()
            kinds.add("number" if text.isdigit() else "letters" if text.isalpha() else "groups")
    assert kinds == {"number", "letters", "groups"} and most > 8


def test_the_fixed_template_is_that_of_the_needle_suite(books):
    assert "".join(part.decode() for part, _ in FIXED.state(("word", 0), "12345")) == NEEDLE.format(
        word="word", number="12345"
    )
    answer = "".join(part.decode() for part, _ in FIXED.answer([("word", 0)], ["12345"]))
    assert answer == QUESTION.format(word="word") + "12345."
    several = "".join(part.decode() for part, _ in FIXED.answer([("one", 0), ("two", 0)], ["1", "2"]))
    form = FORMS["number"]
    assert several == form.ask(["one", "two"]) + form.answer(["one", "two"], ["1", "2"]).rstrip(" ")
    kept, stated = set(EVALUATION_WORDS), 0
    for row, batch, index in rows_of(one_kind(books, 1), 40):
        text, seen = row.decode("latin-1"), set()
        for match in STATED.finditer(text):
            assert match[1] not in kept
            if match[1] in seen:  # in an answer to a question for several
                continue
            seen.add(match[1])
            stated += 1
            assert (batch.loss_weight_BT[index, slice(*match.span(2))] == 0).all()
    assert stated > 30


def test_no_wording_of_evaluation_is_drawn(books):
    """No sentence of the other variants or of ruler, and not what stands between key and value."""
    rng, kept = np.random.default_rng(0), kept_from_training()
    assert {"stock", "pieces", "magic", "serial", "city", "kept", "stands"} <= kept
    words = TrainingMix(books).template_words
    assert not set(words) & kept
    texts = [form.needle for name, form in FORMS.items() if name != "number"] + [ruler.NEEDLE, ruler.LINK]
    frames = [re.split(r"\{\w+\}", text) for text in texts]
    drawn = {draw_template(rng, words) for _ in range(20_000)}
    assert len(drawn) > 12_000 and FIXED in drawn
    for template in drawn:
        assert " / " not in template.link
        assert all((template.lead, template.link) != (before, between) for before, between, _ in frames)


def test_templates_are_made_of_the_words_that_evaluation_does_not_use(books, monkeypatch):
    """Not of those that may be keys: among these are words of evaluation's templates."""
    asked, mix = [], TrainingMix(books)
    monkeypatch.setattr(
        needles, "draw_template", lambda rng, words: asked.append(words) or draw_template(rng, words)
    )
    for step in range(20):
        mix.batch(step)
    assert asked and all(words is mix.template_words for words in asked)


def test_needles_grow_with_the_length(books):
    mix = one_kind(books, 1, lengths=(2048,), length_probabilities=(1.0,))
    counts = [row.count(b" The secret number of ") for row, _, _ in rows_of(mix, 300)]
    assert 20 < max(counts) <= MAX_NEEDLES + 6


def test_dense_answers_occurred_before(books):
    repetitions = lists = pairs = 0
    for row, batch, index in rows_of(one_kind(books, 2), 60):
        dense = batch.dense_mask_BT[index]
        numbers = [match for match in re.finditer(rb"\d{5}", row)]
        if numbers:
            lists += 1
            known = set()
            for match in numbers:
                answered = dense[match.start() : match.end()]
                assert answered.all() == (match[0] in known) and answered.any() == answered.all()
                assert (batch.loss_weight_BT[index, match.start() : match.end()] > 0).all() == answered.all()
                known.add(match[0])
            continue
        first = int(dense.argmax())
        assert (batch.loss_weight_BT[index, :first] == 0).all()
        if dense[first:].all():
            repetitions += 1
            period = first - 3
            assert row[first:] == row[3 : len(row) - period]
        else:
            pairs += 1
            assert not (batch.loss_weight_BT[index][~dense]).any()
    assert repetitions > 20 and lists > 50 and pairs > 20


@pytest.mark.parametrize("seed", range(20))
def test_letters_ask_for_what_their_pairs_say(seed):
    rng = np.random.default_rng(seed)
    parts = letters(rng, 512)
    values = {part for part, kind in parts if kind == 3}
    stated, pairs = [], {}
    for part, kind in parts:
        if kind == 3 and not pairs:
            break
        if kind == 1:
            stated.append(part)
    listing = [part for part, _ in parts]
    size = len(listing[0]) - 1
    for pair in listing:
        if len(pair) != size + 1 or pair[:-1] in pairs:
            break
        pairs[pair[:-1]] = pair[-1:]
    asked = [
        (before, value) for (before, _), (value, kind) in zip(parts, parts[1:], strict=False) if kind == 3
    ]
    assert len(asked) > 10 and len(pairs) >= 2 and values
    assert all(pairs[before[-size:]] == value for before, value in asked)
    letters_of = [set(b"".join(pairs)), set(b"".join(pairs.values()))]
    assert not letters_of[0] & letters_of[1]


def test_a_needle_fits_the_shortest_sequence(books):
    fixed = sum(
        len(part) for part, _ in FIXED.state(("x" * 7, 0), "99999") + FIXED.answer([("x" * 7, 0)], ["99999"])
    )
    assert fixed <= MIN_LENGTH
    mix = one_kind(books, 1, lengths=(MIN_LENGTH,), length_probabilities=(1.0,), tokens_per_step=1024)
    assert all(len(answers_of(batch, row)) == 1 for _, batch, row in rows_of(mix, 30))


def test_words_of_evaluation_are_never_training_keys(books):
    assert len(EVALUATION_WORDS) == len(set(EVALUATION_WORDS)) == 560
    assert all(re.fullmatch("[a-z]{4,7}", word) for word in EVALUATION_WORDS)
    assert not set(training_words(books)) & set(EVALUATION_WORDS)
    assert set(ranked_words(books)) & set(EVALUATION_WORDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": (64,), "length_probabilities": (1.0,)}, "below 128"),
        ({"lengths": (256,)}, "as many probabilities"),
        ({"books": [b"short"]}, "as long as the longest"),
        ({"books": [b"the same words again and again " * 200]}, "key words"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(books, change, message):
    with pytest.raises(ValueError, match=message):
        TrainingMix(**{"books": books, **change})


@pytest.mark.skipif(not DATA, reason="KVMARK_DATA is unset: no PG-19 training books")
def test_the_committed_words_are_those_of_the_training_books():
    ranked = ranked_words(book for _, book in load_books(DATA)[0])
    assert len(ranked) == 2800
    assert tuple(ranked[::5]) == EVALUATION_WORDS
