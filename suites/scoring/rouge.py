"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by the package `rouge-score`, as SCROLLS sets it.

F-measure, no stemming; each of the three takes the reference that is best for it. Words are runs of a-z and
0-9 after lower case: all else, letters with accents too, separates words, and so do line breaks. Hence the
sentence split before ROUGE in SCROLLS's own evaluator changes none of these three (it is for ROUGE-Lsum).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

from ..data import DataError

TYPES = ("rouge1", "rouge2", "rougeL")


def rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of 0 to 1 by type. Raises DataError where the package is missing."""
    best = _scorer().score_multi(list(references), prediction)
    return {name: float(best[name].fmeasure) for name in TYPES}


def require() -> None:
    """Raise DataError where the package is missing; imports nothing."""
    if importlib.util.find_spec("rouge_score") is None:
        raise DataError("ROUGE needs the package rouge-score, which is missing: pip install rouge-score.")


@functools.cache
def _scorer() -> Any:
    require()
    from rouge_score.rouge_scorer import RougeScorer  # here, since it brings nltk along

    return RougeScorer(TYPES, use_stemmer=False)
