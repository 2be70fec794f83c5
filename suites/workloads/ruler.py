"""Synthetic tasks in RULER's manner: many keys, values or questions, chains of names, common words.

    multikey     one of `keys` keys is asked for
    multivalue   one key has `values` values, all are asked for
    multiquery   `queries` keys are asked for at once
    vartrack     names stand for names that stand for a number, `hops` steps on, in `chains` chains: all the
                 names of one number are asked for
    commonwords  a list of made-up words: its `common` commonest are asked for

    cell   length × task, ascending; `length` is the most tokens that the whole prompt may have
    case   one trial, answered greedily; all of it is drawn from the SHA-256 of its id

`ruler_part` is the share of the answers that occur in what was generated, in upper or lower case (RULER
calls this `string_match_all`); `ruler_all` says whether all do. Tasks and counts are RULER's (arXiv
2404.06654), but keys and words (made up), templates and prose (the text that was named) are not: scores do
not compare with its own. A common word occurs 30 times and any other 3 times, below 4,096 tokens 6 times and
once, as there, without its worked example in front. A question for several numbers ends like that for the
first of them. Our own networks were trained on single questions in another template.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..documents import TextError
from ..needles.compose import compose, until_answer
from ..needles.draw import made_up_words, numbers
from ..needles.forms import listed
from ..suite import Answer, Axes, Case, Suite, seed_of

TASKS = ("multikey", "multivalue", "multiquery", "vartrack", "commonwords")
NEEDLE = " A number kept for {key} is {value}. "
ASK_ONE = " Which number is kept for {keys}? A number kept for {key} is "
ASK_ALL = " Which numbers are kept for {keys}? A number kept for {key} is "
LINK = " The name {key} stands for {value}. "
ASK_NAMES = " Which names stand for {value}, in one step or several? The names that stand for {value} are "
LIST = "Here is a list of words:"
ASK_WORDS = ". Which {common} words are the commonest in the list? The {common} commonest words are "
#: Times that common and other words occur, from a length on.
OFTEN = ((4096, 30, 3), (0, 6, 1))
#: Tokens that an answer may have beyond what is asked for.
MORE = 16


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...] = TASKS
    lengths: tuple[int, ...] = (1024, 2048)
    trials: int = 10
    keys: int = 4
    values: int = 4
    queries: int = 4
    hops: int = 4
    chains: int = 1
    common: int = 10

    def __post_init__(self) -> None:
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, not {unknown[0]}.")
        if min(self.lengths) < 256:
            raise ValueError("lengths must be 256 or more, room for a task and its question.")
        counts = (self.trials, self.keys, self.values, self.queries, self.hops, self.chains, self.common)
        if not 1 <= min(counts) <= max(counts) <= 1000:
            raise ValueError("trials, keys, values, queries, hops, chains and common must be 1 to 1000.")

    def task(self, name: str) -> str:
        """The task with its counts, for ids."""
        counts = {
            "multikey": f"keys={self.keys}",
            "multivalue": f"values={self.values}",
            "multiquery": f"queries={self.queries}",
            "vartrack": f"hops={self.hops},chains={self.chains}",
            "commonwords": f"common={self.common}",
        }
        return f"{name}:{counts[name]}"


@dataclass
class Hidden:
    """Sentences for the prose, and of some the part that is an answer."""

    question: str = ""
    sentences: list[str] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)  # by sentence

    @property
    def whole_answer(self) -> str:
        """At its longest: in whole sentences."""
        return "".join(self.sentences[index] for index in self.answers)

    def say(self, template: str, key: str, value: str, answer: str | None = None) -> None:
        if answer is not None:
            self.answers[len(self.sentences)] = answer
        self.sentences.append(template.format(key=key, value=value))


class Workload(Suite):
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        lengths, tasks = sorted(set(self.options.lengths)), [t for t in TASKS if t in self.options.tasks]
        return [{"length": length, "task": task} for length in lengths for task in tasks]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Raises TextError when a task has no room in the length, or the text is too short for it."""
        task, length = str(cell["task"]), int(cell["length"])
        for trial in range(self.options.trials):
            id = f"ruler/{self.options.task(task)}/seed={self.context.seed}/length={length}/trial={trial}"
            case = self._words(id, length) if task == "commonwords" else self._hidden(id, length, task)
            yield replace(case, axes={**cell, "prompt_tokens": len(case.prompt)})

    def _case(self, id: str, prompt: tuple[int, ...], answers: list[str], whole: str) -> Case:
        most = len(self.context.tokenizer.encode(whole)) + MORE
        return Case(id=id, prompt=prompt, max_new_tokens=most, target=answers, seed=seed_of(id))

    def _hidden(self, id: str, length: int, task: str) -> Case:
        rng = np.random.default_rng(seed_of(f"{id}/task"))
        hidden = self._names(rng) if task == "vartrack" else self._needles(rng, task)
        depths = rng.random(len(hidden.sentences)).tolist()
        if task == "vartrack":
            depths.sort()
        answers = list(hidden.answers.values())
        sentences = list(zip(depths, hidden.sentences, strict=True))
        prompt = compose(self.context, id, length, sentences, hidden.question, answers[0])
        case, watched = self._case(id, prompt.ids, answers, hidden.whole_answer), []
        for index, answer in hidden.answers.items():
            start = prompt.offsets[index] + hidden.sentences[index].index(answer)
            watched.append(prompt.span(start, start + len(answer)))
        return replace(case, watched=tuple(watched))

    def _needles(self, rng: np.random.Generator, task: str) -> Hidden:
        num_keys = {"multikey": self.options.keys, "multiquery": self.options.queries}.get(task, 1)
        each = self.options.values if task == "multivalue" else 1
        keys, values = made_up_words(rng, num_keys), numbers(rng, num_keys * each)
        asked = keys if task == "multiquery" else keys[:1]
        single = len(asked) * each == 1
        hidden = Hidden((ASK_ONE if single else ASK_ALL).format(keys=listed(asked), key=asked[0]))
        for number, value in enumerate(values):
            key = keys[number // each]
            hidden.say(NEEDLE, key, value, value if key in asked else None)
        return hidden

    def _names(self, rng: np.random.Generator) -> Hidden:
        """Links of a chain stand in its order, chains among each other anyhow."""
        chains, steps = self.options.chains, self.options.hops + 1
        names, values = made_up_words(rng, chains * steps), numbers(rng, chains)
        hidden, done = Hidden(ASK_NAMES.format(value=values[0])), [0] * chains
        for chain in rng.permutation(np.repeat(np.arange(chains), steps)).tolist():
            mine, step = names[chain * steps : (chain + 1) * steps], done[chain]
            value = mine[step - 1] if step else values[chain]
            hidden.say(LINK, mine[step], value, mine[step] if chain == 0 else None)
            done[chain] += 1
        return hidden

    def _words(self, id: str, length: int) -> Case:
        """As many other words as there is room for. Raises TextError when not even one of them fits."""
        common, tokenizer = self.options.common, self.context.tokenizer
        _, often, seldom = next(row for row in OFTEN if length >= row[0])
        words = made_up_words(np.random.default_rng(seed_of(id)), common + length // seldom)
        answers, others = words[:common], words[common:]

        def filled(count: int) -> tuple[int, ...]:
            listing = answers * often + others[:count] * seldom
            order = np.random.default_rng(seed_of(f"{id}/order")).permutation(len(listing))
            text = " ".join([LIST, *(listing[index] for index in order)])
            return until_answer(tokenizer, text + ASK_WORDS.format(common=common), answers[0])

        sample = others[:100]
        each = seldom * len(tokenizer.encode(" ".join(sample))) / len(sample)
        count = int((length - len(filled(0))) / each) + 1
        while count > 0 and (excess := len(prompt := filled(count)) - length) > 0:
            count -= math.ceil(excess / each)
        if count < 1:
            raise TextError(f"A prompt of {length} tokens has no room for {common} common words and others.")
        return self._case(id, prompt, answers, listed(answers))

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        hits = [word.lower() in answer.text.lower() for word in case.target]
        return {"ruler_all": float(all(hits)), "ruler_part": sum(hits) / len(hits)}

    def notes(self) -> dict[str, str]:
        return {
            "protocol": "RULER's tasks with words, templates and prose of our own; greedy through the cache",
            "scoring": "ruler_part = share of the answers that occur (RULER's string_match_all)",
            "training": "our own networks were not trained on these tasks",
            "text": self.context.text.label if self.context.text else "none",
        }
