"""SCROLLS and SQuALITY: long documents, marked by the official metrics and by the gold answer's likelihood.

    cell   one task at `length`, the most tokens of a prompt (BOS, document, question and cue)
    case   two of each example on the same prompt, which goes through the cache once:
           gold     the first reference is forced: gold_nll_nats over gold_tokens (gold_bytes) tells caches
                    apart even where a model is too weak to answer
           answer   greedy, until the task's stop string, the end token or `max_new`: the task's own metric

Rows name a case by the example's id, so that predictions can be scored again by whoever has the references;
inputs and references are not kept. The gold answer is " " and the reference without outer spaces; its end is
not scored. An empty reference is that space alone.

A corpus value is never the mean of what stands in the rows but what `suites.scoring.corpus` says. Only the
file's examples are scored: published numbers need the full validation split, and the notes say how many
there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..scoring.rouge import require, rouge
from ..scrolls.examples import Example, Files, load
from ..scrolls.prompts import FORMS, TRUNCATES, Prompt, characters, compose, continuation
from ..scrolls.tasks import OFFICIAL, TASKS
from ..suite import Answer, Axes, Case, Suite, seed_of


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...] = OFFICIAL
    prompt: Literal["zeroscrolls", "scrolls"] = "zeroscrolls"
    length: int = 4096
    examples: int = 0
    max_new: int = 1024

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"There is no task '{task}'; tasks are {', '.join(TASKS)}.")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("a task is named twice.")
        if self.length < 1 or self.max_new < 1:
            raise ValueError("length and max_new must be 1 or more.")
        if self.examples < 0:
            raise ValueError("examples must be 0 (all) or more.")


class Workload(Suite):
    needs_text = False
    options: Options

    def cells(self) -> list[dict[str, float | int | str]]:
        options = self.options
        common = {"length": options.length, "prompt": options.prompt, "truncates": TRUNCATES[options.prompt]}
        return [{"task": task, **common} for task in options.tasks]

    def cases(self, cell: Axes) -> Iterator[Case]:
        """Raises DataError or TextError when the task's file is missing or damaged, or `length` too small."""
        name = str(cell["task"])
        task, tokenizer = TASKS[name], self.context.tokenizer
        for example, prompt in self._prompts(name):
            gold = f" {example.references[0].strip()}"
            known = {
                "prompt": prompt.ids,
                "axes": {**cell, "prompt_tokens": len(prompt.ids), "kept_share": round(prompt.kept_share, 4)},
                "target": {"references": example.references, "gold_bytes": len(gold.encode())},
                "seed": seed_of(f"scrolls/{name}/{example.id}"),
            }
            yield Case(example.id, forced=continuation(tokenizer, prompt, gold), **known)
            most = min(task.max_new, self.options.max_new)
            yield Case(example.id, max_new_tokens=most, stop=task.stop, **known)

    def score(self, case: Case, answer: Answer) -> dict[str, float]:
        if case.forced is None:
            return TASKS[str(case.axes["task"])].scores(answer.text, case.target["references"])
        return {
            "gold_nll_nats": -math.fsum(answer.logprobs),
            "gold_tokens": float(len(case.forced)),
            "gold_bytes": float(case.target["gold_bytes"]),
        }

    def source(self) -> str:
        return self._files.label

    def notes(self) -> dict[str, str]:
        options, counts, limits = self.options, [], []
        for name in options.tasks:
            shares = [prompt.kept_share for _, prompt in self._prompts(name)]
            cut = sum(share < 1 for share in shares)
            counts.append(f"{name} {len(shares)} of {self._files.counts[name]} ({cut} truncated)")
            limits.append(f"{name} {min(TASKS[name].max_new, options.max_new)}")
        remarks = [f"{name} is {TASKS[name].remark}" for name in options.tasks if TASKS[name].remark]
        return {
            "protocol": "validation split; the first reference forced through the cache, an answer generated "
            "greedily from the same prompt; official metrics, the best of all references",
            "prompt": f"{options.prompt}: {FORMS[options.prompt]}",
            "truncation": f"{TRUNCATES[options.prompt]}, to at most {options.length} tokens of prompt",
            "examples": ", ".join(counts),
            "most new tokens": ", ".join(limits),
            "files": ", ".join(self._files.labels.values()),
        } | ({"surrogate": "; ".join(remarks)} if remarks else {})

    def _prompts(self, name: str) -> Iterator[tuple[Example, Prompt]]:
        form, length = self.options.prompt, self.options.length
        for example in self._files.examples[name]:
            yield example, compose(form, TASKS[name], example, self.context.tokenizer, length)

    @cached_property
    def _files(self) -> Files:
        if any(TASKS[name].scores is rouge for name in self.options.tasks):
            require()
        options = self.options
        return load(options.tasks, characters(options.length), options.examples, self.context.seed)
