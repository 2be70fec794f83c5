"""Training batches: a pure function of (seed, step), weighted as stated, never with evaluation's words."""

import os
import re

import numpy as np
import pytest

from suites.text import load_books, resolve
from suites.training_mix import MIN_LENGTH, NEEDLE_BYTES, QUESTION_BYTES, TrainingMix
from suites.words import EVALUATION_WORDS, ranked_words, training_words

DATA = os.environ.get("KVMARK_DATA")  # before a fixture hides it
NEEDLE = re.compile(
    r"(What is t|T)he secret number of ([a-z]+)(?: is (\d{5})\. |\? The secret number of \2 is (\d{5})\.)"
)


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


def test_needles_are_stated_before_they_are_asked_and_only_answers_are_scored(books):
    kept = set(EVALUATION_WORDS)
    for row, batch, index in rows_of(one_kind(books, 1), 40):
        stated, asked = {}, 0
        for match in NEEDLE.finditer(row.decode("latin-1")):
            answered = match[3] is None
            first, last = match.span(4 if answered else 3)
            assert match[2] not in kept
            assert (batch.answer_mask_BT[index, first:last] == answered).all()
            assert (batch.loss_weight_BT[index, first:last] > 0).all() == answered
            if answered:
                assert stated[match[2]] == match[4]
                asked += 1
            else:
                stated[match[2]] = match[3]
        assert 1 <= asked <= min(6, max(1, len(row) // 100), len(stated)) and len(stated) <= 8
        assert batch.answer_mask_BT[index].sum() == 5 * asked
        assert (batch.loss_weight_BT[index] == 0).sum() == 5 * len(stated)
        assert row.endswith(b".")


def test_dense_answers_occurred_before(books):
    repetitions = lists = 0
    for row, batch, index in rows_of(one_kind(books, 2), 40):
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
        else:
            repetitions += 1
            first = int(dense.argmax())
            period = first - 3
            assert dense[first:].all()
            assert row[first:] == row[3 : len(row) - period]
            assert (batch.loss_weight_BT[index, :first] == 0).all()
    assert repetitions > 10 and lists > 30


def test_longest_needle_and_question_fit_the_shortest_sequence(books):
    assert NEEDLE_BYTES + QUESTION_BYTES <= MIN_LENGTH
    mix = one_kind(books, 1, lengths=(MIN_LENGTH,), length_probabilities=(1.0,), tokens_per_step=1024)
    assert all(batch.answer_mask_BT[row].sum() == 5 for _, batch, row in rows_of(mix, 10))


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
