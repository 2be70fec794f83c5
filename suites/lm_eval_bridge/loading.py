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
        if shots or (shots is None and task.config.num_fewshot):
            for row in task.fewshot_docs():
                yield _bytes(row)


def _bytes(row: Any) -> bytes:
    return json.dumps(row, sort_keys=True, default=str).encode()


def prepare(task: Task, shots: int | None) -> None:
    """Number and draw of the examples as `simple_evaluate` sets them: a task that wants none gets none."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    _seed()
    if shots is not None and task.get_config("num_fewshot") != 0:
        task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)


def _seed() -> None:
    """Some tasks shuffle their choices while they are loaded, and again when asked for their rows."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)


def load(names: Sequence[str], include: str | None, local: bool, shots: int | None = None) -> dict[str, Task]:
    """Every task behind the names, groups and tags unfolded, in order. Raises DataError."""
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
        tasks = manager.load(list(names))["tasks"]
        few = {name: len(task.fewshot_docs() or ()) for name, task in tasks.items() if shots}
    except DataError:
        raise
    except Exception as error:  # of datasets, of the hub's client, of Python beside a YAML file
        raise DataError(f"Task {'+'.join(names)} cannot be loaded ({_first_line(error)}).") from None
    for name, count in few.items():
        if count <= (shots or 0):
            raise DataError(f"Task {name} has {count} rows to show, too few for {shots} examples.")
    return tasks


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
