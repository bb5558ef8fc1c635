"""The composition root: config -> objects. Build and train a run, load a run. Only `data` does without torch."""

from typing import TYPE_CHECKING, Any

from minigpt.assemble.data import make_tokenizer, prepare_data

if TYPE_CHECKING:
    from minigpt.assemble.finetune import fine_tune, merge_run
    from minigpt.assemble.load import LoadedRun, load_run
    from minigpt.assemble.run import TrainedRun, tiny, train

__all__ = [
    "LoadedRun",
    "TrainedRun",
    "fine_tune",
    "load_run",
    "make_tokenizer",
    "merge_run",
    "prepare_data",
    "tiny",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name in ("TrainedRun", "tiny", "train"):
        from minigpt.assemble import run

        return getattr(run, name)
    if name in ("LoadedRun", "load_run"):
        from minigpt.assemble import load

        return getattr(load, name)
    if name in ("fine_tune", "merge_run"):
        from minigpt.assemble import finetune

        return getattr(finetune, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
