"""lm-eval tasks and groups: the prompts and metrics of the library, answered through the cache.

    kvmark run --arch tova:budget=16 --suite lm_eval:tasks=piqa+hellaswag,local=true,limit=100

A cell is a task. Its requests become Cases in one call per kind, so the harness batches them, keeps finished
batches and counts what was evicted; contexts go through the policy, continuations are scored through the same
cache, and the choices of a question share one prompt. See `suites.lm_eval_bridge` for what is fed.

    tasks        names of tasks, groups or tags of lm-eval
    local        they are those of seven whose rows are on this machine; no network
    include      a folder with YAML files of your own, in lm-eval's format
    limit        the first so many documents of each task; none: all
    shots        examples before the question; none: what the task says
    max_length   longer requests are cut on the left, and rolling windows are as long; none: the context that
                 the checkpoint was trained for, and without a checkpoint no bound
    bootstrap    draws for standard errors that have no formula (a perplexity's)

Numbers are lm-eval's own, and so are their standard errors; `,none` of its names is dropped, and its
`bits_per_byte` is `bits_per_byte_rolling` here. `truncated_requests` counts those that were cut. Short
questions fit into any budget: the share of requests in which the policy acted stands in every row.

A group is its tasks: one cell each, so that a task is resumed, repeated and shared by itself. Where lm-eval
defines a number of the group (`aggregate_metric_list`: MMLU's accuracy), the run's manifest says of which
tasks and how, and the report makes it of their rows, with lm-eval's own standard error.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data import label
from ..lm_eval_bridge import loading
from ..suite import Answer, Axes, Case, Suite

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...] = ("hellaswag",)
    local: bool = False
    include: str | None = None
    limit: int | None = None
    shots: int | None = None
    max_length: int | None = None
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        if not all(self.tasks) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks must be different names, such as hellaswag+piqa.")
        if self.limit is not None and self.limit < 1:
            raise ValueError("limit must be 1 or more.")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError("max_length must be 2 or more.")
        if min(self.shots or 0, self.bootstrap) < 0:
            raise ValueError("shots and bootstrap must be 0 or more.")
        unknown = [name for name in self.tasks if name not in loading.local_names()]
        if self.local and not self.include and unknown:
            raise ValueError(f"'{unknown[0]}' is not local; local are {', '.join(loading.local_names())}.")


class Workload(Suite):
    options: Options
    driven = True
    needs_text = False

    def cells(self) -> list[dict[str, float | int | str]]:
        """One per task, in the order of the options. Raises DataError."""
        return [{"task": name} for name in self._tasks]

    def drive(self, cell: Axes, run: Callable[[Sequence[Case]], list[Answer]]) -> dict[str, float]:
        """lm-eval's numbers for one task. Raises ValueError for requests that cannot be met."""
        from lm_eval.evaluator import evaluate

        from ..lm_eval_bridge.model import CacheLM

        task, o = self._tasks[str(cell["task"])], self.options
        lm = CacheLM(run, self.context.tokenizer, self.max_length, cell)
        loading.prepare(task, o.shots)
        # A pool of processes for the bootstrap is not worth forking one that has a model. `simple_evaluate`
        # would do the same and spend seconds on describing the machine.
        with _environment("DISABLE_MULTIPROC", "1"), contextlib.redirect_stdout(sys.stderr):
            told = evaluate(
                lm,
                {"tasks": {task.task_name: task}},
                limit=o.limit,
                bootstrap_iters=o.bootstrap,
                log_samples=False,
            )
        found = {_name(key): value for key, value in told["results"][task.task_name].items()}
        numbers = {name: float(v) for name, v in found.items() if name and isinstance(v, int | float)}
        return numbers | {"truncated_requests": float(lm.truncated)}

    @property
    def _tasks(self) -> dict[str, Task]:
        return self._loaded[0]

    @functools.cached_property
    def _loaded(self) -> tuple[dict[str, Task], dict[str, Group]]:
        o = self.options
        return loading.unfold(o.tasks, o.include, o.local, o.shots)

    @property
    def max_length(self) -> int | None:
        return self.options.max_length or self.context.context_length

    def source(self) -> str:
        return self._source

    @functools.cached_property
    def _source(self) -> str:
        """lm-eval's version, the tasks, and a hash over their definitions and rows. Raises DataError."""
        o, tasks = self.options, self._tasks  # loaded by now, and not when a worker's memory is limited
        name = f"lm-eval {importlib.metadata.version('lm_eval')}: {'+'.join(o.tasks)}"
        return label(name, *loading.contents(tasks, o.include, o.local, o.limit, o.shots))

    def notes(self) -> dict[str, str]:
        """`groups` is JSON, of which the report makes their numbers. Raises DataError."""
        bound, groups = self.max_length or "none", loading.described(self._loaded[1])
        for metric in (metric for group in groups.values() for metric in group["metrics"]):
            metric["metric"] = _name(f"{metric['metric']},none")  # as rows call it
        return {
            "protocol": "contexts through the policy, continuations scored through the same cache",
            "max_length": f"{bound}; longer requests are cut on the left and counted (truncated_requests)",
        } | ({"groups": json.dumps(groups)} if groups else {})


def _name(key: str) -> str | None:
    """`acc,none` -> acc; `exact_match_stderr,strict-match` -> exact_match,strict-match_stderr; else None."""
    metric, comma, filter = key.partition(",")
    if not comma:
        return key if key == "sample_len" else None
    plain = metric.removesuffix("_stderr")
    name = "bits_per_byte_rolling" if plain == "bits_per_byte" else plain
    return f"{name}{'' if filter == 'none' else ',' + filter}{'_stderr' if plain != metric else ''}"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before: Any = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
