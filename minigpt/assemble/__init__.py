"""The composition root: config -> objects. Build and train a run, load a run. Only `data` does without torch."""

import importlib
from typing import TYPE_CHECKING, Any

from minigpt.assemble.data import make_tokenizer, prepare_data

if TYPE_CHECKING:
    from minigpt.assemble.budget import Budgeted, plan_within, train_within
    from minigpt.assemble.finetune import fine_tune, merge_run
    from minigpt.assemble.load import LoadedRun, load_run
    from minigpt.assemble.run import TrainedRun, train
    from minigpt.assemble.shrink import tiny

__all__ = [
    "Budgeted",
    "LoadedRun",
    "TrainedRun",
    "fine_tune",
    "load_run",
    "make_tokenizer",
    "merge_run",
    "plan_within",
    "prepare_data",
    "tiny",
    "train",
    "train_within",
]


_HOME = {
    "TrainedRun": "run",
    "train": "run",
    "Budgeted": "budget",
    "plan_within": "budget",
    "train_within": "budget",
    "tiny": "shrink",
    "LoadedRun": "load",
    "load_run": "load",
    "fine_tune": "finetune",
    "merge_run": "finetune",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"minigpt.assemble.{_HOME[name]}"), name)
