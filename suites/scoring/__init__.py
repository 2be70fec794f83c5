"""The field's own rules for marking a generated answer, and for one number over many answers.

    rouge.py    ROUGE-1/2/L F-measure, no stemming, the best reference of each
    squad.py    token F1 and exact match after SQuAD's normalisation, the best reference
    corpus.py   examples -> a task's number -> SCROLLS's number

Everything is a share of 0 to 1; the field prints it times 100. Pure functions over strings.
"""

from .corpus import SCROLLS_SEVEN, scrolls_score, task_score
from .rouge import rouge
from .squad import exact_match, normalise, token_f1

__all__ = ["SCROLLS_SEVEN", "exact_match", "normalise", "rouge", "scrolls_score", "task_score", "token_f1"]
