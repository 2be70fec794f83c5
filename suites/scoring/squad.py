"""Token F1 and exact match as SQuAD 1.1 defines them (Rajpurkar et al. 2016, section 6.1).

Both compare normalised texts: lower case, no ASCII punctuation, no English articles, single spaces. Of
several references the best one counts. Two texts without a word left in common have F1 0, and so have two
that are both empty; only exact match takes empty for equal to empty.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """ "The  Cat's hat!" -> "cats hat". Punctuation goes before the articles: "a-b" is the word "ab"."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the prediction is one of the references, both normalised."""
    return max(float(normalise(prediction) == normalise(reference)) for reference in references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the words of both, as multisets."""
    return max(_f1(normalise(prediction).split(), normalise(reference).split()) for reference in references)


def _f1(found: list[str], wanted: list[str]) -> float:
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0
