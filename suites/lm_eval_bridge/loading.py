"""Which lm-eval tasks a name stands for, and what has to be on this machine for them.

    local       only the YAML files in local_tasks/, on rows that `suites.data.find` knows
    include     a folder of the user's with YAML (and Python) files in lm-eval's own format
    neither     lm-eval's own tasks, groups and tags, whose rows come from the hub or from its cache here

lm-eval reads all of its 14,000 files before it knows a name, which takes ten seconds; that is spared where
the first two have every name. Everything that goes wrong is a DataError of one sentence.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataError

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task

LOCAL_FOLDER = Path(__file__).parent / "local_tasks"


def check_installed() -> None:
    """Raises DataError where lm-eval is missing."""
    if importlib.util.find_spec("lm_eval") is None:
        raise DataError("The suite lm_eval needs the package lm-eval: pip install 'lm-eval>=0.4.13'.")


def local_names() -> list[str]:
    """The tasks of local_tasks/."""
    return sorted(path.stem for path in LOCAL_FOLDER.glob("*.yaml"))


def contents(
    tasks: dict[str, Task], include: str | None, local: bool, limit: int | None, shots: int | None
) -> Iterator[bytes]:
    """All that the numbers of loaded tasks depend on: definitions, and rows that are asked or shown.

    Of lm-eval's own tasks the definition is the version, which the library promises to count up.
    """
    folders = [LOCAL_FOLDER] * local + ([Path(include)] if include else [])
    for folder in folders:
        for file in sorted(file for kind in ("*.yaml", "*.py") for file in folder.rglob(kind)):
            yield file.read_bytes()
    _seed()
    for name, task in tasks.items():
        yield json.dumps([name, str(task.VERSION)]).encode()
        for _, row in task.doc_iterator(limit=limit):
            yield _bytes(row)
        if num_shots(task, shots):
            for row in task.fewshot_docs():
                yield _bytes(row)


def _bytes(row: Any) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()


def num_shots(task: Task, shots: int | None) -> int:
    """Examples before each question, as `simple_evaluate` counts them: a task that wants none gets none."""
    own = task.get_config("num_fewshot")
    return own or 0 if shots is None or own == 0 else shots


def prepare(task: Task, shots: int | None) -> None:
    """Number and draw of the examples as `simple_evaluate` sets them."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    _seed()
    task.set_config("num_fewshot", num_shots(task, shots))
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _seed() -> None:
    """Some tasks shuffle their choices while they are loaded, and again when asked for their rows."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)


def load(names: Sequence[str], include: str | None, local: bool, shots: int | None = None) -> dict[str, Task]:
    """Every task behind the names, groups and tags unfolded, in order. Raises DataError."""
    return unfold(names, include, local, shots)[0]


def unfold(
    names: Sequence[str], include: str | None, local: bool, shots: int | None = None
) -> tuple[dict[str, Task], dict[str, Group]]:
    """Tasks as `load` gives them, and the groups that they came from, nested ones too. Raises DataError."""
    check_installed()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what YAML says on purpose
    from lm_eval.tasks import TaskManager

    folders = [str(LOCAL_FOLDER)] * local + ([include] if include else [])
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        if include:
            _check_folder(Path(include))
        if not local:
            manager = TaskManager(include_path=folders)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise DataError(f"lm-eval knows no task, group or tag '{name}'{hint}.")
    _seed()
    try:
        found = manager.load(list(names))
        short = _short_of_examples(found["tasks"], shots)
    except DataError:
        raise
    except Exception as error:  # of datasets, of the hub's client, of Python beside a YAML file
        raise DataError(f"Task {'+'.join(names)} cannot be loaded ({_first_line(error)}).") from None
    if short:
        raise DataError(short)
    return found["tasks"], found["groups"]


def _short_of_examples(tasks: dict[str, Task], shots: int | None) -> str | None:
    """What to say where lm-eval would find too few rows to draw examples from."""
    for name, task in tasks.items():
        if wanted := num_shots(task, shots):
            there = len(task.fewshot_docs() or ())
            # lm-eval's own condition for drawing one more, so that the question itself can be left out.
            config = getattr(task, "fewshot_cfg", None)
            leaves_out = config is None or config.split == task.config.test_split
            if there < wanted + leaves_out:
                others = " besides the question" if leaves_out else ""
                return f"Task {name} has {there} rows to show, too few for {wanted} examples{others}."
    return None


def described(groups: dict[str, Group]) -> dict[str, dict[str, Any]]:
    """Of each group that has numbers of its own: its tasks, and what is averaged over them (lm-eval's words).

    `filter_list` None: every filter by which a task has that metric. A task that two subgroups share is
    listed, and counts, twice.
    """
    return {
        name: {
            "tasks": [task.task_name for task in group.get_all_tasks()],
            "metrics": [
                {key: getattr(one, key) for key in ("metric", "filter_list", "weight_by_size")}
                for one in group.aggregate_metric_list or ()
            ],
        }
        for name, group in groups.items()
        if group.has_aggregation
    }


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def _check_folder(folder: Path) -> None:
    """lm-eval passes over files that it cannot read; where a name is missing they are the likely reason."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} to include.")
    for file in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:
            raise DataError(f"{file} cannot be read ({_first_line(error)}).") from None
