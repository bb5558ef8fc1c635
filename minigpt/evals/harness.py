"""Evaluate a run on tasks of lm-evaluation-harness, to compare it with the published scores of other models.

A task is a name that the harness knows (`lambada_openai`; its data set is downloaded), or a YAML file. A file can name
local data and then needs no network. A task file can call Python functions, so run only files that you trust.
"""

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from yaml import YAMLError

from minigpt.config.section import one_or_many
from minigpt.errors import UserError, first_line, nearest
from minigpt.evals.perplexity import check_batch_size
from minigpt.evals.report import Run

RESAMPLES = 1000
"""Resamples of the bootstrap, by which the harness estimates some standard errors."""
_KEPT = ("results", "groups", "higher_is_better", "versions", "n-shot", "n-samples")


def evaluate_tasks(
    run: Run,
    tasks: str | Sequence[str],
    *,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a loaded run on tasks of the harness: `evaluate_tasks(load_run("runs/my"), ["mine.yaml"])["results"]`.

    Args:
        run: from `load_run`.
        tasks: names of tasks or groups, or YAML files; a single text is one of them.
        include_path: a folder of task files, whose names `tasks` may then use.
        num_fewshot: solved examples before each question (default: as the task says).
        limit: most documents per task.
        batch_size: windows at a time (default: by memory).
        progress: called with (requests or windows done, their total).

    Returns:
        The harness' results, versions, n-shot and n-samples, for tasks and groups, by its names ("acc,none"); and
        lm_eval (its version), checkpoint and step.

    Raises:
        UserError: lm_eval is not installed; no such task; a task that cannot be read, or needs what minigpt lacks.
        CheckpointError: the loss is NaN or infinite.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("tasks need lm-evaluation-harness; install it with: pip install 'minigpt[lm-eval]'")
    tasks = one_or_many(tasks)
    if not tasks:
        raise UserError("no task is named; give one, for example lambada_openai, or a YAML file")
    if (1 if limit is None else limit) < 1 or (num_fewshot or 0) < 0:
        raise UserError("limit must be 1 or more, and num_fewshot 0 or more")
    check_batch_size(batch_size)
    from lm_eval import __version__, evaluate  # pyright: ignore[reportMissingImports]  an extra
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED  # pyright: ignore[reportMissingImports]

    from minigpt.evals.harness_model import HarnessModel

    # some tasks shuffle; the harness' command uses these seeds
    seeded = _seeded(DEFAULT_RANDOM_SEED, DEFAULT_OTHER_SEED)
    with _task_errors(tasks), redirect_stdout(sys.stderr), seeded:  # the harness prints
        loaded = _load(list(tasks), include_path)
        for task in loaded["tasks"].values():
            fixed = task.get_config("num_fewshot")
            shots = fixed if fixed == 0 or num_fewshot is None else num_fewshot  # 0 in the task file is fixed
            task.set_config("num_fewshot", shots or 0)
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        model = HarnessModel(run, batch_size, progress)
        found: Any = evaluate(model, loaded, limit=limit, log_samples=False, bootstrap_iters=RESAMPLES)
    where = {"lm_eval": __version__, "checkpoint": str(run.checkpoint), "step": run.step}
    return {key: found[key] for key in _KEPT if key in found} | where


def _load(names: list[str], folder: str | Path | None) -> Any:
    """The harness' tasks and groups of these names."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"{folder}: is not a folder; --include-path names one with task files")
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not all(name in manager.task_index or Path(name).is_file() for name in names):
        manager = TaskManager(include_path=folder)  # reads ten thousand files
    for name in names:
        if name not in manager.task_index and not Path(name).is_file():
            raise UserError(f"no task is called {name}; {nearest(name, manager.all_tasks, 'or give a YAML file')}")
    return manager.load(names)


@contextmanager
def _seeded(python: int, numpy: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators inside the `with` block; afterwards they are as before."""
    before = random.getstate(), np.random.get_state()
    random.seed(python)
    np.random.seed(numpy)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def _task_errors(names: Sequence[str]) -> Iterator[None]:
    """Turn any error in a task file or its data into one UserError."""
    from datasets.exceptions import DatasetsError  # pyright: ignore[reportMissingImports]
    from jinja2 import TemplateError  # pyright: ignore[reportMissingImports]

    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, ImportError, DatasetsError, TemplateError, YAMLError) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        hint = "check the task file, its data and the network"
        raise UserError(f"{', '.join(names)}: the harness cannot run the task ({why}); {hint}") from None
