"""The field's own rules: worked by hand, and against the package that the field uses."""

from __future__ import annotations

import math
import sys

import pytest

from suites.data import DataError
from suites.scoring import SCROLLS_SEVEN, exact_match, normalise, rouge, scrolls_score, task_score, token_f1
from suites.scoring.rouge import require


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat's\nhat!", "cats hat"),
        ("a an the", ""),
        ("Anthem of a theatre", "anthem of theatre"),
        ("co-op, U.S.A. (1999)", "coop usa 1999"),
        ("THE-END a.n", "theend"),  # punctuation goes first, and what is an article then, goes too
        ("“Zoë’s”  naïve — Ⅷ", "“zoë’s” naïve — ⅷ"),  # only ASCII punctuation goes
        ("", ""),
    ],
)
def test_squad_normalisation(text, plain):
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "match"),
    [
        ("The cat's hat!", ["cats  HAT"], 1, 1),
        ("blue car", ["a red car", "the blue, blue car"], 2 * 2 / (2 + 3), 0),  # blue, car of blue, blue, car
        ("red red red", ["red"], 2 * 1 / (3 + 1), 0),  # words count as often as both have them
        ("red red", ["red blue red"], 2 * 2 / (2 + 3), 0),
        ("no", ["yes", "No."], 1, 1),
        ("", ["anything"], 0, 0),
        ("the", [""], 0, 1),  # nothing is left of either: F1 of SQuAD 1.1 is 0
        ("Not mentioned", ["Entailment", "Not mentioned"], 1, 1),
        ("naïve Zoë", ["naive zoe"], 0, 0),
        ("Straße 8", ["8 straße"], 1, 0),
    ],
)
def test_token_f1_and_exact_match_take_the_best_reference(prediction, references, f1, match):
    assert token_f1(prediction, references) == pytest.approx(f1)
    assert exact_match(prediction, references) == match
    assert token_f1(prediction, references[::-1]) == token_f1(prediction, references)


@pytest.mark.parametrize(
    ("prediction", "references", "r1", "r2", "rl"),
    [
        # the cat | cat sat | sat down: 3 of 3 words and 2 of 2 bigrams found, of 4 words and 3 bigrams wanted
        ("The cat sat.", ["the cat sat down"], 6 / 7, 4 / 5, 6 / 7),
        ("sat cat the", ["the cat sat"], 1, 0, 1 / 3),  # the longest common subsequence has one word
        # Each type takes the reference that is best for it: words of the first, order of the second.
        ("a b c d", ["d c b a", "a b x y"], 1, 1 / 3, 1 / 2),
        ("running", ["run"], 0, 0, 0),  # no stemming
        ("", ["a b"], 0, 0, 0),
        ("a b", [""], 0, 0, 0),
        ("", [""], 0, 0, 0),
        ("a\n\nb", ["A — b!"], 1, 1, 1),  # neither lines nor signs are words
        ("café 8", ["caf 8"], 1, 1, 1),  # é is no letter of ROUGE's: it ends a word
    ],
)
def test_rouge_by_hand(prediction, references, r1, r2, rl):
    found = rouge(prediction, references)
    assert found == {key: pytest.approx(v) for key, v in (("rouge1", r1), ("rouge2", r2), ("rougeL", rl))}


def test_rouge_is_that_of_the_package_for_the_best_reference():
    from rouge_score.rouge_scorer import RougeScorer  # imports SciPy, which nothing else here needs

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    words = (
        "Der Hund bit the man, and the man — naïve as ever — bit the dog's tail; nobody knows why. 42".split()
    )
    texts = [" ".join(words[(i * k) % len(words)] for i in range(3 + 2 * k)) for k in range(1, 12)]
    for index, prediction in enumerate(texts):
        references = [texts[(index + shift) % len(texts)] for shift in (1, 4, 6)]
        each = [scorer.score(reference, prediction) for reference in references]
        expected = {key: max(scores[key].fmeasure for scores in each) for key in each[0]}
        assert rouge(prediction, references) == pytest.approx(expected, abs=1e-12)
        assert 0 < expected["rouge1"] < 1


def test_without_the_package_there_is_one_sentence(monkeypatch):
    require()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(DataError, match=r"^ROUGE needs .* pip install rouge-score\.$"):
        require()


def test_a_tasks_number_is_the_geometric_mean_of_means():
    """An example without a common bigram counts in the mean of ROUGE-2, not as a product of 0."""
    examples = [
        {"rouge1": 0.4, "rouge2": 0.0, "rougeL": 0.2},
        {"rouge1": 0.8, "rouge2": 0.25, "rougeL": 0.6},
    ]
    assert task_score(examples) == pytest.approx((0.6 * 0.125 * 0.4) ** (1 / 3))
    assert task_score(examples[:1]) == 0
    assert task_score([{"token_f1": 0.2}, {"token_f1": 0.7}]) == pytest.approx(0.45)
    assert math.isnan(task_score([])) and math.isnan(task_score([{"exact_match": math.nan}]))


def test_scrolls_is_the_plain_mean_of_all_seven_and_of_nothing_else():
    tasks = {task: index / 10 for index, task in enumerate(SCROLLS_SEVEN)}
    assert scrolls_score(tasks) == pytest.approx(0.3)
    assert scrolls_score(tasks | {"squality": 1.0, "summ_screen_fd_surrogate_crd3": 1.0}) == pytest.approx(
        0.3
    )
    del tasks["summ_screen_fd"]
    assert math.isnan(scrolls_score(tasks | {"summ_screen_fd_surrogate_crd3": 0.2}))
