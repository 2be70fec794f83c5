"""Which numbers are scores of tasks: by metric, and of lm-eval by suite, whose metrics are its own.

Their tables are `scrolls.py`, `lm_eval.py` and `tasks.py`; the verdict has no column for them and “All
numbers” leaves them out.
"""

from __future__ import annotations

import pandas as pd

#: Official metrics of SCROLLS's examples, and what each makes of a task.
SCROLLS = {
    "rouge1": "ROUGE, geometric mean",
    "rouge2": "ROUGE, geometric mean",
    "rougeL": "ROUGE, geometric mean",
    "token_f1": "token F1",
    "exact_match": "exact match",
}
GOLD = ("gold_nll_nats", "gold_tokens", "gold_bytes")
#: Of several needles that were asked for together, in the order of the table.
SEVERAL = {"accuracy_any": "any found", "accuracy_all": "all found", "accuracy_mean": "mean recall"}
RULER = {
    "ruler_all": "share of questions with all answers",
    "ruler_part": "share of the answers (what RULER calls string_match_all)",
}
RECALL = {
    "recall_accuracy": "share of queries answered",
    "gold_nll_nats": "nats of the right value (lower is better)",
}
LM_EVAL = "lm_eval"


def suites_with(rows: pd.DataFrame, names: object) -> list[str]:
    """Spec strings of suites that scored cases by any of these metrics, in plan order."""
    return list(dict.fromkeys(rows.loc[rows["metric"].isin(list(names)) & rows["case"].notna(), "suite"]))


def of_lm_eval(rows: pd.DataFrame) -> pd.Series:
    """Which rows are numbers of a whole lm-eval task; costs of a scored continuation share their phase."""
    whole = (rows["suite_name"] == LM_EVAL) & rows["case"].isna() & (rows["phase"] == "score")
    return whole & ~rows["metric"].str.startswith(("continuation_", "peak_continuation_", "new_tokens"))


def of_tasks(rows: pd.DataFrame) -> pd.Series:
    """Which rows are scores of any of these tasks."""
    names = [*SCROLLS, *GOLD, *SEVERAL, *RULER, *RECALL]
    return of_lm_eval(rows) | (rows["metric"].isin(names) & rows["case"].notna())
