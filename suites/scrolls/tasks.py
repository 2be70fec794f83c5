"""The tasks, how each is scored, and what a prompt of the ZeroSCROLLS kind says.

Metrics are SCROLLS's own. The wording is ours: ZeroSCROLLS and TOVA have the same parts and ask for the same
things (a short phrase with "unanswerable" and yes/no for QASPER, a paragraph for SQuALITY), in other words.
QuALITY is to be answered by the option's text, as SCROLLS scores it; ZeroSCROLLS asks for its letter.

`max_new` bounds an answer in tokens. It leaves room for the longest reference in usual subword tokens, and
bounds what a model costs that never ends by itself; with bytes as tokens most summaries are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..scoring import exact_match, rouge, token_f1

Scores = Callable[[str, Sequence[str]], dict[str, float]]


def f1(prediction: str, references: Sequence[str]) -> dict[str, float]:
    return {"token_f1": token_f1(prediction, references)}


def match(prediction: str, references: Sequence[str]) -> dict[str, float]:
    return {"exact_match": exact_match(prediction, references)}


@dataclass(frozen=True)
class Task:
    """`scores` marks an answer. `asked` names the query in a prompt; None: inputs have no query."""

    scores: Scores
    max_new: int
    instruction: str
    asked: str | None = "Question"
    cue: str = "Answer:"
    remark: str = ""

    @property
    def stop(self) -> tuple[str, ...]:
        """Phrases and labels end with their line; summaries have paragraphs, and end with the end token."""
        return () if self.scores is rouge else ("\n",)


_ONLY = "Write the answer and nothing else."
_EPISODE = (
    "Above is the transcript of an episode of a series. Summarize in a paragraph what happens in the episode."
)

TASKS = {
    "gov_report": Task(
        rouge, 1024, "Above is a report of a government agency. Summarize it.", asked=None, cue="Summary:"
    ),
    "summ_screen_fd": Task(rouge, 512, _EPISODE, asked=None, cue="Summary:"),
    "qmsum": Task(
        rouge,
        512,
        "Above is the transcript of a meeting. Answer the request in one or a few sentences.",
        asked="Request",
    ),
    "qasper": Task(
        f1,
        128,
        "Above is a scientific article. Answer the question with a short phrase or a sentence from it. "
        'If the article does not tell, the answer is "unanswerable". A question of yes or no is answered '
        f'"yes", "no" or "unanswerable". {_ONLY}',
    ),
    "narrative_qa": Task(f1, 64, f"Above is a story. Answer the question in a few words. {_ONLY}"),
    "quality": Task(
        match,
        128,
        "Above is a story. Of the four answers below the question one is right. Write the text of that "
        "answer, without its letter and nothing else.",
    ),
    "contract_nli": Task(
        match,
        16,
        "Above is a contract. Does the contract entail the statement, contradict it, or not mention it? "
        'Answer "Entailment", "Contradiction" or "Not mentioned" and nothing else.',
        asked="Statement",
    ),
    "squality": Task(rouge, 512, "Above is a story. Answer the question in a paragraph."),
    "summ_screen_fd_surrogate_crd3": Task(
        rouge,
        512,
        _EPISODE,
        asked=None,
        cue="Summary:",
        remark="a surrogate made of CRD3 dialogues, NOT SummScreen",
    ),
}
#: What is run unless tasks are named: SCROLLS and SQuALITY. A surrogate must be asked for by its name.
OFFICIAL = tuple(task for task in TASKS if "surrogate" not in task)
