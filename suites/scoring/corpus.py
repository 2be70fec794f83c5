"""From the scores of examples to one number: SCROLLS's rule (Shaham et al. 2022, section 4).

    task     ROUGE: geometric mean of the three means over examples, √³(mean R-1 · mean R-2 · mean R-L);
             token F1 and exact match: the mean over examples
    SCROLLS  the plain mean of its seven tasks; without all seven there is none

A mean of the geometric means of examples is another number, and wrong: an example without a common bigram
would count 0. SQuALITY is scored as a ROUGE task and is none of the seven (ZeroSCROLLS added it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

SCROLLS_SEVEN = ("gov_report", "summ_screen_fd", "qmsum", "qasper", "narrative_qa", "quality", "contract_nli")


def task_score(examples: Sequence[Mapping[str, float]]) -> float:
    """The task's number from each example's scores by metric; NaN without examples, or if one is NaN."""
    if not examples:
        return math.nan
    means = [math.fsum(scores[name] for scores in examples) / len(examples) for name in examples[0]]
    return math.prod(means) ** (1 / len(means))


def scrolls_score(tasks: Mapping[str, float]) -> float:
    """The mean over the seven tasks by name; others do not count, and NaN if one of the seven lacks."""
    return math.fsum(tasks.get(task, math.nan) for task in SCROLLS_SEVEN) / len(SCROLLS_SEVEN)
